"""Batches: every draw comes from (seed, epoch, index), whatever the number of workers; errors stay one line."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from lib.datasets.captions import TokenizedCaptions, load_tokenizer
from lib.datasets.loaders import (
    EpochSampler,
    ImageTrainSet,
    RegionTrainSet,
    TrainBatch,
    caption_batches,
    image_batches,
    train_loader,
)
from lib.datasets.splits import open_split
from lib.errors import InputError
from lib.fragments import Fragments

N_IMAGES, REGIONS, IMG_DIM = 7, 6, 8


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Seven images, each with two captions of its own length; image i holds i everywhere; images 0–2 miss a region."""
    root = tmp_path_factory.mktemp("data")
    (root / "precomp").mkdir()
    values = np.arange(N_IMAGES, dtype=np.float16)[:, None, None] * np.ones((1, REGIONS, IMG_DIM), np.float16)
    np.save(root / "precomp" / "train_ims.npy", values)
    mask = np.ones((N_IMAGES, REGIONS), bool)
    mask[:3, -1] = False
    np.save(root / "precomp" / "train_mask.npy", mask)
    words = ["red", "ball", "on", "grass", "left", "of", "dog"]
    lines = [" ".join(words[: 1 + (i * 5) % 7] * 2) for i in range(2 * N_IMAGES)]
    (root / "precomp" / "train_caps.txt").write_text("\n".join(lines) + "\n")
    (root / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
    return root


@pytest.fixture(scope="module")
def split(root):
    return open_split(root, "f30k", "train", img_dim=IMG_DIM)


@pytest.fixture(scope="module")
def tokenized(root, split):
    return TokenizedCaptions(split.captions, load_tokenizer(root))


def flat(batch):
    images = list(batch.images) if isinstance(batch.images, Fragments) else [batch.images]
    return [*images, batch.captions, batch.indices]


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


def test_region_batches_match_images_to_captions(split, tokenized):
    loader = train_loader(RegionTrainSet(split, tokenized, seed=1), batch_size=4, seed=1)
    for batch in loader:
        assert isinstance(batch, TrainBatch) and isinstance(batch.images, Fragments)
        assert batch.images.features.shape == (4, REGIONS, IMG_DIM)
        assert batch.images.features.dtype == torch.float16 and batch.images.mask.dtype == torch.bool
        assert batch.images.features[:, 0, 0].tolist() == (batch.indices // 2).tolist()
        assert batch.captions.dtype == batch.indices.dtype == torch.int64
        assert batch.captions[:, 0].tolist() == [2] * 4 and batch.captions.shape[0] == 4


def test_workers_do_not_change_any_batch_of_any_epoch(split, tokenized):
    results = []
    for workers in (0, 2):
        dataset = RegionTrainSet(split, tokenized, seed=5)
        results.append(epochs(train_loader(dataset, batch_size=3, seed=5, workers=workers), 0, 1))
    assert equal(*results)


def test_epochs_and_seeds_differ_and_repeat(split, tokenized):
    def run(seed, *numbers):
        return epochs(train_loader(RegionTrainSet(split, tokenized, seed=seed), 3, seed=seed), *numbers)

    assert equal(run(0, 4), run(0, 4))
    assert equal(run(0, 0, 1)[4:], run(0, 1))  # a resumed run draws what an uninterrupted one draws
    assert not equal(run(0, 0), run(0, 1))
    assert not equal(run(0, 0), run(1, 0))


@pytest.mark.parametrize("workers", [0, 1])
def test_loading_leaves_the_global_random_state_alone(split, tokenized, workers):
    state = torch.get_rng_state()
    epochs(train_loader(RegionTrainSet(split, tokenized, seed=0), 5, seed=0, workers=workers), 0)
    list(image_batches(split, 3, workers))
    assert torch.equal(state, torch.get_rng_state())


def test_region_drop_masks_real_regions_at_its_rate(split, tokenized):
    dataset = RegionTrainSet(split, tokenized, seed=0)
    kept = np.array([[dataset[epoch, index][0].mask.numpy() for index in range(14)] for epoch in range(400)])
    assert not kept[:, :6, -1].any()  # the images 0–2 have no last region
    assert np.mean(kept[:, 6:]) == pytest.approx(0.8, abs=0.01)
    full = RegionTrainSet(split, tokenized, seed=0, size_augment=0.0)
    assert full[0, 0][0].mask.tolist() == [True] * 5 + [False] and full[0, 13][0].mask.all()


def test_image_that_would_lose_every_region_keeps_its_real_ones(split, tokenized):
    dataset = RegionTrainSet(split, tokenized, seed=0, size_augment=1.0)
    assert dataset[0, 0][0].mask.tolist() == [True] * 5 + [False]


def test_caption_noise_is_that_of_the_sample(split, tokenized):
    dataset = RegionTrainSet(split, tokenized, seed=3)
    expected = tokenized.noisy_ids(9, np.random.default_rng([3, 2, 9]))
    assert np.array_equal(dataset[2, 9][1], expected)


def draw_image(image, rng):
    noise = 0.0 if rng is None else rng.random()
    return torch.full((3, 2, 2), image + noise, dtype=torch.float64)


@pytest.mark.parametrize("workers", [0, 2])
def test_raw_images_are_loaded_by_the_callable_with_the_samples_generator(split, tokenized, workers):
    loader = train_loader(ImageTrainSet(split, tokenized, draw_image, seed=2), 4, seed=2, workers=workers)
    loader.batch_sampler.set_epoch(1)
    for batch in loader:
        assert batch.images.shape == (4, 3, 2, 2)
        for image, index in zip(batch.images, batch.indices.tolist(), strict=True):
            rng = np.random.default_rng([2, 1, index])
            tokenized.noisy_ids(index, rng)
            assert image[0, 0, 0] == index // 2 + rng.random()


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


@pytest.mark.parametrize("workers", [0, 2])
def test_nan_found_by_a_worker_reaches_the_user_as_one_line(root, tokenized, tmp_path, workers):
    (tmp_path / "precomp").mkdir()
    (tmp_path / "precomp" / "train_caps.txt").write_bytes((root / "precomp" / "train_caps.txt").read_bytes())
    values = np.load(root / "precomp" / "train_ims.npy")
    values[5, 1, 2] = np.nan
    np.save(tmp_path / "precomp" / "train_ims.npy", values)
    bad = open_split(tmp_path, "f30k", "train")
    for loader in (train_loader(RegionTrainSet(bad, tokenized, 0), 7, 0, workers), image_batches(bad, 7, workers)):
        with pytest.raises(InputError, match="train_ims.npy, row 5, region 1: NaN") as error:
            list(loader)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_image_batches_give_each_image_once_in_order(split, workers):
    loader = image_batches(split, 3, workers)
    batches = list(loader)
    assert len(loader) == len(batches) == 3 and [len(batch.mask) for batch in batches] == [3, 3, 1]
    assert torch.cat([batch.features[:, 0, 0] for batch in batches]).tolist() == list(range(N_IMAGES))
    assert torch.cat([batch.mask for batch in batches]).sum(1).tolist() == [5, 5, 5, 6, 6, 6, 6]


def test_raw_image_batches_use_the_callable_without_augmentation(split):
    batches = list(image_batches(split, 4, load_image=functools.partial(draw_image)))
    assert torch.cat(batches)[:, 0, 0, 0].tolist() == list(range(N_IMAGES))


def test_caption_batches_hold_every_caption_once_within_the_token_budget(tokenized):
    batches = caption_batches(tokenized, tokens_per_batch=40)
    assert sorted(torch.cat([indices for indices, _ in batches]).tolist()) == list(range(len(tokenized)))
    assert len(batches) > 2
    for indices, tokens in batches:
        assert tokens.numel() <= 40 and len(tokens) == len(indices)
        for index, row in zip(indices.tolist(), tokens, strict=True):
            ids = tokenized.ids(index)
            assert row[: len(ids)].tolist() == ids.tolist() and not row[len(ids) :].any()
    lengths = [tokenized.lengths[index] for indices, _ in batches for index in indices]
    assert lengths == sorted(lengths, reverse=True)


def test_caption_longer_than_the_budget_still_gets_its_batch(tokenized):
    assert len(caption_batches(tokenized, tokens_per_batch=1)) == len(tokenized)
