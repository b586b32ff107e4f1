"""Pictures of what matched what."""
