"""The sample data set: layout, determinism, what features and captions come from, CxC files, the tiny BERT."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, BertModel, CLIPModel

from lib.datasets.tokenisers.clip import load_clip_tokenizer
from lib.errors import InputError
from lib.tools.sample.__main__ import main
from lib.tools.sample.pictures import REGIONS, region_features, scene_boxes
from lib.tools.sample.relatedness import count_vectors, relatedness
from lib.tools.sample.scenes import Scene, Thing, all_mentions, mentions_of, random_scene, vocabulary, write_captions
from lib.tools.sample.writing import SampleConfig, write_sample

SMALL = SampleConfig(images=6, dev_images=2, test_images=3, img_dim=16, seed=5)
IMAGE_FOLDERS = {"coco": "images", "f30k": "flickr30k-images"}


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, SMALL)
    return folder


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    ("dataset", "split", "images", "repeat"),
    [
        ("coco", "train", 6, 1),
        ("coco", "dev", 2, 5),
        ("coco", "test", 3, 5),
        ("coco", "testall", 15, 5),
        ("f30k", "train", 6, 1),
        ("f30k", "dev", 2, 5),
        ("f30k", "test", 3, 5),
    ],
)
def test_every_split_has_its_files_in_the_layout_of_the_real_data(sample, dataset, split, images, repeat):
    precomp = sample / dataset / "precomp"
    features = np.load(precomp / f"{split}_ims.npy", mmap_mode="r", allow_pickle=False)
    boxes = np.load(precomp / f"{split}_boxes.npy", allow_pickle=False)
    assert features.shape == (images * repeat, REGIONS, 16) and features.dtype == np.float32
    assert boxes.shape == (images * repeat, REGIONS, 4)
    assert len(lines(precomp / f"{split}_caps.txt")) == 5 * images
    ids = lines(precomp / f"{split}_ids.txt")
    assert len(ids) == images * repeat and len(set(ids)) == images
    assert np.array_equal(features[::repeat], features[repeat - 1 :: repeat])
    mapping = json.loads((sample / dataset / "id_mapping.json").read_text())
    for image_id in ids:
        with Image.open(sample / dataset / IMAGE_FOLDERS[dataset] / mapping[image_id]) as image:
            assert image.format == "JPEG" and abs(image.width - 160) <= 8 and abs(image.height - 120) <= 8


def test_no_image_is_in_two_splits_except_that_test_of_coco_is_the_first_fold_of_testall(sample):
    for dataset in ("coco", "f30k"):
        precomp = sample / dataset / "precomp"
        ids = {split: set(lines(precomp / f"{split}_ids.txt")) for split in ("train", "dev", "test")}
        assert not (ids["train"] & ids["dev"] or ids["train"] & ids["test"] or ids["dev"] & ids["test"])
    precomp = sample / "coco" / "precomp"
    for kind in ("ids", "caps"):
        test, testall = (lines(precomp / f"{split}_{kind}.txt") for split in ("test", "testall"))
        assert test == testall[: len(testall) // 5]
    for kind in ("ims", "boxes"):
        test, testall = (np.load(precomp / f"{split}_{kind}.npy") for split in ("test", "testall"))
        assert np.array_equal(test, testall[: len(testall) // 5])


def test_the_same_seed_writes_the_same_bytes_and_another_seed_does_not(sample, tmp_path):
    write_sample(tmp_path / "again", SMALL)
    assert digests(tmp_path / "again") == digests(sample)
    write_sample(tmp_path / "other", SampleConfig(6, 2, 3, img_dim=16, seed=6), ["f30k"])
    other = digests(tmp_path / "other")
    for name in ("f30k/precomp/train_ims.npy", "f30k/precomp/train_caps.txt", "bert/model.safetensors"):
        assert other[name] != digests(sample)[name]


def test_the_two_datasets_hold_different_scenes_and_one_alone_is_the_same_as_beside_the_other(sample, tmp_path):
    captions = [(sample / dataset / "precomp" / "train_caps.txt").read_text() for dataset in ("coco", "f30k")]
    assert captions[0] != captions[1]
    write_sample(tmp_path, SMALL, ["f30k"])
    assert digests(tmp_path / "f30k") == digests(sample / "f30k")
    assert not (tmp_path / "coco").exists()


def test_a_larger_data_set_begins_with_the_smaller_one(sample, tmp_path):
    write_sample(tmp_path, SampleConfig(images=8, dev_images=2, test_images=3, img_dim=16, seed=5), ["f30k"])
    small, large = sample / "f30k" / "precomp", tmp_path / "f30k" / "precomp"
    assert lines(large / "train_caps.txt")[:30] == lines(small / "train_caps.txt")
    assert np.array_equal(np.load(large / "train_ims.npy")[:6], np.load(small / "train_ims.npy"))


def test_one_row_per_image_stores_each_image_once_in_every_split(tmp_path):
    write_sample(tmp_path, SampleConfig(2, 1, 2, img_dim=8, one_row_per_image=True), ["f30k"])
    precomp = tmp_path / "f30k" / "precomp"
    assert np.load(precomp / "test_ims.npy").shape == (2, REGIONS, 8)
    assert len(lines(precomp / "test_ids.txt")) == 2 and len(lines(precomp / "test_caps.txt")) == 10


def test_features_can_be_recomputed_from_the_stored_image_and_boxes(sample):
    precomp = sample / "coco" / "precomp"
    mapping = json.loads((sample / "coco" / "id_mapping.json").read_text())
    first = lines(precomp / "dev_ids.txt")[0]
    with Image.open(sample / "coco" / "images" / mapping[first]) as image:
        again = region_features(image, np.load(precomp / "dev_boxes.npy")[0], 16)
    stored = np.load(precomp / "dev_ims.npy")[0]
    assert np.array_equal(again, stored)
    assert stored.min() >= 0 and stored.std() > 0.1


def test_a_region_feature_depends_on_the_pixels_inside_its_box_alone():
    pixels = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    changed = pixels.copy()
    changed[:, 80:] = 255 - changed[:, 80:]
    boxes = np.array([(10, 10, 70, 100), (90, 10, 150, 100)], np.float32)
    before, after = (region_features(Image.fromarray(p), boxes, 64) for p in (pixels, changed))
    assert np.array_equal(before[0], after[0]) and not np.array_equal(before[1], after[1])


def test_boxes_lie_in_the_picture_and_several_cover_each_thing():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scene = random_scene(rng)
        boxes = scene_boxes(scene, rng)
        assert boxes.shape == (REGIONS, 4)
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= (scene.width, scene.height)).all()
        assert (boxes[:, 2:] - boxes[:, :2] > 3).all()
        for thing in scene.things:
            centre = np.array([thing.x, thing.y])
            inside = ((boxes[:, :2] <= centre) & (centre <= boxes[:, 2:])).all(1)
            close = (boxes[:, 2:] - boxes[:, :2]).max(1) < 3 * thing.radius
            assert (inside & close).sum() >= 5


def test_captions_differ_and_say_only_what_is_in_the_scene():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        scene = random_scene(rng)
        there = mentions_of(scene)
        captions = write_captions(scene, rng)
        assert len(captions) == 5
        for text, mentions in captions.items():
            assert mentions <= there and mentions
            assert text[0].isupper() and text.endswith(" .") and "{" not in text
            assert set(mentions) <= set(all_mentions())


def test_relations_and_plurals_are_right():
    left = Thing("box", "red", "medium", 30, 60, 16, 0)
    right = Thing("star", "orange", "medium", 130, 60, 16, 0)
    scene = Scene("room", 160, 120, 60, (left, right))
    texts = [text for seed in range(20) for text in write_captions(scene, np.random.default_rng(seed))]
    for text in texts:
        box_first = min(text.find(w) % 999 for w in (" box", " square", " block")) < text.find(" star")
        of_it = text.endswith(" it .")  # "we see a box , and a star to the right of it"
        assert ("right of" if box_first != of_it else "left of") not in text
        assert "a orange" not in text.lower()
    twins = Scene("room", 160, 120, 60, (left, right, Thing("box", "red", "medium", 80, 20, 16, 0)))
    texts = [text for seed in range(20) for text in write_captions(twins, np.random.default_rng(seed))]
    assert any("wo red boxes" in text for text in texts) and not any("boxs" in text for text in texts)


def test_relatedness_is_five_for_equal_scenes_and_zero_without_anything_in_common():
    scenes = [
        Scene("room", 160, 120, 60, (Thing("box", "red", "small", 30, 60, 10, 0),)),
        Scene("room", 150, 110, 50, (Thing("box", "red", "large", 50, 60, 20, 0),)),
        Scene("room", 160, 120, 60, (Thing("box", "blue", "small", 30, 60, 10, 0),)),
        Scene("snow", 160, 120, 60, (Thing("star", "pink", "small", 30, 60, 10, 0),)),
    ]
    vectors = count_vectors([mentions_of(scene) for scene in scenes])
    assert relatedness(vectors, vectors)[0].tolist() == [5, 5, pytest.approx(5 * 2 / 7, abs=5e-4), 0]
    assert relatedness(count_vectors([Counter()]), vectors).tolist() == [[0, 0, 0, 0]]


def test_cxc_files_name_the_ids_of_testall_and_hold_own_pairs_and_symmetric_ratings(sample):
    folder, precomp = sample / "coco" / "cxc_annots", sample / "coco" / "precomp"
    image_ids, caption_ids = lines(folder / "testall_ids.txt"), lines(folder / "testall_capids.txt")
    assert image_ids == lines(precomp / "testall_ids.txt")
    assert len(caption_ids) == len(set(caption_ids)) == 75
    both = json.loads((folder / "cxc_it.json").read_text())
    assert list(both["t2i"]) == caption_ids and list(both["i2t"]) == image_ids[::5]
    for number, caption_id in enumerate(caption_ids):
        assert [int(image_ids[number]), 5.0] in both["t2i"][caption_id]
        assert [int(caption_id), 5.0] in both["i2t"][image_ids[number]]
    pairs = {(t, i) for t, rated in both["t2i"].items() for i, _ in rated}
    assert pairs == {(str(t), int(i)) for i, rated in both["i2t"].items() for t, _ in rated}
    for name, ids in (("i2i", image_ids[::5]), ("t2t", caption_ids)):
        ratings = json.loads((folder / f"cxc_{name}.json").read_text())
        assert list(ratings) == ids
        flat = {(query, str(item)): score for query, rated in ratings.items() for item, score in rated}
        assert flat and all(query != item and 0 <= score <= 5 for (query, item), score in flat.items())
        assert all(flat[item, query] == score for (query, item), score in flat.items())


def test_bert_loads_with_a_fast_lower_casing_tokenizer_that_knows_every_caption(sample):
    tokenizer = AutoTokenizer.from_pretrained(sample / "bert")
    assert tokenizer.is_fast and tokenizer.pad_token_id == 0 and tokenizer.model_max_length == 512
    for dataset in ("coco", "f30k"):
        for caption in lines(sample / dataset / "precomp" / "train_caps.txt"):
            pieces = tokenizer.tokenize(caption)
            assert "[UNK]" not in pieces and all(len(p.removeprefix("##")) > 1 or p in "a.,##s" for p in pieces)
    assert tokenizer.tokenize("Two RED boxes") == ["two", "red", "box", "##es"]
    assert tokenizer.tokenize("Zebra") == ["z", "##e", "##b", "##r", "##a"]
    ids = tokenizer("a ball", "a box")
    assert [tokenizer.decode([i]) for i in ids["input_ids"]][::3] == ["[CLS]", "[SEP]", "[SEP]"]
    assert ids["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]
    assert lines(sample / "bert" / "vocab.txt") == [t for t, _ in sorted(tokenizer.vocab.items(), key=lambda x: x[1])]


def test_bert_loads_completely_and_tells_words_apart(sample):
    bert, report = BertModel.from_pretrained(sample / "bert", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert bert.config.max_position_embeddings == 512
    words = AutoTokenizer.from_pretrained(sample / "bert").convert_tokens_to_ids(["red", "blue", "ball", "star"])
    ids = torch.tensor([[2, word, 3] for word in words])
    with torch.no_grad():
        states = torch.nn.functional.normalize(
            bert.eval()(input_ids=ids).last_hidden_state[:, 1], dim=-1
        )  # (4, hidden)
    assert (states @ states.T - torch.eye(4)).abs().max() < 0.5


def test_clip_loads_completely_and_has_a_token_for_each_word_of_every_caption(sample):
    clip, report = CLIPModel.from_pretrained(sample / "clip", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (clip.config.projection_dim, clip.config.vision_config.image_size) == (256, 32)
    assert not any(torch.equal(p, torch.zeros_like(p)) for p in clip.parameters() if p.ndim > 1)
    tokeniser = load_clip_tokenizer(sample / "clip")
    assert len(tokeniser) == clip.config.text_config.vocab_size
    for caption in lines(sample / "f30k" / "precomp" / "train_caps.txt"):
        words = [word for word in caption.lower().split() if not word.endswith("s")]
        assert [token.removesuffix("</w>") for token in tokeniser.tokenize(" ".join(words))] == words
    assert tokeniser.tokenize("Zebra") == ["z", "e", "b", "r", "a</w>"]


def test_the_vocabulary_is_sorted_and_without_template_marks():
    words = vocabulary()
    assert words == sorted(set(words)) and all(word.isalpha() and word.islower() for word in words)


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


@pytest.mark.parametrize("name", ["coco", "f30k", "bert", "clip"])
def test_files_that_are_not_sample_data_are_never_overwritten(tmp_path, name):
    mine = tmp_path / name / "config.json"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(InputError, match="not sample data"):
        write_sample(tmp_path, SMALL)
    assert mine.read_text() == "mine" and not list(tmp_path.rglob("*.jpg"))


def test_the_command_writes_what_it_says(tmp_path, capsys):
    argv = [str(tmp_path), "--images", "2", "--seed", "3"]
    main([*argv, "--dev_images", "1", "--test_images", "1", "--img_dim", "4", "--datasets", "coco", "f30k"])
    assert "coco: train 2, dev 1, testall 5 images" in capsys.readouterr().out
    assert (tmp_path / "coco" / "precomp" / "testall_ims.npy").is_file() and (tmp_path / "bert" / "vocab.txt").is_file()
