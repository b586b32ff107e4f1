"""How the work on S is cut: every caption once, within the limits, and products that agree."""

from __future__ import annotations

import math

import pytest
import torch

from lib.similarity.alignment import tiles
from lib.similarity.alignment.tiles import Budget, blocks, budget, image_tile

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def lengths(count: int, longest: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return sorted(torch.randint(1, longest + 1, (count,), generator=generator).tolist())


@pytest.mark.parametrize("spread", [1.0, 1.25, math.inf])
@pytest.mark.parametrize("block", [1, 1000, 20_000, 10**9])
@pytest.mark.parametrize(("count", "longest"), [(1, 1), (1, 30), (200, 12), (60, 90)])
def test_blocks_hold_every_caption_once_within_their_limits(count, longest, block, spread):
    all_lengths, columns = lengths(count, longest), 90
    size = Budget(block, block, 256, columns, spread)
    found = list(blocks(all_lengths, columns, CPU, size))
    assert [n for part in found for n in part.lengths] == all_lengths
    captions = rows = 0
    for part in found:
        assert part.captions == slice(captions, captions + len(part.lengths)) and part.lengths
        assert part.rows == slice(rows, rows + sum(part.lengths))
        captions, rows = part.captions.stop, part.rows.stop
        assert part.width == max(part.lengths) <= spread * min(part.lengths)
        most = max(1, min(block // columns, size.rows))
        assert sum(part.lengths) < most + part.width


def test_a_run_of_one_length_is_cut_into_about_equal_blocks():
    found = list(blocks([8] * 100, 90, CPU, Budget(10**9, 10**9, 256, 90, 1.0)))
    assert [len(part.lengths) for part in found] == [25] * 4


def test_a_block_without_padding_has_no_mask():
    (part,) = blocks([4, 4, 4], 90, CPU, Budget(10**9, 10**9, 256, 90, 1.0))
    packed = torch.randn(12, 5)
    assert part.counts is part.mask is None
    assert part.pad(packed) is packed and part.unpad(packed) is packed


def test_unpadding_undoes_padding_whose_rows_are_zero():
    (part,) = blocks([2, 3, 5], 90, CPU, Budget(10**9, 10**9, 256, 90, math.inf))
    packed = torch.randn(10, 4)
    padded = part.pad(packed)
    assert part.counts.tolist() == [2, 3, 5] and part.counts.dtype == torch.int32
    assert part.mask.tolist() == [[True] * n + [False] * (5 - n) for n in (2, 3, 5)]
    assert padded.shape == (15, 4) and (padded[~part.mask.flatten()] == 0).all()
    assert torch.equal(padded[:2], packed[:2]) and torch.equal(padded[10:], packed[5:])
    assert torch.equal(part.unpad(padded), packed)


@pytest.mark.parametrize("elements", [1, 1000, 5000, 10**9])
def test_tiles_cover_a_block_once_within_their_limit(elements):
    (part,) = blocks([4] * 23, 90, CPU, Budget(10**9, 10**9, 256, 90, 1.0))
    cuts = list(part.tiles(90, elements))
    assert [i for cut in cuts for i in range(cut.start, cut.stop)] == list(range(23))
    assert all((cut.stop - cut.start) * 4 * 90 <= elements or cut.stop - cut.start == 1 for cut in cuts)


@pytest.mark.parametrize("columns", [1, 1000, 36 * 100, 36 * 5000])
@pytest.mark.parametrize("regions", [1, 36, 256])
@pytest.mark.parametrize("images", [1, 31, 32, 33, 1000, 5000])
def test_image_tiles_are_equal_fill_whole_vectors_and_fit(images, regions, columns):
    tile = image_tile(regions, images, Budget(0, 0, 0, columns, 1.0))
    assert 1 <= tile <= images
    assert tile == images or tile % tiles.IMAGE_STEP == 0
    assert tile * regions <= max(columns, tiles.IMAGE_STEP * regions)
    last = images % tile or tile
    assert tile - last < -(-images // tile) * tiles.IMAGE_STEP  # what rounding to whole vectors costs, at most


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
@pytest.mark.parametrize("memory", [1, 1000, 1 << 20, 1 << 26])
def test_memory_limits_a_block_and_the_tiles_beside_it(memory, device, packed):
    size = budget(device, memory, packed)
    beside = size.block if packed else tiles.BUFFERS * size.tile
    assert size.block >= 1 and size.tile >= 1
    assert 4 * (size.block + beside) <= memory or size.block == size.tile == 1


def test_more_memory_than_suits_the_device_changes_nothing():
    for device in (CPU, GPU):
        for packed in (False, True):
            assert budget(device, 1 << 50, packed) == budget(device, None, packed) == budget(device, packed=packed)


def test_only_what_needs_no_padding_mixes_captions_of_all_lengths_on_a_cpu():
    assert budget(CPU).spread == 1.0 and budget(CPU, packed=True).spread == math.inf
    assert 1.0 < budget(GPU).spread < 2.0


@pytest.mark.parametrize("level", [2, 3])
def test_a_cache_has_its_usual_size_where_the_system_does_not_say(level, monkeypatch):
    def silent(*_):
        raise ValueError

    measured = tiles._cache_bytes.__wrapped__
    assert measured(level) > 0
    monkeypatch.setattr(tiles, "Path", silent)
    monkeypatch.setattr(tiles.os, "sysconf", silent)
    assert measured(level) == {2: 1 << 20, 3: 16 << 20}[level]


@pytest.mark.parametrize("onednn", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_product_is_rows_times_columns_whoever_multiplies(dtype, onednn, monkeypatch):
    monkeypatch.setattr(tiles, "LARGE_PRODUCT", 0)
    monkeypatch.setattr(tiles, "onednn_is_faster", lambda: onednn)
    rows, columns = torch.randn(17, 40), torch.randn(40, 29).T  # not contiguous, as gradients hand them over
    rows, columns = rows.to(dtype), columns.to(dtype)
    expected = rows.double() @ columns.double().T
    out = torch.empty(17, 29, dtype=dtype)
    for found in (tiles.product(rows, columns), tiles.product(rows, columns, out)):
        error = (found.double() - expected).abs().max() / expected.abs().max()
        assert found.dtype == dtype and error < {torch.float64: 1e-14, torch.float32: 1e-6}.get(dtype, 1e-2)


def test_a_product_of_torch_is_written_where_it_was_asked_for():
    out = torch.empty(3, 4)
    assert tiles.product(torch.randn(3, 5), torch.randn(4, 5), out) is out


def test_who_multiplies_depends_on_the_machine_alone(monkeypatch):
    asked = tiles.onednn_is_faster.__wrapped__
    assert asked() is asked() is tiles.onednn_is_faster()
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert asked() is False


def test_scratch_memory_is_reused_until_it_is_too_small():
    scratch = tiles.Scratch(CPU)
    first = scratch.take("a", 4, 5, dtype=torch.float32)
    place = first.data_ptr()
    smaller = scratch.take("a", 3, 2, dtype=torch.float32)
    assert smaller.data_ptr() == place and smaller.shape == (3, 2) and smaller.is_contiguous()
    assert scratch.take("b", 3, 2, dtype=torch.float32).data_ptr() != place
    assert scratch.take("a", 5, 5, dtype=torch.float32).shape == (5, 5)
    assert scratch.take("a", 2, dtype=torch.float64).dtype == torch.float64
