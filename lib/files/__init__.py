"""Every file from outside passes here: checked once, then believed."""
