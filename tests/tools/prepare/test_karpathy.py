"""`prepare captions`: Karpathy's JSON files to captions, ids, image paths."""

from __future__ import annotations

import json

import pytest

from lib.core.errors import InputError
from lib.datasets.splits import open_split
from lib.tools.prepare.__main__ import main
from lib.tools.prepare.karpathy import DATASET_NAMES, read_karpathy
from tests.helpers import error_line


def coco_image(number: int, split: str, sentences: int = 5, texts: list | None = None, **changes) -> dict:
    folder = "train2014" if split == "train" else "val2014"
    texts = texts or [
        {"raw": f"A Dog, number {k} of {number}.", "tokens": ["a", "dog"], "imgid": number, "sentid": 10 * number + k}
        for k in range(sentences)
    ]
    name = f"COCO_{folder}_{1000 + number:012d}.jpg"
    image = {"filepath": folder, "filename": name, "imgid": number, "cocoid": 1000 + number, "split": split}
    return {**image, "sentids": [text["sentid"] for text in texts], "sentences": texts, **changes}


def flickr_image(number: int, split: str) -> dict:
    image = coco_image(number, split)
    del image["filepath"], image["cocoid"]
    return {**image, "filename": f"{36979 + number}.jpg"}


def write(path, images, dataset="coco"):
    path.write_text(json.dumps({"images": images, "dataset": dataset}), encoding="utf-8")
    return path


def run(source, data, *more, data_name="coco"):
    return main(["captions", str(source), str(data), "--data_name", data_name, *more])


