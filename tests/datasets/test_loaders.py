"""Batches: every draw comes from (seed, epoch, index), whatever the number of workers; errors stay one line."""

from __future__ import annotations

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from lib.core.errors import InputError
from lib.core.fragments import Fragments
from lib.datasets import loaders
from lib.datasets.inputs import InputSpec, open_inputs
from lib.datasets.loaders import EpochSampler, Pairs, TrainBatch, caption_batches, image_batches, train_loader
from lib.datasets.tokenisers import WordPiece, load_tokenizer
from lib.encoders.transforms import SquareTransform, imagenet_normalize

N_IMAGES, REGIONS, IMG_DIM, SIDE = 7, 6, 8, 8
WORKERS = pytest.mark.parametrize("workers", [0, 2])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Seven images, each with two captions of its own length, as regions and as files of noise.

    The regions of image i hold i everywhere; images 0 to 2 miss their last region.
    """
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    (root / "precomp").mkdir()
    (root / "images").mkdir()
    values = np.arange(N_IMAGES, dtype=np.float16)[:, None, None] * np.ones((1, REGIONS, IMG_DIM), np.float16)
    np.save(root / "precomp" / "train_ims.npy", values)
    mask = np.ones((N_IMAGES, REGIONS), bool)
    mask[:3, -1] = False
    np.save(root / "precomp" / "train_mask.npy", mask)
    for i in range(N_IMAGES):
        Image.fromarray(rng.integers(0, 256, (12, 10 + i, 3), dtype=np.uint8)).save(root / "images" / f"{i}.png")
    (root / "precomp" / "train_ids.txt").write_text("".join(f"{i}\n" for i in range(N_IMAGES)))
    (root / "id_mapping.json").write_text(json.dumps({str(i): f"{i}.png" for i in range(N_IMAGES)}))
    words = ["red", "ball", "on", "grass", "left", "of", "dog"]
    lines = [" ".join(words[: 1 + (i * 5) % 7] * 2) for i in range(2 * N_IMAGES)]
    (root / "precomp" / "train_caps.txt").write_text("\n".join(lines) + "\n")
    (root / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
    return root


@pytest.fixture(scope="module")
def tokeniser(root):
    return WordPiece(load_tokenizer(root), {"vocab_size": 20, "max_position_embeddings": 40})


@pytest.fixture(scope="module")
def inputs(root, tokeniser):
    return open_inputs(root, "f30k", "train", InputSpec(tokeniser, img_dim=IMG_DIM))


@pytest.fixture(scope="module")
def raw_inputs(root, tokeniser):
    return open_inputs(root, "f30k", "train", InputSpec(tokeniser, transform=SquareTransform(SIDE, imagenet_normalize)))


@pytest.fixture(scope="module", params=["regions", "raw images"])
def either(request, inputs, raw_inputs):
    """The split as regions, then as raw images."""
    return inputs if request.param == "regions" else raw_inputs


def flat(batch):
    images = list(batch.images) if isinstance(batch.images, Fragments) else [batch.images]
    captions = batch.captions
    return [*images, captions.ids, torch.from_numpy(captions.lengths), torch.from_numpy(batch.indices)]


def epochs(loader, *numbers):
    batches = []
    for epoch in numbers:
        loader.batch_sampler.set_epoch(epoch)
        batches += [flat(batch) for batch in loader]
    return batches


def equal(first, second):
    return len(first) == len(second) and all(
        torch.equal(x, y) for one, other in zip(first, second, strict=True) for x, y in zip(one, other, strict=True)
    )


def test_region_batches_match_images_to_captions(inputs):
    for batch in train_loader(inputs, batch_size=4, seed=1):
        assert isinstance(batch, TrainBatch) and isinstance(batch.images, Fragments)
        assert batch.images.features.shape == (4, REGIONS, IMG_DIM)
        assert batch.images.features.dtype == torch.float16 and batch.images.mask.dtype == torch.bool
        assert batch.images.features[:, 0, 0].tolist() == (batch.indices // 2).tolist()
        assert batch.captions.ids.dtype == torch.int64
        assert batch.captions.lengths.dtype == batch.indices.dtype == np.int64
        assert batch.captions.ids[:, 0].tolist() == [2] * 4 and batch.captions.count == 4


def test_lengths_of_a_batch_are_those_of_its_noisy_captions(inputs):
    for batch in train_loader(inputs, batch_size=4, seed=1):
        for ids, length, index in zip(batch.captions.ids, batch.captions.lengths, batch.indices, strict=True):
            noisy = inputs.captions.noisy_ids(index, np.random.default_rng([1, 0, index]))
            assert ids[:length].tolist() == noisy.tolist() and not ids[length:].any()


def test_workers_do_not_change_any_batch_of_any_epoch(either):
    results = [epochs(train_loader(either, batch_size=3, seed=5, workers=workers), 0, 1) for workers in (0, 2)]
    assert len(results[0]) == 8 and equal(*results)


def test_samples_are_the_same_where_workers_get_a_pickled_copy(either):
    pairs = Pairs(either, seed=5)
    sample, copied = pairs[1, 6], pickle.loads(pickle.dumps(pairs))[1, 6]
    assert all(
        map(torch.equal, *(each[0] if isinstance(each[0], Fragments) else each[:1] for each in (sample, copied)))
    )
    assert np.array_equal(sample[1], copied[1])


def test_epochs_and_seeds_differ_and_repeat(either):
    def run(seed, *numbers):
        return epochs(train_loader(either, 3, seed=seed), *numbers)

    assert equal(run(0, 4), run(0, 4))
    assert equal(run(0, 0, 1)[4:], run(0, 1))  # a resumed run draws what an uninterrupted one draws
    assert not equal(run(0, 0), run(0, 1))
    assert not equal(run(0, 0), run(1, 0))


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_global_random_state_alone(either, workers):
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    epochs(train_loader(either, 5, seed=0, workers=workers), 0)
    list(image_batches(either.images, 3, workers))
    assert torch.equal(states[0], torch.get_rng_state()) and np.array_equal(states[1], np.random.get_state()[1])


def test_regions_are_dropped_by_the_samples_generator_after_its_words(inputs):
    dataset, dropped = Pairs(inputs, seed=3), 0
    for epoch, index in [(0, 0), (2, 9), (2, 13), (5, 4)]:
        rng = np.random.default_rng([3, epoch, index])
        inputs.captions.noisy_ids(index, rng)
        expected = inputs.images(index // 2, rng)
        found, _, place = dataset[epoch, index]
        assert place == index and all(map(torch.equal, found, expected))
        dropped += int((~found.mask).sum())
    assert dropped > 2  # more than the two that images 0 and 2 miss


def test_caption_noise_is_that_of_the_sample(inputs):
    expected = inputs.captions.noisy_ids(9, np.random.default_rng([3, 2, 9]))
    assert np.array_equal(Pairs(inputs, seed=3)[2, 9][1], expected)


@WORKERS
def test_raw_images_are_augmented_by_the_samples_generator_after_its_words(raw_inputs, workers):
    loader = train_loader(raw_inputs, 4, seed=2, workers=workers)
    loader.batch_sampler.set_epoch(1)
    for batch in loader:
        assert batch.images.shape == (4, 3, SIDE, SIDE) and batch.images.dtype == torch.float32
        for image, index in zip(batch.images, batch.indices.tolist(), strict=True):
            rng = np.random.default_rng([2, 1, index])
            raw_inputs.captions.noisy_ids(index, rng)
            assert torch.equal(image, raw_inputs.images(index // 2, rng))
            assert not torch.equal(image, raw_inputs.images(index // 2))


def test_sampler_visits_each_caption_once_and_drops_the_rest():
    sampler = EpochSampler(10, 4, seed=0)
    sampler.set_epoch(3)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 2 and [len(batch) for batch in batches] == [4, 4]
    keys = [key for batch in batches for key in batch]
    assert {epoch for epoch, _ in keys} == {3} and len({index for _, index in keys}) == 8


def test_set_smaller_than_a_batch_gives_one_smaller_batch():
    sampler = EpochSampler(3, 128, seed=0)
    assert len(sampler) == 1 and [sorted(batch) for batch in sampler] == [[(0, 0), (0, 1), (0, 2)]]


@WORKERS
def test_nan_found_by_a_worker_reaches_the_user_as_one_line(root, tokeniser, tmp_path, workers):
    (tmp_path / "precomp").mkdir()
    (tmp_path / "precomp" / "train_caps.txt").write_bytes((root / "precomp" / "train_caps.txt").read_bytes())
    values = np.load(root / "precomp" / "train_ims.npy")
    values[5, 1, 2] = np.nan
    np.save(tmp_path / "precomp" / "train_ims.npy", values)
    bad = open_inputs(tmp_path, "f30k", "train", InputSpec(tokeniser))
    for loader in (train_loader(bad, 7, 0, workers), image_batches(bad.images, 7, workers)):
        with pytest.raises(InputError, match=f"^{tmp_path}/precomp/train_ims.npy, row 5, region 1: NaN") as error:
            list(loader)
        assert not {"\n", "?"} & set(str(error.value))


@WORKERS
def test_image_batches_give_each_image_once_in_order(inputs, workers):
    loader = image_batches(inputs.images, 3, workers)
    batches = list(loader)
    assert len(loader) == len(batches) == 3 and [batch.count for batch in batches] == [3, 3, 1]
    assert torch.cat([batch.features[:, 0, 0] for batch in batches]).tolist() == list(range(N_IMAGES))
    assert torch.cat([batch.mask for batch in batches]).sum(1).tolist() == [5, 5, 5, 6, 6, 6, 6]


@WORKERS
def test_raw_image_batches_are_not_augmented(raw_inputs, workers):
    batches = list(image_batches(raw_inputs.images, 4, workers))
    assert [len(batch) for batch in batches] == [4, 3]
    assert torch.equal(torch.cat(batches), torch.stack([raw_inputs.images(image) for image in range(N_IMAGES)]))


def test_caption_batches_hold_every_caption_once_within_the_token_budget(inputs):
    captions = inputs.captions
    batches = caption_batches(captions, tokens_per_batch=40)
    assert sorted(np.concatenate([indices for indices, _ in batches]).tolist()) == list(range(len(captions)))
    assert len(batches) > 2
    for indices, tokens in batches:
        assert tokens.ids.numel() <= 40 and tokens.count == len(indices)
        assert tokens.lengths.tolist() == captions.lengths[indices].tolist()
        for index, row in zip(indices.tolist(), tokens.ids, strict=True):
            ids = captions.ids(index)
            assert row[: len(ids)].tolist() == ids.tolist() and not row[len(ids) :].any()
    lengths = [captions.lengths[index] for indices, _ in batches for index in indices]
    assert lengths == sorted(lengths, reverse=True)


def test_caption_longer_than_the_budget_still_gets_its_batch(inputs):
    batches = caption_batches(inputs.captions, tokens_per_batch=1)
    assert len(batches) == len(inputs.captions) and all(tokens.count == 1 for _, tokens in batches)


# ---- faults ----


def test_too_little_shared_memory_is_found_before_the_first_batch(inputs, monkeypatch):
    disk, free = shutil.disk_usage, []
    monkeypatch.setattr(loaders.shutil, "disk_usage", lambda _: disk("/")._replace(free=free[-1]))
    needed = 5 * 4 * (REGIONS * IMG_DIM * 2 + REGIONS)  # five batches of four images, at least
    for size, workers, fits in ((needed, 2, False), (needed, 0, True), (1 << 20, 2, True)):
        free.append(size)
        loader = train_loader(inputs, 4, 0, workers)
        if fits:
            assert next(iter(loader)).indices.shape == (4,)
        else:
            with pytest.raises(InputError, match=f"{loaders.SHARED_MEMORY}: 0 MB free, but the batches of --workers 2"):
                next(iter(loader))


def test_an_epoch_that_goes_on_leaves_out_the_batches_that_were_done():
    sampler = EpochSampler(23, 5, 7)
    sampler.set_epoch(3)
    whole = list(sampler)
    for done in range(5):
        sampler.set_epoch(3, done)
        assert list(sampler) == whole[done:] and len(sampler) == 4
    sampler.set_epoch(3)
    assert list(sampler) == whole


@pytest.mark.parametrize("parts", [2, 3])
def test_the_parts_of_a_batch_are_the_batch_whatever_their_number(parts):
    whole = list(EpochSampler(23, 5, 7))
    shares = [list(EpochSampler(23, 5, 7, (number, parts))) for number in range(parts)]
    assert [sum(batch, []) for batch in zip(*shares, strict=True)] == whole
    assert [[index for _, index in batch] for batch in whole] == [
        EpochSampler(23, 5, 7).batch(n).tolist() for n in range(4)
    ]


def test_batches_too_small_for_the_processes_are_refused(inputs):
    with pytest.raises(InputError, match="batches of 2 pairs can't be shared by 3 processes"):
        train_loader(inputs, 2, 0, part=(0, 3))


def test_a_part_of_the_images_is_read_in_order(inputs):
    found = torch.cat([batch.features[:, 0, 0] for batch in image_batches(inputs.images, 2, part=slice(2, 5))])
    assert found.tolist() == [2, 3, 4]
