"""Makes the data layout that training and evaluation read from public sources: `python -m lib.tools.prepare`."""