def lines(path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_coco_restval_trains_and_val_and_test_are_cut(tmp_path):
    splits = ["restval", "test", "train"] + ["val"] * 1003 + ["test"] * 5002
    images = [coco_image(number, split, sentences=1) for number, split in enumerate(splits)]
    assert run(write(tmp_path / "dataset_coco.json", images), tmp_path / "coco") == 0
    precomp = tmp_path / "coco" / "precomp"
    ids = {split: lines(precomp / f"{split}_ids.txt") for split in ("train", "dev", "test", "testall")}
    assert ids["train"] == ["1000", "1002"]  # file order, restval included
    assert ids["dev"] == [str(1003 + k) for k in range(1000)]
    assert ids["testall"] == ["1001"] + [str(2006 + k) for k in range(4999)]
    assert ids["test"] == ids["testall"][:1000]
    assert lines(precomp / "testall_capids.txt") == ["10"] + [str(10 * (1006 + k)) for k in range(4999)]
    mapping = json.loads((tmp_path / "coco" / "id_mapping.json").read_text())
    assert mapping["1002"] == "train2014/COCO_train2014_000000001002.jpg"
    assert mapping["1000"] == "val2014/COCO_val2014_000000001000.jpg"
    assert len(mapping) == len(images)


def test_flickr_uses_imgid_and_file_name_and_calls_val_dev(tmp_path):
    images = [flickr_image(number, split) for number, split in enumerate(["train", "val", "test", "train"])]
    run(write(tmp_path / "f.json", images, "flickr30k"), tmp_path / "f30k", data_name="f30k")
    precomp = tmp_path / "f30k" / "precomp"
    assert lines(precomp / "train_ids.txt") == ["0"] * 5 + ["3"] * 5
    assert lines(precomp / "dev_ids.txt") == ["1"] * 5
    assert not (precomp / "testall_ids.txt").exists() and not (precomp / "testall_capids.txt").exists()
    assert json.loads((tmp_path / "f30k" / "id_mapping.json").read_text())["3"] == "36982.jpg"


def test_first_five_sentences_are_taken_raw_on_one_line(tmp_path):
    image = coco_image(0, "train", sentences=7)
    image["sentences"][1]["raw"] = "  Two\nlines,\t a “Caf\u00e9”\u2028here . \r\n"
    run(write(tmp_path / "c.json", [image]), tmp_path / "coco")
    captions = (tmp_path / "coco" / "precomp" / "train_caps.txt").read_bytes().decode().split("\n")
    assert captions[0] == "A Dog, number 0 of 0."
    assert captions[1] == "Two lines, a “Caf\u00e9” here ."
    assert len(captions) == 6 and captions[5] == ""


def test_images_with_other_counts_of_captions_open_as_a_split(tmp_path):
    images = [coco_image(number, "train", sentences) for number, sentences in enumerate([5, 3, 6, 1])]
    run(write(tmp_path / "c.json", images), tmp_path / "coco")
    split = open_split(tmp_path / "coco", "coco", "train", need_features=False)
    assert split.image_of_caption.tolist() == [0] * 5 + [1] * 3 + [2] * 5 + [3]
    assert split.image_ids.tolist() == [1000, 1001, 1002, 1003]


def test_second_run_changes_nothing_and_other_content_needs_overwrite(tmp_path, capsys):
    source = write(tmp_path / "c.json", [coco_image(0, "train"), coco_image(1, "test")])
    run(source, tmp_path / "coco")
    caps = tmp_path / "coco" / "precomp" / "train_caps.txt"
    before = caps.stat().st_mtime_ns
    run(source, tmp_path / "coco")
    assert caps.stat().st_mtime_ns == before
    assert "wrote 0 files" in capsys.readouterr().out

    (tmp_path / "coco" / "precomp" / "train_ims.npy").touch()
    write(source, [coco_image(5, "train"), coco_image(1, "test")])
    with pytest.raises(SystemExit, match="2"):
        run(source, tmp_path / "coco")
    assert "--overwrite" in capsys.readouterr().err
    assert "of 0." in lines(caps)[0]
    run(source, tmp_path / "coco", "--overwrite")
    assert "of 5." in lines(caps)[0]
    assert "train_ims.npy may have been made for other ids" in capsys.readouterr().out


def test_an_existing_folder_of_another_name_is_kept_in_use(tmp_path):
    (tmp_path / "coco" / "coco_precomp").mkdir(parents=True)
    run(write(tmp_path / "c.json", [coco_image(0, "train")]), tmp_path / "coco")
    assert (tmp_path / "coco" / "coco_precomp" / "train_caps.txt").exists()
    assert not (tmp_path / "coco" / "precomp").exists()


def test_broken_entries_are_named(tmp_path, capsys):
    first = coco_image(0, "train")
    for images, words in (
        ([first, coco_image(0, "val")], ("id 1000", "images[0]", "images[1]")),
        ([first, coco_image(1, "val", sentences=0)], ("image 1001",)),
        ([coco_image(0, "holdout")], ("'holdout'", "train, restval, val, test")),
        ([first | {"cocoid": None}], ('"cocoid"', "Flickr30K")),
        ([first | {"filename": "../../x.jpg"}], ("leaves the image folder",)),
        ([first | {"filename": None}], ('"filename"',)),
        ([coco_image(0, "train", texts=[{"raw": " \n ", "sentid": 1}])], ("image 1000, sentences[0]",)),
        ([coco_image(0, "train", texts=[{"tokens": ["a"], "sentid": 1}])], ('"raw"',)),
        ([first, coco_image(1, "val", texts=[{"raw": "a", "sentid": 3}])], ("sentid 3", "image 1000", "image 1001")),
        ([], ('"images"',)),
    ):
        source = write(tmp_path / "c.json", images)
        argv = ["captions", source, tmp_path / "coco", "--data_name", "coco"]
        error = error_line(main, argv, capsys)
        assert all(word in error for word in words), error
        assert not (tmp_path / "coco").exists()


def test_file_of_the_other_data_set_is_refused(tmp_path):
    source = write(tmp_path / "f.json", [flickr_image(0, "train")], "flickr30k")
    with pytest.raises(InputError, match="holds the data set 'flickr30k', but --data_name is coco"):
        read_karpathy(source, "coco")


def test_raw_text_is_what_clip_based_esl_reads_of_each_data_set(tmp_path):
    raw = ".A Dog,\n runs.."
    texts = [{"raw": raw, "sentid": k} for k in range(5)]
    for name, image, expected in (("coco", coco_image, ".A Dog, runs.."), ("f30k", flickr_image, "A Dog, runs")):
        source = write(tmp_path / f"{name}.json", [image(0, "train") | {"sentences": texts}], DATASET_NAMES[name])
        for flags, caption in (([], ".A Dog, runs.."), (["--text", "raw"], expected)):
            run(source, tmp_path / name, "--overwrite", *flags, data_name=name)
            assert lines(tmp_path / name / "precomp" / "train_caps.txt") == [caption] * 5
