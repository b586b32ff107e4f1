"""Files in the safetensors format, read and written: a header of names and shapes in JSON, then numbers alone."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from lib.core.errors import InputError, shown
from lib.files.writing import atomic_write

METADATA = "__metadata__"  # as the header itself calls its texts
MOST_HEADER = 8 << 20  # bytes


def begins(data: bytes) -> bool:
    """Whether a file's first bytes are those of this format: the header's length, then JSON."""
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= MOST_HEADER


def read_safetensors(path: Path) -> dict[str, Tensor | dict[str, str]]:
    """The tensors of a file by name, and under METADATA its texts; InputError for one that is damaged.

    The format has no checksum: damaged numbers are read, unless their digests are among the texts.
    """
    import safetensors  # here: only who has such a file needs it

    try:
        with safetensors.safe_open(path, "pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()} | {METADATA: file.metadata() or {}}  # noqa: SIM118
    except Exception as error:  # its own kinds, and whatever a wrong shape provokes in torch
        raise InputError(f"{path}: is truncated or damaged ({shown(error)}); copy or download it again") from None


def write_safetensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors and texts, atomically; InputError when the file can't be written."""
    import safetensors
    from safetensors.torch import save_file

    # None may share its memory with another.
    own = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        try:
            save_file(own, temporary, metadata)
        except (OSError, safetensors.SafetensorError) as error:
            raise InputError(f"{path}: cannot be written ({shown(error)}); is the disk full?") from None
