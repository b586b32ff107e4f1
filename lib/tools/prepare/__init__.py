"""Makes, from public sources, the data layout that training and evaluation read: `python -m lib.tools.prepare`."""
