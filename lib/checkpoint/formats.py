"""The file formats of checkpoints. A new family of released files is a module with these functions, and a row here.

`recognises(content)`, `read(content, path, paths) -> Checkpoint`, `write(path, checkpoint)`, `name_of(key, config)`:
what the format calls one of our weights.
"""

from __future__ import annotations

from lib.checkpoint import ours, released

FORMATS = {"ours": ours, "released": released}
