"""Files are whole or as they were, plain values alone are written, and a bad file is named with its line."""

from __future__ import annotations

import collections
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lib.core.errors import InputError
from lib.files.reading import read_ids, read_json, read_lines
from lib.files.writing import atomic_write, check_target, check_writable, plain, write_json


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- Writing ----------------------------------------------------------------------------------------------------------


def test_a_file_appears_whole_in_folders_that_are_made_for_it(tmp_path):
    path = tmp_path / "deep" / "er" / "a.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert temporary.parent == path.parent and not path.exists()
    assert path.read_text() == "new" and names(path.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_write_that_is_broken_off_leaves_the_old_file_and_nothing_beside_it(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_a_written_file_has_the_rights_of_any_new_file(tmp_path):
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a.txt"):
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


def test_what_a_killed_writer_left_is_removed_by_the_next_write_of_the_same_file(tmp_path):
    code = """
import os, signal, sys
from lib.files.writing import atomic_write
with atomic_write(sys.argv[1]) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.npy"])
    (orphan,) = tmp_path.glob(".a.npy.*.tmp")
    os.utime(orphan, (0, 0))
    with atomic_write(tmp_path / "b.npy"), atomic_write(tmp_path / "a.npy") as temporary:
        os.utime(temporary, (0, 0))
        write_json(tmp_path / "a.npy", {})  # another writer of the same file leaves this one alone
        assert temporary.exists() and not orphan.exists()
    assert names(tmp_path) == ["a.npy", "b.npy"]


def test_a_file_that_is_replaced_keeps_its_mode_and_a_link_its_place(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "a.txt").chmod(0o600)
    (tmp_path / "link").symlink_to("a.txt")
    (tmp_path / "ahead").symlink_to("later.txt")  # to a file that is not there yet
    for name in ("link", "ahead"):
        with atomic_write(tmp_path / name) as temporary:
            temporary.write_text("new")
        assert (tmp_path / name).is_symlink()
    assert (tmp_path / "a.txt").read_text() == (tmp_path / "later.txt").read_text() == "new"
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o600


def test_a_pipe_or_a_device_is_never_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to(os.devnull)
    for path in (tmp_path / "pipe", tmp_path / "null", Path(os.devnull)):
        before = os.stat(path).st_mode
        with pytest.raises(InputError, match="cannot be written"), atomic_write(path):
            raise AssertionError("the block must not run")
        with pytest.raises(InputError, match="--json"):
            check_target(path, "--json")
        assert os.stat(path).st_mode == before


def test_a_folder_that_cannot_be_written_is_named_in_one_line(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match="file/a.txt: cannot be written") as error,
        atomic_write(tmp_path / "file/a.txt"),
    ):
        raise AssertionError("the block must not run")
    assert "\n" not in str(error.value)


def refusing(number: int):
    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("at", ["fsync", "chmod", "replace"])
def test_a_disk_that_is_full_at_any_moment_is_one_line_and_leaves_the_old_file(tmp_path, monkeypatch, at):
    (tmp_path / "a.json").write_text("old")
    monkeypatch.setattr(os, at, refusing(errno.ENOSPC))
    with pytest.raises(InputError, match="a.json: cannot be written .No space left on device.; make room"):
        write_json(tmp_path / "a.json", {})
    assert (tmp_path / "a.json").read_text() == "old" and names(tmp_path) == ["a.json"]


def test_a_disk_that_is_full_while_the_content_is_written_is_one_line_too(tmp_path):
    with pytest.raises(InputError, match="a.txt: cannot be written .No space left"), atomic_write(tmp_path / "a.txt"):
        Path("/dev/full").write_text("x")  # the error of writing names no file
    assert names(tmp_path) == []


def test_a_folder_where_a_file_is_to_be_written_is_named(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(InputError, match="a.json: cannot be written .Is a directory"):
        write_json(tmp_path / "a.json", {})
    assert names(tmp_path) == ["a.json"]


def test_trouble_with_another_file_is_not_put_down_to_the_one_that_is_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="source.txt"), atomic_write(tmp_path / "a.txt"):
        (tmp_path / "source.txt").read_text()
    with pytest.raises(BrokenPipeError), atomic_write(tmp_path / "a.txt"):
        refusing(errno.EPIPE)()
    assert names(tmp_path) == []


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    order = []
    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, lambda *args, name=name: order.append(name))
    write_json(tmp_path / "a.json", {})
    assert order == ["fsync", "replace", "fsync"]  # its content, its name, the folder


def test_a_folder_is_tried_before_a_run_and_not_made(tmp_path):
    assert check_writable(tmp_path / "deep" / "runs", "--model_name") == tmp_path / "deep" / "runs"
    assert names(tmp_path) == []
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(InputError, match=f"^{folder}: cannot be written .*--model_name"):
            check_writable(folder, "--model_name")


# --- Plain values -----------------------------------------------------------------------------------------------------


class Described:
    def as_dict(self):
        return {"size": np.int64(3), "parts": (np.float32(0.5),)}


def test_a_file_that_could_not_be_written_is_known_before_the_work(tmp_path):
    assert check_target(tmp_path / "new" / "a.json", "--json") == tmp_path / "new" / "a.json"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "new" / "a.json").mkdir(parents=True)
    with pytest.raises(InputError, match="a.json: cannot be written .is a folder.; name another .* with --json"):
        check_target(tmp_path / "new" / "a.json", "--json")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: cannot be written .*--json"):
        check_target(tmp_path / "file" / "a.json", "--json")


def test_numpy_values_and_objects_with_a_dict_become_plain_at_every_depth():
    value = {np.int64(1): [np.float32(0.5), np.bool_(True), np.str_("a")], "rows": np.arange(4).reshape(2, 2)}
    assert plain(value) == {1: [0.5, True, "a"], "rows": [[0, 1], [2, 3]]}
    found = plain([Described(), None, (1, np.array(2))])
    assert found == [{"size": 3, "parts": (0.5,)}, None, (1, 2)]
    for one in (*plain(value)[1], *plain(value), found[0]["size"], found[2][1]):
        assert type(one) in (int, float, bool, str)


def test_what_is_left_is_text_or_what_the_caller_makes_of_it(tmp_path):
    assert plain({"path": tmp_path, "kind": int}) == {"path": str(tmp_path), "kind": "<class 'int'>"}
    assert plain([tmp_path, 1], other=lambda value: "?") == ["?", 1]

    def refuse(value):
        raise InputError(f"{value} is not plain")

    with pytest.raises(InputError, match="is not plain"):
        plain({"deep": [(tmp_path,)]}, other=refuse)


def test_subclasses_of_plain_types_become_the_types_themselves():
    class Name(str):
        pass

    pair = collections.namedtuple("Pair", "a b")(1, 2)
    found = plain([Name("a"), collections.OrderedDict(b=1), pair])
    assert found == ["a", {"b": 1}, [1, 2]] and [type(item) for item in found] == [str, dict, list]


# --- JSON -------------------------------------------------------------------------------------------------------------


def test_json_is_written_plain_and_read_back(tmp_path):
    write_json(tmp_path / "a.json", {"scores": np.array([0.5, 1.0]), "path": tmp_path, "text": "Vögel"})
    assert read_json(tmp_path / "a.json") == {"scores": [0.5, 1.0], "path": str(tmp_path), "text": "Vögel"}
    assert (tmp_path / "a.json").read_text().endswith("}\n") and names(tmp_path) == ["a.json"]


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", [1])
    monkeypatch.setattr(json, "dumps", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_json(tmp_path / "a.json", [2])
    assert read_json(tmp_path / "a.json") == [1] and names(tmp_path) == ["a.json"]


def test_json_that_is_missing_or_a_folder_or_broken_is_named_in_one_line(tmp_path):
    with pytest.raises(InputError, match="a.json: no such file"):
        read_json(tmp_path / "a.json")
    with pytest.raises(InputError, match="is a folder, expected a JSON file"):
        read_json(tmp_path)
    for broken in (b"", b'{"a": 1', b"[1]\n[2]", b"\xff\xfe"):
        (tmp_path / "a.json").write_bytes(broken)
        with pytest.raises(InputError, match="a.json: not valid JSON") as error:
            read_json(tmp_path / "a.json")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "strange",
    ["NaN", "[1, -Infinity]", '{"a": 1e999}', "9" * 5000, "[" * 100_000, '"\\ud800"', '["\\uDFFF x"]', "{1: 2}", "'a'"],
)
def test_json_that_python_reads_and_nobody_wants_is_refused_in_one_line(tmp_path, strange):
    (tmp_path / "a.json").write_text(strange)
    with pytest.raises(InputError, match="a.json: not valid JSON") as error:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_pairs_of_escapes_and_names_of_files_that_are_no_utf8_are_text(tmp_path):
    for text in ("\N{GRINNING FACE}", "Vögel\\ud800", os.fsdecode(b"V\xf6gel")):
        write_json(tmp_path / "a.json", [text])
        assert read_json(tmp_path / "a.json") == [text]


@pytest.mark.parametrize("read", [read_json, read_lines])
def test_a_pipe_or_a_device_is_refused_at_once(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(InputError, match=f"{path}: is no regular file, expected a"):
            read(path)


# --- Lines and ids ----------------------------------------------------------------------------------------------------


def test_lines_end_at_newlines_alone_and_a_byte_order_mark_is_no_text(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_bytes("\ufeffone\u2028still one\x0b\x85\r\n\n two\n".encode())
    assert read_lines(path) == ["one\u2028still one\x0b\x85\r", "", " two"]
    path.write_bytes(b"one\ntwo")
    assert read_lines(path) == ["one", "two"]


def test_a_file_without_text_or_without_utf8_is_named(tmp_path):
    path = tmp_path / "lines.txt"
    with pytest.raises(InputError, match="lines.txt: no such file"):
        read_lines(path)
    with pytest.raises(InputError, match=f"{tmp_path}: is a folder, expected a text file"):
        read_lines(tmp_path)
    with pytest.raises(InputError, match="lines.txt/deeper: cannot be read"):
        path.touch()
        read_lines(path / "deeper")
    for empty in ("", "\n", " \n\t\n", "\ufeff"):
        path.write_text(empty)
        with pytest.raises(InputError, match="lines.txt: the file is empty"):
            read_lines(path)
    path.write_bytes(b"fine\n\xff\n")
    with pytest.raises(InputError, match="lines.txt, line 2: not UTF-8"):
        read_lines(path)


def test_ids_are_integers_one_a_line(tmp_path):
    path = tmp_path / "ids.txt"
    path.write_bytes(b"391895\r\n-1\n522418\n")
    ids = read_ids(path)
    assert ids.dtype == np.int64 and ids.tolist() == [391895, -1, 522418]
    for bad in ("12.5", "", "cat", "9" * 30):
        path.write_text(f"1\n{bad}\n3\n")
        with pytest.raises(InputError, match="ids.txt, line 2: expected one integer"):
            read_ids(path)
