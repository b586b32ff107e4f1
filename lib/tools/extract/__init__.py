"""Grid features of images as a features file."""
