"""lib.tools.score: the scores of eval.py, captions in order, the picture of the attention, refusals in one line."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lib.checkpoint import save_checkpoint
from lib.core.config import ModelConfig
from lib.core.fragments import Fragments
from lib.datasets.layout import read_id_mapping
from lib.datasets.splits import open_split
from lib.distributed.runner import Runner
from lib.files.images import read_image
from lib.inference.input_spec import input_spec
from lib.model import build_model
from lib.similarity.esl import ESL
from lib.tools.score import __main__ as script
from lib.tools.score import scoring
from tests.helpers import IMG_DIM, error_line, evaluate

pytestmark = pytest.mark.usefixtures("single_thread")
ROOT = Path(__file__).resolve().parents[3]
CAPTIONS = ["A red ball on the grass .", "A blue star .", "Two yellow boxes ."]
REGIONS = ModelConfig("esl_a", "regions", embed_size=256, image_options={"img_dim": IMG_DIM})
GRID = ModelConfig(
    "esl_a", "grid", embed_size=256, image_options={"backbone_source": "tiny", "input_scale_factor": 0.25}
)
POOLED = ModelConfig("vse_infty", "regions", embed_size=256, image_options={"img_dim": IMG_DIM})


@pytest.fixture(scope="module")
def checkpoints(sample, tmp_path_factory):
    """Untrained checkpoints by name: region and grid, and the pooled head."""
    root, paths = tmp_path_factory.mktemp("checkpoints"), {}
    for name, config in {"region": REGIONS, "grid": GRID, "pooled": POOLED}.items():
        torch.manual_seed(1)
        model = build_model(config, {"bert_path": sample / "bert"})
        (root / name).mkdir()
        paths[name] = root / name / "model.pth"
        save_checkpoint(paths[name], model, epoch=1, step=1, best_rsum=0.0, settings={})
    return paths


@pytest.fixture(scope="module")
def split(sample):
    return open_split(sample / "f30k", "f30k", "test", IMG_DIM)


@pytest.fixture(scope="module")
def photos(sample, split):
    """The image files of the test split, in order."""
    names = read_id_mapping(sample / "f30k")
    return [sample / "f30k" / "flickr30k-images" / names[str(i)] for i in split.image_ids]


@pytest.fixture
def arguments(sample, checkpoints):
    def build(name: str, *more, captions=CAPTIONS) -> list[str]:
        given = [part for caption in captions for part in ("--caption", caption)]
        fixed = ["--model_path", checkpoints[name], "--bert_path", sample / "bert", "--device", "cpu"]
        return [str(part) for part in (*fixed, *given, *more)]

    return build


def printed_scores(capsys) -> list[list[tuple[float, str]]]:
    """(score, caption) in the order printed, for each image."""
    images: list[list[tuple[float, str]]] = []
    for line in capsys.readouterr().out.splitlines()[1:]:
        if match := re.fullmatch(r" +(\d+) +(-?\d+\.\d{4})  (.+)", line):
            images[-1].append((float(match[2]), match[3]))
            assert int(match[1]) == len(images[-1])
        elif not line.startswith(("picture:", "note:")):
            images.append([])
    return images


# ---- scores ----


@pytest.mark.parametrize("name", ["region", "pooled", "grid"])
def test_scores_are_the_entries_of_evals_matrix(sample, checkpoints, split, photos, tmp_path, capsys, name):
    evaluate(sample, checkpoints[name], "--save_results", "--output", tmp_path)
    capsys.readouterr()
    matrix = np.load(tmp_path / "results_f30k.npy")
    precomp = sample / "f30k" / "precomp"
    flags = ["--features", precomp / "test_ims.npy", "--row", split.rows[0], "--row", split.rows[7]]
    if name == "grid":
        flags = ["--image", photos[0], "--image", photos[7]]
    flags += ["--captions_file", precomp / "test_caps.txt"]
    fixed = ["--model_path", checkpoints[name], "--bert_path", sample / "bert", "--device", "cpu"]
    script.main([str(part) for part in (*fixed, *flags)])
    for row, printed in zip((0, 7), printed_scores(capsys), strict=True):
        expected = sorted(zip(matrix[row].tolist(), split.captions, strict=True), reverse=True)
        assert sorted(caption for _, caption in printed) == sorted(split.captions)
        np.testing.assert_allclose([value for value, _ in printed], [value for value, _ in expected], atol=1.01e-4)
        by_caption = dict(zip(split.captions, matrix[row].tolist(), strict=True))
        for value, caption in printed:
            assert value == pytest.approx(by_caption[caption], abs=1.01e-4)


def test_a_fresh_process_that_loads_the_model_first_normalises_its_images(arguments, photos, capsys):
    flags = arguments("grid", "--image", photos[0])
    script.main(flags)
    expected = printed_scores(capsys)
    command = [sys.executable, "-m", "lib.tools.score", *flags]
    print(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout, end="")
    assert printed_scores(capsys) == expected


def test_captions_stand_in_the_order_of_their_scores_and_top_cuts_them(arguments, photos, capsys):
    script.main(arguments("grid", "--image", photos[0], "--image", photos[1]))
    both = printed_scores(capsys)
    assert len(both) == 2
    for printed in both:
        assert [value for value, _ in printed] == sorted((value for value, _ in printed), reverse=True)
        assert {caption for _, caption in printed} == set(CAPTIONS)
    script.main(arguments("grid", "--image", photos[0], "--top", 2))
    assert printed_scores(capsys) == [both[0][:2]]


def test_numbers_are_aligned():
    lines = scoring.ranked_lines("x.jpg", [f"c{k}" for k in range(11)], np.linspace(-0.5, 12.5, 11))
    assert lines[0] == "x.jpg" and lines[1] == "   1  12.5000  c10" and lines[11] == "  11  -0.5000  c0"
    assert len({line.index("c") for line in lines[1:]}) == 1


def test_one_image_s_regions_may_come_alone_and_masked_ones_do_not_count(sample, arguments, tmp_path, capsys):
    source = np.load(sample / "f30k" / "precomp" / "test_ims.npy")[:2]
    np.save(tmp_path / "one.npy", source[1, :20])
    script.main(arguments("region", "--features", tmp_path / "one.npy"))
    alone = printed_scores(capsys)
    source[1, 20:] = 7.0
    np.save(tmp_path / "test_ims.npy", source)
    np.save(tmp_path / "test_mask.npy", np.arange(36) < np.array([[36], [20]]))
    script.main(arguments("region", "--features", tmp_path / "test_ims.npy", "--row", 1))
    assert printed_scores(capsys) == alone


# ---- the picture ----


def test_tokens_of_a_word_become_one_row_with_their_mean_and_masked_regions_none(sample, monkeypatch):
    paths = {"bert_path": sample / "bert"}
    model = build_model(REGIONS, paths).eval()
    what = input_spec(model.config, paths)
    tokenizer = what.tokeniser.tokenizer
    pieces = tokenizer.convert_ids_to_tokens(range(tokenizer.vocab_size))
    tail = next(piece for piece in pieces if piece.startswith("##"))
    captions = scoring.tokenised(["a ball", "a ball"], what)
    captions.tokens = np.array(tokenizer.convert_tokens_to_ids(["ball", "a", tail, tail, "ball"]), np.int32)
    captions.words, captions.offsets = np.array([0, 0, 0, 0, 1], np.int32), np.array([0, 1, 5])
    similarity = torch.arange(18.0).view(1, 1, 6, 3)  # (B, C, W, R)
    monkeypatch.setattr(model.similarity, "attention", lambda images, captions: similarity)
    image = Fragments(torch.randn(3, IMG_DIM), torch.tensor([True, False, True]))
    runner = Runner(model, [torch.device("cpu")])
    words, rows = scoring.word_rows(runner, image, captions, 1)
    assert words == ["[CLS]", "a" + 2 * tail[2:], "ball", "[SEP]"]
    np.testing.assert_array_equal(rows, [[0, 2], [6, 8], [12, 14], [15, 17]])


@pytest.mark.parametrize("name", ["region", "grid"])
def test_the_picture_is_written_with_image_and_heat_map(sample, arguments, photos, tmp_path, capsys, name):
    flags = ["--image", photos[0], "--picture", tmp_path / "p.png", "--picture_caption", 2]
    if name == "region":
        flags += ["--features", sample / "f30k" / "precomp" / "test_ims.npy", "--row", 0]
    script.main(arguments(name, *flags))
    output = capsys.readouterr().out
    assert "note:" not in output and f"picture: {tmp_path / 'p.png'}" in output
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.format == "PNG" and picture.width > 900
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]


def test_without_an_image_the_picture_is_the_heat_map_and_says_so(sample, arguments, tmp_path, capsys):
    np.save(tmp_path / "one.npy", np.load(sample / "f30k" / "precomp" / "test_ims.npy")[0])
    script.main(arguments("region", "--features", tmp_path / "one.npy", "--picture", tmp_path / "p.png"))
    assert "note: no image given, so the picture is the heat map alone" in capsys.readouterr().out
    assert (tmp_path / "p.png").is_file()


def test_a_row_finds_its_image_and_boxes_by_the_split_s_files_and_refuses_another_image(
    sample, arguments, split, photos, tmp_path, drawn, capsys
):
    features = sample / "f30k/precomp/test_ims.npy"
    for row in (4, 37):  # five rows of each image
        flags = ("--features", features, "--row", row, "--picture", tmp_path / "p.pdf")
        script.main(arguments("region", *flags))
        np.testing.assert_array_equal(drawn[-1][4], read_image(photos[row // 5]))
        np.testing.assert_array_equal(drawn[-1][5], np.load(features.with_name("test_boxes.npy"))[row])
    assert "note" not in capsys.readouterr().out
    same = tmp_path / "copy.jpg"
    shutil.copy(photos[7], same)
    script.main(arguments("region", *flags, "--image", same))
    assert drawn[-1][3].split("  ·  ")[1] == "copy.jpg"
    message = error_line(script.main, arguments("region", *flags, "--image", photos[6]), capsys)
    assert str(photos[6]) in message and f"row 37 of {features} is another image, {photos[7]}" in message


def test_content_words_alone_are_drawn_as_they_are_written(arguments, photos, tmp_path, drawn, capsys):
    flags = ("--image", photos[0], "--picture", tmp_path / "p.svg", "--words", "content", "--no_subtitle")
    script.main(arguments("grid", *flags, "--width", 5, "--dpi", 50, captions=["A RED ball , on the Grass ."]))
    ((words, rows, title, subtitle, *_, width),) = drawn
    assert words == ["RED", "ball", "Grass"] and len(rows) == 3 and title == "A RED ball , on the Grass ."
    assert subtitle == "" and width == 5
    message = error_line(script.main, arguments("grid", *flags, captions=["It is on the ..."]), capsys)
    assert "has no word but function words" in message


@pytest.fixture
def drawn(monkeypatch) -> list:
    """What draw_picture is given: words, word-region similarity, title, subtitle, image, boxes, whether a grid."""
    seen, draw = [], scoring.draw_picture
    monkeypatch.setattr(scoring, "draw_picture", lambda *given: seen.append(given) or draw(*given))
    return seen


def test_the_picture_is_of_the_best_caption_or_the_one_that_is_named(
    sample, arguments, photos, tmp_path, drawn, capsys
):
    flags = ["--features", sample / "f30k/precomp/test_ims.npy", "--row", 0, "--picture", tmp_path / "p.png"]
    script.main(arguments("region", *flags))
    ((score, best), *_), *_ = printed_scores(capsys)
    script.main(arguments("region", *flags, "--picture_caption", 3))
    assert [given[2] for given in drawn] == [best, CAPTIONS[2]]
    assert drawn[0][3].startswith(f"score {score:.4f}  ·  {photos[0].name}  ·  ESL-A, region features, BERT")
    assert drawn[1][0] == ["[CLS]", "Two", "yellow", "boxes", ".", "[SEP]"]


def test_the_picture_shows_no_region_that_the_mask_rules_out(sample, arguments, photos, tmp_path, drawn):
    precomp = sample / "f30k/precomp"
    mask = np.arange(36) % 3 > 0
    np.save(tmp_path / "test_ims.npy", np.load(precomp / "test_ims.npy")[:1])
    np.save(tmp_path / "test_boxes.npy", np.load(precomp / "test_boxes.npy")[:1])
    np.save(tmp_path / "test_mask.npy", mask[None])
    flags = ("--features", tmp_path / "test_ims.npy", "--image", photos[0], "--picture", tmp_path / "p.png")
    script.main(arguments("region", *flags))
    ((words, similarity, _, _, image, boxes, grid, _),) = drawn
    assert similarity.shape == (len(words), 24) and image.ndim == 3 and not grid
    np.testing.assert_array_equal(boxes, np.load(precomp / "test_boxes.npy")[0][mask])


@pytest.mark.parametrize("real", [24, 25])
def test_a_grid_of_which_the_mask_leaves_a_part_has_no_picture_of_cells(
    sample, arguments, photos, tmp_path, capsys, real
):
    """25 of 36 cells would be drawn as a grid of 5 x 5, each at another place than it has."""
    np.save(tmp_path / "test_ims.npy", np.load(sample / "f30k/precomp/test_ims.npy")[:1])
    np.save(tmp_path / "test_mask.npy", np.arange(36)[None] < real)
    flags = ("--image", photos[0], "--boxes", "grid", "--picture", tmp_path / "p.png")
    message = error_line(script.main, arguments("region", "--features", tmp_path / "test_ims.npy", *flags), capsys)
    assert "--boxes grid" in message and not (tmp_path / "p.png").exists()


@pytest.mark.parametrize("name", ["region", "grid"])
def test_the_picture_s_similarity_gives_the_printed_score(
    sample, arguments, photos, tmp_path, monkeypatch, capsys, name
):
    """S (W, R) goes through the formulas of the ESL paper here, written out for one pair."""
    seen, attention = [], ESL.attention

    def keep(head, images, captions):
        seen.append(attention(head, images, captions))
        return seen[-1]

    monkeypatch.setattr(ESL, "attention", keep)
    flags = ("--image", photos[0])
    if name == "region":
        flags = ("--features", sample / "f30k" / "precomp" / "test_ims.npy", "--row", 0)
    script.main(arguments(name, *flags, "--picture", tmp_path / "p.png"))
    best = printed_scores(capsys)[0][0][0]
    S = seen[0][0, 0].double().numpy()
    g = np.tanh(S)
    g = np.where(g > 0, g, 0.1 * g)
    total = 0.0
    for axis in (0, 1):  # normalised over words, weighing regions; and the other way round
        e = np.exp(g / (np.linalg.norm(g, axis=axis, keepdims=True) + 1e-8) / 0.07)
        total += ((e / e.sum(1 - axis, keepdims=True)) * S).sum(1 - axis).mean()
    assert total == pytest.approx(best, abs=1e-4)


# ---- refusals ----


def test_a_head_without_attention_refuses_a_picture_before_anything_is_computed(
    sample, arguments, photos, tmp_path, capsys, monkeypatch
):
    for name in ("score_split", "read_image", "SingleImages", "Runner"):
        monkeypatch.setattr(scoring, name, lambda *_, name=name, **__: pytest.fail(f"{name} was called"))
    features = sample / "f30k" / "precomp" / "test_ims.npy"
    flags = ("--features", features, "--row", 0, "--image", photos[0], "--picture", tmp_path / "p.png")
    message = error_line(script.main, arguments("pooled", *flags), capsys)
    assert "--picture" in message and "model.pth compares no word with a region" in message
    assert not list(tmp_path.iterdir())


def test_every_misuse_is_one_clear_line(sample, arguments, photos, tmp_path, capsys):
    features = sample / "f30k" / "precomp" / "test_ims.npy"
    good, odd = tmp_path / "good.npy", tmp_path / "odd.npy"
    np.save(good, np.load(features)[0])
    np.save(odd, np.load(features)[0, :35])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.txt").write_text("a\n\nb\n")
    picture = ("--picture", tmp_path / "p.png")
    image = ("--image", photos[0])
    cases = [
        (arguments("region", *image), "reads features of size 32, which an image file does not hold; give --features"),
        (arguments("region"), "model.pth reads features of size 32; give --features FILE.npy"),
        (arguments("grid"), "model.pth reads image files; give --image FILE"),
        (arguments("grid", "--features", good), "reads image files; leave out --features"),
        (arguments("grid", *image, "--row", 1), "reads image files; leave out --row"),
        (arguments("grid", *image, "--boxes", "grid"), "reads image files; leave out --boxes"),
        (arguments("grid", "--image", tmp_path / "none.jpg"), "none.jpg: no such image file"),
        (arguments("grid", "--image", tmp_path / "text.jpg"), "text.jpg: corrupt or truncated image"),
        (arguments("region", "--features", tmp_path / "none.npy"), "none.npy: no such file"),
        (arguments("region", "--features", features), "holds 50 rows; say which with --row, 0 to 49"),
        (arguments("region", "--features", features, "--row", 50), "has no row 50; expected --row 0 to 49"),
        (arguments("region", "--features", good, "--row", 0), "leave out --row"),
        (arguments("region", "--features", good, *image), "--image with --features is for the picture"),
        (arguments("region", "--features", good, "--boxes", good), "--boxes with --features is for the picture"),
        (arguments("region", "--features", good, "--boxes", good, *picture), "found shape (36, 32), expected (36, 4)"),
        (arguments("region", "--features", odd, "--boxes", "grid", *picture), "form no square grid"),
        (arguments("pooled", "--features", good, *picture), "ESL checkpoints have this picture"),
        (
            arguments("region", "--features", good, "--picture", tmp_path / "p.jpg"),
            "expected a name that ends in .png, .pdf, .svg",
        ),
        (arguments("region", "--features", good, "--picture", tmp_path / "empty.txt" / "p.png"), "cannot be written"),
        (arguments("region", "--features", good, "--picture_caption", 1), "--picture_caption belongs to --picture"),
        (arguments("region", "--features", good, *picture, "--picture_caption", 4), "only 3 captions were given"),
        (arguments("region", "--features", features, "--row", 0, "--row", 5, *picture), "--picture draws one image"),
        (arguments("grid", *image, "--image", photos[1], *picture), "--picture draws one image"),
        (arguments("grid", *image, captions=[]), "no captions: give --caption"),
        (arguments("grid", *image, captions=["a", "  "]), "--caption number 2 is empty"),
        (arguments("grid", *image, captions=["a", "\u200b\u200b"]), "caption number 2: "),
        (arguments("grid", *image, "--captions_file", tmp_path / "empty.txt"), "line 2: empty caption"),
        (arguments("grid", *image, "--device", "warp"), "--device 'warp' can't be used"),
        (arguments("grid", *image, "--model_path", tmp_path / "none.pth"), "none.pth: no such file"),
        (arguments("grid", *image, "--bert_path", tmp_path / "none"), "none: no such folder"),
    ]
    for argv, expected in cases:
        assert expected in error_line(script.main, argv, capsys)
    assert not (tmp_path / "p.png").exists()


def test_scores_that_are_no_finite_numbers_are_refused(sample, arguments, capsys, tmp_path):
    """Weights that overflow are finite, so reading them finds nothing wrong."""
    torch.manual_seed(1)
    model = build_model(REGIONS, {"bert_path": sample / "bert"})
    with torch.no_grad():
        model.similarity.contribution.p.fill_(3e38)
    save_checkpoint(tmp_path / "wild.pth", model)
    flags = ("--features", sample / "f30k/precomp/test_ims.npy", "--row", 0, "--model_path", tmp_path / "wild.pth")
    message = error_line(script.main, arguments("region", *flags), capsys)
    assert "wild.pth: gives scores that are not finite" in message
