"""The file formats of checkpoints. A new family of released files is a module with these functions, and a row here.

`recognises(content)`, `read(content, path, paths) -> Checkpoint`, `write(path, checkpoint)`, and what the format calls
one of our weights, `name_of(key, config)`. The first row that recognises a file reads it.
"""

from __future__ import annotations

from lib.checkpoint import ours, released, released_bigru, released_clip

FORMATS = {"ours": ours, "released_bigru": released_bigru, "released_clip": released_clip, "released": released}
