"""lib.tools.score: the scores of eval.py, captions in order, the picture of the attention, refusals in one line."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

from lib.checkpoint import save_checkpoint
from lib.config import ModelConfig
from lib.datasets.captions import TokenizedCaptions, load_tokenizer
from lib.datasets.layout import read_id_mapping
from lib.datasets.splits import open_split
from lib.model import build_model
from lib.tools import score as script
from lib.tools.picture import POSITIVE, draw_picture, grid_boxes, heat_colours, match_words
from tests.helpers import IMG_DIM, error_line, evaluate

CAPTIONS = ["A red ball on the grass .", "A blue star .", "Two yellow boxes ."]
GRID = {"precomp_enc_type": "backbone", "backbone_source": "tiny", "input_scale_factor": 0.25}


@pytest.fixture(scope="module")
def checkpoints(sample, tmp_path_factory):
    """Untrained checkpoints by name: region and grid, and the pooled head."""
    root, paths = tmp_path_factory.mktemp("checkpoints"), {}
    for name, changes in {"region": {}, "grid": GRID, "pooled": {"similarity": "vse_infty"}}.items():
        torch.manual_seed(1)
        model = build_model(ModelConfig(embed_size=256, img_dim=IMG_DIM, **changes), sample / "bert")
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
    lines = script.ranked_lines("x.jpg", [f"c{k}" for k in range(11)], np.linspace(-0.5, 12.5, 11))
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


def test_pieces_of_a_word_become_one_row_with_their_mean(sample):
    tokenizer = load_tokenizer(sample / "bert")
    pieces = tokenizer.convert_ids_to_tokens(range(tokenizer.vocab_size))
    tail = next(piece for piece in pieces if piece.startswith("##"))
    tokenized = TokenizedCaptions(["a ball"], tokenizer)
    tokenized.pieces = np.array(tokenizer.convert_tokens_to_ids(["a", tail, tail, "ball"]), np.int32)
    tokenized.words, tokenized.offsets = np.array([0, 0, 0, 1], np.int32), np.array([0, 4])
    rows = np.arange(12.0).reshape(6, 2)
    words, merged = script.merge_pieces(tokenizer, tokenized, 0, rows)
    assert words == ["[CLS]", "a" + 2 * tail[2:], "ball", "[SEP]"]
    np.testing.assert_array_equal(merged, [[0, 1], [4, 5], [8, 9], [10, 11]])


def test_each_word_is_written_at_its_strongest_region_and_punctuation_nowhere():
    similarity = np.array([[9.0, 0, 0], [0, 1, 0], [0, 2, 1], [0, 0, 3], [5, 0, 0], [0, 7, 0]])
    matches = match_words(["[CLS]", "red", "ball", "here", ".", "[SEP]"], similarity)
    assert matches.labels == {1: ["red", "ball"], 2: ["here"]}
    assert matches.best.tolist() == [0, 1, 1, 2, 0, 1]


def test_grid_cells_tile_the_image_row_by_row():
    boxes = grid_boxes(4, 200, 100)
    assert boxes.tolist() == [[0, 0, 100, 50], [100, 0, 200, 50], [0, 50, 100, 100], [100, 50, 200, 100]]
    with pytest.raises(ValueError, match="no square"):
        grid_boxes(5, 10, 10)


def test_colours_are_white_at_zero_and_full_at_the_largest():
    colours = heat_colours(np.array([0.0, 2.0, -2.0, 5.0]), 2.0)
    assert colours[0].tolist() == [255] * 3 and colours[1].tolist() == POSITIVE.tolist() == colours[3].tolist()
    assert colours[2, 2] > colours[2, 0]  # blue


def test_the_picture_shows_a_word_s_box_in_its_colour():
    image = np.full((100, 100, 3), 128, np.uint8)
    words, similarity = ["[CLS]", "ball", "[SEP]"], np.array([[0.0, 0], [0, 1], [0, 0]])
    here = np.array([[0, 0, 10, 10], [40, 40, 80, 80]])
    elsewhere = np.array([[0, 0, 10, 10], [20, 60, 80, 90]])
    pictures = [np.asarray(draw_picture(words, similarity, "t", "", image, boxes)) for boxes in (here, elsewhere)]
    assert pictures[0].shape == pictures[1].shape and (pictures[0] != pictures[1]).any()
    colour = np.array(match_words(words, similarity).colours[1])
    x, y = 24 + round(80 * 5.6), 24 + 60  # the right edge of the first box, below the heading
    column = (pictures[0][:, x - 1] == colour).all(-1)
    assert column.sum() > 100 and not (pictures[1][: y + 100, x - 1] == colour).all(-1).any()


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
    features = sample / "f30k" / "precomp" / "test_ims.npy"
    script.main(arguments("region", "--features", features, "--row", 0, "--picture", tmp_path / "p.png"))
    assert "note: no image given, so the picture is the heat map alone" in capsys.readouterr().out
    assert (tmp_path / "p.png").is_file()


def test_the_picture_s_similarity_gives_the_printed_score(sample, arguments, tmp_path, monkeypatch, capsys):
    """S (W, R) goes through the formulas of the ESL paper here, written out for one pair."""
    seen = {}

    def keep(tokenizer, tokenized, index, rows):
        seen["S"] = rows.astype(np.float64)
        return merge(tokenizer, tokenized, index, rows)

    merge = script.merge_pieces
    monkeypatch.setattr(script, "merge_pieces", keep)
    features = sample / "f30k" / "precomp" / "test_ims.npy"
    script.main(arguments("region", "--features", features, "--row", 0, "--picture", tmp_path / "p.png"))
    best = printed_scores(capsys)[0][0][0]
    S = seen["S"]
    g = np.tanh(S)
    g = np.where(g > 0, g, 0.1 * g)
    total = 0.0
    for axis in (0, 1):  # normalised over words, weighing regions; and the other way round
        e = np.exp(g / (np.linalg.norm(g, axis=axis, keepdims=True) + 1e-8) / 0.07)
        total += ((e / e.sum(1 - axis, keepdims=True)) * S).sum(1 - axis).mean()
    assert total == pytest.approx(best, abs=1e-4)


# ---- refusals ----


def save(path, array):
    np.save(path, array)
    return path


def test_every_misuse_is_one_clear_line(sample, arguments, checkpoints, photos, tmp_path, capsys):
    features = sample / "f30k" / "precomp" / "test_ims.npy"
    one = np.load(features)[0]
    good = save(tmp_path / "good.npy", one)
    holed = one.copy()
    holed[3, 1] = np.nan
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.txt").write_text("a\n\nb\n")
    (tmp_path / "text.npy").write_text("no array")
    picture = ("--picture", tmp_path / "p.png")
    cases = [
        (arguments("region", "--image", photos[0]), "is a region checkpoint and reads features of size 32"),
        (arguments("region"), "is a region checkpoint"),
        (arguments("grid"), "is a grid checkpoint, which reads image files; give --image FILE"),
        (arguments("grid", "--features", good), "leave --features away"),
        (arguments("grid", "--image", photos[0], "--row", 1), "leave --row away"),
        (arguments("grid", "--image", tmp_path / "none.jpg"), "none.jpg: no such image file"),
        (arguments("grid", "--image", tmp_path / "text.jpg"), "text.jpg: corrupt or truncated image"),
        (arguments("region", "--features", tmp_path / "none.npy"), "none.npy: cannot be read"),
        (arguments("region", "--features", tmp_path / "text.npy"), "text.npy: no readable .npy array"),
        (arguments("region", "--features", save(tmp_path / "d.npy", one[:, :7])), "found features of size 7, but"),
        (arguments("region", "--features", save(tmp_path / "v.npy", one[0])), "found shape (32,), expected (R, 32)"),
        (arguments("region", "--features", save(tmp_path / "e.npy", one.astype(int))), "found dtype int64"),
        (arguments("region", "--features", save(tmp_path / "n.npy", holed)), "n.npy, region 3: NaN or infinity"),
        (arguments("region", "--features", save(tmp_path / "m.npy", holed[None])), "row 0, region 3: NaN or infinity"),
        (arguments("region", "--features", features), "holds 50 rows; say which with --row, 0 to 49"),
        (arguments("region", "--features", features, "--row", 50), "has no row 50; expected --row 0 to 49"),
        (arguments("region", "--features", features, "--row", -1), "has no row -1"),
        (arguments("region", "--features", good, "--row", 0), "leave --row away"),
        (arguments("region", "--features", good, "--image", photos[0]), "--image with --features is for the picture"),
        (arguments("region", "--features", good, "--boxes", good, *picture), "found shape (36, 32), expected (36, 4)"),
        (arguments("region", "--features", save(tmp_path / "s.npy", one[:35]), "--boxes", "grid", *picture),
         "form no square grid"),
        (arguments("region", "--features", good, "--boxes", save(tmp_path / "b.npy", np.full((36, 4), np.nan)),
                   *picture), "b.npy: a box has NaN or ends before it begins"),
        (arguments("pooled", "--features", good, *picture), "only ESL checkpoints have this picture"),
        (arguments("region", "--features", good, "--picture", tmp_path / "p.jpg"), "expected a name that ends in .png"),
        (arguments("region", "--features", good, "--picture_caption", 1), "--picture_caption belongs to --picture"),
        (arguments("region", "--features", good, *picture, "--picture_caption", 4), "only 3 captions were given"),
        (arguments("grid", "--image", photos[0], "--image", photos[1], *picture), "--picture draws one image"),
        (arguments("grid", "--image", photos[0], captions=[]), "no captions: give --caption"),
        (arguments("grid", "--image", photos[0], captions=["a", "  "]), "--caption number 2 is empty"),
        (arguments("grid", "--image", photos[0], captions=["a", "\u200b\u200b"]), "caption number 2: "),
        (arguments("grid", "--image", photos[0], "--captions_file", tmp_path / "empty.txt"), "line 2: empty caption"),
        (arguments("grid", "--image", photos[0], "--device", "warp"), "--device 'warp' can't be used"),
        (arguments("grid", "--image", photos[0], "--model_path", tmp_path / "none.pth"), "none.pth: no such file"),
        (arguments("grid", "--image", photos[0], "--bert_path", tmp_path / "none"), "none: no such folder"),
    ]  # fmt: skip
    for argv, expected in cases:
        assert expected in error_line(script.main, argv, capsys)
    assert not (tmp_path / "p.png").exists()
