"""Released checkpoints: one adapter per family; nothing else knows their key names."""
