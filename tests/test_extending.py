"""docs/extending.md can't rot: its blocks are run, as they stand there, through every script."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import eval as evaluation_script
import eval_ensemble
import train as training_script
from lib.datasets import DATA_SETS
from lib.datasets.tokenisers import TOKENISERS
from lib.encoders import IMAGE_ENCODERS, TEXT_ENCODERS
from lib.similarity import HEADS
from lib.tools.gallery import __main__ as gallery
from lib.tools.score import __main__ as score
from lib.training import LOSSES
from tests.helpers import content, run_differences, threads

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
TABLES = (DATA_SETS, TOKENISERS, IMAGE_ENCODERS, TEXT_ENCODERS, HEADS, LOSSES)


@pytest.fixture
def extended():
    """The tables with the rows of the page, until the test ends."""
    before = [dict(table) for table in TABLES]
    try:
        for block in BLOCKS:
            exec(compile(block, f"{PAGE.name}: {block.splitlines()[0]}", "exec"), {"__name__": "extension"})
        yield [sorted(table.keys() - old.keys()) for table, old in zip(TABLES, before, strict=True)]
    finally:
        for table, old in zip(TABLES, before, strict=True):
            table.clear()
            table.update(old)


@pytest.fixture(scope="module")
def icons(sample, tmp_path_factory) -> Path:
    """The sample's f30k with the first caption of each image alone, and its pictures in another folder."""
    root = tmp_path_factory.mktemp("data") / "icons"
    precomp = Path(shutil.copytree(sample / "f30k" / "precomp", root / "precomp"))
    for captions in precomp.glob("*_caps.txt"):
        split = captions.name.removesuffix("_caps.txt")
        ids = (precomp / f"{split}_ids.txt").read_text().split()
        step = 5 if split != "train" else 1  # files of dev and test repeat an image for each of its captions
        captions.write_text("".join(captions.read_text().splitlines(keepends=True)[::5]))
        (precomp / f"{split}_ids.txt").write_text("".join(f"{number}\n" for number in ids[::step]))
        for kind in ("ims", "boxes"):
            np.save(precomp / f"{split}_{kind}.npy", np.load(precomp / f"{split}_{kind}.npy")[::step])
    shutil.copytree(sample / "f30k" / "flickr30k-images", root / "pictures")
    shutil.copy(sample / "f30k" / "id_mapping.json", root)
    return root


def test_the_page_adds_one_row_to_each_table(extended):
    assert extended == [
        ["icons"], ["hashed_words"], ["patches"], ["hashed_words"], ["best_region", "esl_dense"], ["softmax"]
    ]  # fmt: skip


@pytest.mark.parametrize("block", BLOCKS, ids=[block.splitlines()[0].split()[1] for block in BLOCKS])
def test_a_block_has_about_40_lines_of_code_or_fewer(block):
    assert len([line for line in block.splitlines() if line.strip() and not line.startswith(("from", "import"))]) <= 40


REGIONS = ("--similarity", "best_region", "--sharpness", 20, "--embed_size", 24, "--img_dim", 32, "--loss", "softmax")
IMAGES = ("--similarity", "esl_dense", "--embed_size", 256, "--image_encoder", "patches", "--text_encoder",
          "hashed_words", "--vocab_size", 500)  # fmt: skip


def test_every_extension_goes_through_training_resume_evaluation_ensemble_and_pictures(
    extended, icons, sample, tmp_path, capsys
):
    data = ("--data_path", icons, "--bert_path", sample / "bert", "--workers", 0, "--device", "cpu")
    for name, flags in (("regions", REGIONS), ("images", IMAGES)):
        folder = tmp_path / name
        training = (*data, "--data_name", "icons", *flags, "--batch_size", 12, "--model_name", folder)
        with threads(1):
            run(training_script, *training, "--num_epochs", 1)
            run(training_script, *training, "--num_epochs", 2, "--resume", folder / "checkpoint.pth")
            run(evaluation_script, *data, "--dataset", "icons", "--model_path", folder / "model_best.pth",
                "--save_results")  # fmt: skip
            run(training_script, *training[:-1], tmp_path / f"{name}_in_one_go", "--num_epochs", 2)
        assert not run_differences(folder / "checkpoint.pth", tmp_path / f"{name}_in_one_go" / "checkpoint.pth")
        assert content(folder / "checkpoint.pth")["epoch"] == 2
    assert "Icons 10 images" in capsys.readouterr().out
    run(eval_ensemble, tmp_path / "regions" / "results_icons.npy", tmp_path / "images" / "results_icons.npy")
    assert "Icons 10 images" in capsys.readouterr().out
    figures = json.loads((tmp_path / "images" / "results_icons.json").read_text())
    assert figures["dataset"] == "icons" and figures["images"] == figures["captions"] == 10
    assert figures["model"] == "ESL-dense, image patches, hashed words, embed_size 256"

    pair = (*data[2:4], "--device", "cpu", "--caption", "A red ball on the beach .", "--caption", "Two stars .")
    picture = next((icons / "pictures").rglob("*.jpg"))
    run(score, *pair, "--model_path", tmp_path / "images" / "model_best.pth", "--image", picture,
        "--picture", tmp_path / "images.png")  # fmt: skip
    run(score, *pair, "--model_path", tmp_path / "regions" / "model_best.pth", "--row", 3, "--features",
        icons / "precomp" / "test_ims.npy", "--picture", tmp_path / "regions.png")  # fmt: skip
    assert (tmp_path / "images.png").stat().st_size and (tmp_path / "regions.png").stat().st_size
    for name in ("images", "regions"):
        run(gallery, tmp_path / name / "results_icons.npy", *data[:4], "--device", "cpu", "--out", tmp_path / "gallery",
            "--query", "i2t:3", "--pictures", 1)  # fmt: skip
        assert (tmp_path / "gallery" / "pictures" / "i2t_3_right.png").stat().st_size
        (tmp_path / "gallery" / "pictures" / "i2t_3_right.png").unlink()


def run(script, *arguments) -> None:
    script.main([str(argument) for argument in arguments])
