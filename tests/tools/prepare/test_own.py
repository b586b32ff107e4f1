"""`prepare own`: a folder of images and lines `image<TAB>caption` to the layout."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from lib.datasets.images import ImageFolder
from lib.datasets.layout import image_folder, read_id_mapping
from lib.datasets.splits import open_split
from lib.tools.prepare.__main__ import main
from lib.tools.prepare.own import draw_splits
from tests.helpers import error_line


@pytest.fixture
def photos(tmp_path):
    """Twelve images, some in a subfolder; the red value says which."""
    folder = tmp_path / "photos"
    (folder / "trip").mkdir(parents=True)
    for number in range(12):
        name = f"trip/{number}.png" if number % 2 else f"{number}.png"
        Image.fromarray(np.full((8, 8, 3), [number, 0, 0], np.uint8)).save(folder / name)
    return folder


def name_of(number: int) -> str:
    return f"trip/{number}.png" if number % 2 else f"{number}.png"


def write(path, pairs):
    path.write_text("".join(f"{name}\t{caption}\n" for name, caption in pairs), encoding="utf-8")
    return path


def one_each(path, caption="x"):
    """A file of one caption for each of the twelve images."""
    return write(path, [(name_of(number), caption) for number in range(12)])


def arguments(photos, captions, *more) -> list[str]:
    target = photos.parent / "birds"
    return [str(part) for part in ("own", "--images", photos, "--captions", captions, "--data_path", target, *more)]


def test_every_caption_reaches_its_own_image(photos, tmp_path):
    pairs = [(name_of(number), f"image {number}, sentence {k}") for k in range(3) for number in range(12)]
    pairs.append((name_of(5), "image 5, one more"))
    assert main(arguments(photos, write(tmp_path / "c.tsv", pairs), "--dev", 3, "--test", 2)) == 0
    data, seen = tmp_path / "birds", []
    for name, images in (("train", 7), ("dev", 3), ("test", 2)):
        split = open_split(data, "birds", name, need_features=False)
        assert split.n_images == images
        folder = ImageFolder(image_folder(data, "birds"), read_id_mapping(data), split.image_ids)
        assert folder.check() == images
        for caption, image in zip(split.captions, split.image_of_caption, strict=True):
            assert caption.startswith(f"image {folder.read(image)[0, 0, 0]},")
        seen += split.captions
    assert sorted(seen) == sorted(caption for _, caption in pairs)


def test_the_images_are_linked_and_not_copied(photos, tmp_path):
    main(arguments(photos, one_each(tmp_path / "c.tsv")))
    link = image_folder(tmp_path / "birds", "birds")
    assert link.name == "images" and link.is_symlink() and link.resolve() == photos.resolve()


def test_own_data_carries_its_own_name(photos, tmp_path, capsys):
    captions = one_each(tmp_path / "c.tsv")
    data = tmp_path / "birds"
    main(arguments(photos, captions))
    assert f"train.py --data_path {data} --data_name birds, eval.py --data_path {data} --dataset birds" in (
        capsys.readouterr().out
    )
    main(arguments(photos, captions, "--data_name", "Birds-2"))
    assert "--dataset Birds-2" in capsys.readouterr().out
    for name, expected in (("f30k", "is a published data set"), ("coco", "is a published"), ("a/b", "a plain name")):
        message = error_line(main, arguments(photos, captions, "--data_name", name), capsys)
        assert "--data_name" in message and expected in message


def test_images_that_lie_in_the_data_folder_already_stay_there(photos, tmp_path):
    (tmp_path / "birds").mkdir()
    inside = photos.rename(tmp_path / "birds" / "images")
    captions = one_each(tmp_path / "c.tsv")
    fixed = ["own", "--images", inside, "--captions", captions, "--data_path", tmp_path / "birds"]
    assert main([str(part) for part in fixed]) == 0
    assert not inside.is_symlink() and inside.is_dir()


def test_a_token_file_of_flickr30k_is_read(photos, tmp_path):
    pairs = [(f"{name_of(number)}#{k}", f"A dog {k} .") for number in range(12) for k in range(5)]
    main(arguments(photos, write(tmp_path / "results.token", pairs)))
    mapping = json.loads((tmp_path / "birds" / "id_mapping.json").read_text())
    assert list(mapping.values()) == [name_of(number) for number in range(12)]
    split = open_split(tmp_path / "birds", "birds", "dev", need_features=False)
    assert split.captions == [f"A dog {k} ." for k in range(5)]


@pytest.mark.parametrize(
    ("header", "separator"),
    [("image,caption", ","), ("\ufeffimage_name| comment_number| comment", "| "), ("id;caption;image", ";")],
)
def test_a_csv_with_a_header_is_read_whatever_its_separator_and_other_columns(photos, tmp_path, header, separator):
    order = [name.strip(" \ufeff") for name in header.split(separator.strip())]
    rows = []
    for number in range(12):
        text = f'"image {number}, a word,\nand more"'
        cells = {"image": name_of(number), "image_name": name_of(number), "caption": text, "comment": text}
        rows.append(separator.join(cells.get(name, str(number)) for name in order))
    file = tmp_path / "c.csv"
    file.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    assert main(arguments(photos, file, "--dev", 3, "--test", 2)) == 0
    split = open_split(tmp_path / "birds", "birds", "train", need_features=False)
    assert len(split.captions) == 7 and all(caption.endswith(", a word, and more") for caption in split.captions)


def test_splits_too_small_to_choose_or_report_by_are_said(photos, tmp_path, capsys):
    main(arguments(photos, one_each(tmp_path / "c.tsv"), "--dev", 4))
    out = capsys.readouterr().out
    assert "note: dev has 4 images, too few to choose an epoch by (one of them moves a recall by 25.0)" in out
    assert "note: test has 1 images, too few to report recalls on" in out


def test_splits_depend_on_the_seed_alone_and_share_no_image():
    first = draw_splits(100, 10, 20, seed=3)
    assert first == draw_splits(100, 10, 20, seed=3) != draw_splits(100, 10, 20, seed=4)
    assert sorted(sum(first.values(), [])) == list(range(100))
    assert {name: len(chosen) for name, chosen in first.items()} == {"train": 70, "dev": 10, "test": 20}
    defaults = draw_splits(50_000, None, None, seed=0)
    assert len(defaults["dev"]) == len(defaults["test"]) == 1000


def test_a_second_run_writes_nothing_and_other_captions_need_overwrite(photos, tmp_path, capsys):
    def captions():
        return open_split(tmp_path / "birds", "birds", "test", need_features=False).captions

    argv = arguments(photos, one_each(tmp_path / "c.tsv"))
    main(argv)
    main(argv)
    assert "wrote 0 files" in capsys.readouterr().out
    one_each(tmp_path / "c.tsv", "y")
    assert "--overwrite" in error_line(main, argv, capsys) and captions() == ["x"]
    main([*argv, "--overwrite"])
    assert captions() == ["y"]


def test_images_without_a_caption_are_counted(photos, tmp_path, capsys):
    main(arguments(photos, write(tmp_path / "c.tsv", [(name_of(number), "x") for number in range(9)])))
    assert "3 image files under" in capsys.readouterr().out


def test_bad_input_is_one_line_that_names_the_place(photos, tmp_path, capsys):
    (photos / "text.png").write_text("no image")
    file, table = one_each(tmp_path / "c.tsv"), tmp_path / "c.csv"
    good = file.read_text()
    cases = [
        (file, good + "0.png\t  \n", (), "line 13: '0.png'"),
        (file, good + "none.png\tx\n", (), f"line 13: no image file {photos / 'none.png'}"),
        (file, good + "../c.tsv\tx\n", (), "line 13: image '../c.tsv'"),
        (file, good + "text.png\tx\n", (), f"{photos / 'text.png'}: "),
        (file, "0.png no tab here\n", (), "line 1: '0.png no tab here'"),
        (table, "0.png,x\n", (), "line 1: the header is '0.png,x'"),
        (table, "image,caption\n0.png\n", (), "line 2: '0.png'"),
        (file, good, ("--dev", 6, "--test", 6), "--dev 6 and --test 6"),
        (file, good, ("--images", tmp_path / "none"), "none: no such folder"),
        (file, good, ("--data_path", file / "birds"), "birds: cannot be written"),
    ]
    for captions, text, more, words in cases:
        captions.write_text(text)
        assert words in error_line(main, arguments(photos, captions, *more), capsys)
    assert not (tmp_path / "birds").exists()
    (tmp_path / "birds" / "images").mkdir(parents=True)
    assert "birds/images: there already" in error_line(main, arguments(photos, file), capsys)


def test_a_flag_says_how_large_an_image_may_be(photos, tmp_path, capsys):
    captions = write(tmp_path / "c.tsv", [(name_of(number), "a bird") for number in range(12)])
    assert "more than 63 pixels" in error_line(main, arguments(photos, captions, "--max_pixels", 63), capsys)
    assert main(arguments(photos, captions, "--max_pixels", 64)) == 0
