"""The command that writes the sample data."""

from __future__ import annotations

import pytest

from lib.tools.sample.__main__ import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "0"], "--images is 0"),
        (["--testall_images", "12"], "multiple of 5"),
        (["--img_dim", "-1"], "--img_dim is -1"),
        (["--seed", "-1"], "--seed is -1"),
    ],
)
def test_bad_sizes_are_one_clear_line_and_exit_code_2(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "out"), *arguments])
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_writes_what_it_says(tmp_path, capsys):
    argv = [str(tmp_path), "--images", "2", "--seed", "3"]
    main([*argv, "--dev_images", "1", "--test_images", "1", "--img_dim", "4", "--datasets", "coco", "f30k"])
    assert "coco: train 2, dev 1, testall 5 images" in capsys.readouterr().out
    assert (tmp_path / "coco" / "precomp" / "testall_ims.npy").is_file() and (tmp_path / "bert" / "vocab.txt").is_file()
