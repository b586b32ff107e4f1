"""Archives and pickles that promise more than they hold, or ask for more than tensors need, are refused at once."""

from __future__ import annotations

import argparse
import contextlib
import io
import pickle
import resource
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from lib.files.pickles import names_in
from lib.files.pytorch import read_file
from tests.attack.refusals import refuses

ROOM = 256 << 20  # bytes that refusing a file may take


@contextlib.contextmanager
def little_memory():
    """This process can't take more than ROOM beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def saved(content, legacy: bool = False) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def members(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_zip(path: Path, contents: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in contents:
            archive.writestr(name, data)


def with_pickle(path: Path, data: bytes, legacy: bool = False) -> None:
    """A PyTorch file whose content is `data`."""
    if legacy:
        whole, old = saved({}, legacy=True), pickle.dumps({}, 2)
        assert whole.count(old) == 1
        path.write_bytes(whole.replace(old, data))
    else:
        parts = members(saved({}))
        write_zip(path, list((parts | {"archive/data.pkl": data}).items()))


def test_a_file_made_for_these_tests_is_read(tmp_path):
    for legacy in (False, True):
        with_pickle(tmp_path / "a.pth", pickle.dumps({"a": [1, 2]}, 2), legacy)
        assert read_file(tmp_path / "a.pth") == {"a": [1, 2]}


# ---- members ----


def test_compressed_zeros_are_refused_before_they_are_unpacked(tmp_path):
    parts = members(saved({"a": torch.zeros(1)})) | {"archive/data/0": bytes(ROOM)}
    write_zip(tmp_path / "a.pth", list(parts.items()), zipfile.ZIP_DEFLATED)
    with little_memory():
        refuses(lambda: read_file(tmp_path / "a.pth"), "is compressed")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused(tmp_path):
    parts = list(members(saved({"a": torch.zeros(1)})).items())
    write_zip(tmp_path / "a.pth", [*parts, ("archive/data/0", b"\1\1\1\1")])
    refuses(lambda: read_file(tmp_path / "a.pth"), "two members of one name")


def test_members_that_share_their_bytes_are_refused(tmp_path):
    parts = members(saved({"a": torch.zeros(1 << 20)}))
    write_zip(tmp_path / "a.pth", list(parts.items()))
    data = bytearray((tmp_path / "a.pth").read_bytes())
    first, second = (data.rindex(name) for name in (b"archive/byteorder", b"archive/data/0"))
    data[first - 4 : first] = data[second - 4 : second]  # where its header is, in the directory at the end
    (tmp_path / "a.pth").write_bytes(data)
    refuses(lambda: read_file(tmp_path / "a.pth"), "damaged")


def test_a_second_folder_in_the_archive_is_refused(tmp_path):
    parts = list(members(saved({"a": torch.zeros(1)})).items())
    write_zip(tmp_path / "a.pth", [*parts, ("other/data.pkl", parts[0][1])])
    refuses(lambda: read_file(tmp_path / "a.pth"), "more than the folder archive")


def test_bytes_in_front_of_an_archive_are_refused(tmp_path):
    data = saved({"a": torch.zeros(1)})
    (tmp_path / "a.pth").write_bytes(data + data)  # the second half is what zipfile would read, the first what torch
    refuses(lambda: read_file(tmp_path / "a.pth"), "damaged")


def test_a_sparse_tar_file_is_not_unpacked_to_the_disk(tmp_path):
    with tarfile.open(tmp_path / "a.pth", "w", encoding="latin-1", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("\x80\x02storages"))
    assert (tmp_path / "a.pth").read_bytes()[:1] == b"\x80"
    refuses(lambda: read_file(tmp_path / "a.pth"), "not a PyTorch file")


# ---- pickles ----

ASKS = {  # for more memory than the file has bytes
    "bytearray": b"\x80\x02c__builtin__\nbytearray\nJ\x00\x00\x00\x7f\x85R.",
    "a tensor": b"\x80\x02ctorch\nTensor\nJ\x00\x00\x00\x7f\x85R.",
    "a quantized tensor": b"\x80\x02ctorch._utils\n_rebuild_qtensor\n)R.",
    "a sparse tensor": b"\x80\x02ctorch._utils\n_rebuild_sparse_tensor\n)R.",
    "a tensor of another device": b"\x80\x02ctorch._utils\n_rebuild_device_tensor_from_cpu_tensor\n)R.",
    "a tensor without storage": b"\x80\x02ctorch._utils\n_rebuild_meta_tensor_no_storage\n)R.",
    "text of 2 GB": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "a stack of marks": b"\x80\x02" + b"(" * (9 << 20) + b".",
    "an integer of 10,000 digits": pickle.dumps({"epoch": 10**10_000}, 2),
    "deep lists": b"\x80\x02" + b"]" * 3000 + b"a" * 2999 + b".",
    "deep tuples": b"\x80\x02)" + b"\x85" * 100_000 + b".",
    "itself": b"\x80\x02]q\x00h\x00a.",
    "lists of lists of lists": b"\x80\x02]q\x00"
    + b"".join(b"](" + b"h%c" % n * 10 + b"eq%c" % (n + 1) for n in range(12)) + b".",
}  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("what", ASKS)
def test_a_pickle_that_asks_for_much_more_than_it_is_long_is_refused(what, legacy, tmp_path):
    with_pickle(tmp_path / "a.pth", ASKS[what], legacy)
    with little_memory():
        refuses(lambda: read_file(tmp_path / "a.pth"))


class Promise:
    """Pickles as what `torch.save` writes of a tensor, with sizes and strides that are not those of its storage."""

    def __init__(self, tensor, size, stride, offset=0):
        self.arguments = (tensor.untyped_storage(), offset, size, stride, False, OrderedDict())
        self.tensor = tensor

    def __reduce__(self):
        _, arguments = self.tensor.__reduce_ex__(2)
        storage = arguments[0] if not callable(arguments[0]) else arguments[1][0]
        return torch._utils._rebuild_tensor_v2, (storage, *self.arguments[1:])


PROMISES = {
    "more values than the file holds": ((1000,), (1,)),
    "one value many times": ((1 << 40,), (0,)),
    "rows that overlap": ((8, 4), (0, 1)),
    "a negative size": ((-4,), (1,)),
    "a negative stride": ((4,), (-1,)),
    "a size beyond 64 bits": ((1 << 70,), (1,)),
    "an offset behind the end": ((4,), (1,), 5),
    "a negative offset": ((4,), (1,), -1),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("what", PROMISES)
def test_a_tensor_that_its_file_does_not_hold_is_refused(what, legacy, tmp_path):
    torch.save({"a": Promise(torch.arange(8.0), *PROMISES[what])}, tmp_path / "a.pth",
               _use_new_zipfile_serialization=not legacy)  # fmt: skip
    with little_memory():
        refuses(lambda: read_file(tmp_path / "a.pth"))


def test_a_tensor_whose_bytes_are_not_in_the_archive_is_refused(tmp_path):
    parts = members(saved({"a": torch.zeros(4), "b": torch.ones(4)}))
    for name, data in (("archive/data/1", None), ("archive/data/1", b"\0" * 8), ("archive/data/1", b"")):
        changed = {key: value for key, value in parts.items() if key != name} | ({} if data is None else {name: data})
        write_zip(tmp_path / "a.pth", list(changed.items()))
        refuses(lambda: read_file(tmp_path / "a.pth"))


def test_a_legacy_file_that_promises_a_large_tensor_is_refused(tmp_path):
    data = saved({"a": torch.zeros(77)}, legacy=True)
    assert data.count(b"K\x4d") >= 1  # 77, as the pickle writes it
    (tmp_path / "a.pth").write_bytes(data.replace(b"K\x4d", b"\x8a\x06\0\0\0\0\0\x10"))
    with little_memory():
        refuses(lambda: read_file(tmp_path / "a.pth"))


def test_what_pytorch_and_the_released_code_write_is_read(tmp_path):
    content = {
        "state": OrderedDict(a=torch.nn.Parameter(torch.ones(2)), b=torch.ones(2, 3).T, c=torch.ones(2).bfloat16()),
        "opt": argparse.Namespace(margin=0.2, size=torch.Size([2]), kind=torch.float32, device=torch.device("cpu")),
        "views": [torch.arange(9.0)[3:5], torch.arange(512).expand(1, -1), torch.zeros(0), torch.tensor(3)],
        "set": {1, 2}, "complex": 1j, "bytes": b"\x00\xff",
    }  # fmt: skip
    for legacy in (False, True):
        torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
        read = read_file(tmp_path / "a.pth")
        assert str(read) == str(content)


def test_numbers_of_types_that_the_legacy_form_lacks_are_read(tmp_path):
    torch.save({"a": torch.ones(1, dtype=torch.uint16)}, tmp_path / "a.pth")
    assert read_file(tmp_path / "a.pth")["a"].dtype == torch.uint16


def test_every_name_in_a_pickle_is_found_whatever_its_spelling():
    for protocol in range(3):
        data = pickle.dumps([OrderedDict(a=1), argparse.Namespace(b=2)], protocol)
        assert {"collections.OrderedDict", "argparse.Namespace"} <= names_in(data)
