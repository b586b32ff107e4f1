"""A network in five stages: which layers are of which, and how many of them are kept as they are."""

from __future__ import annotations

import pytest
from torch import nn

from lib.encoders.stages import fix_stages, in_stages


def stages_of(count: int) -> tuple[list[nn.Module], list[list[nn.Module]]]:
    """Modules of a transformer (embeddings, layers, norm), and its stages."""
    stem, layers, norm = nn.Linear(2, 2), nn.ModuleList(nn.Linear(2, 2) for _ in range(count)), nn.LayerNorm(2)
    return [stem, *layers, norm], in_stages([stem], layers, [norm])


@pytest.mark.parametrize(
    ("count", "shares"), [(12, [3, 3, 3, 3]), (4, [1, 1, 1, 1]), (6, [1, 2, 1, 2]), (3, [0, 1, 1, 1])]
)
def test_every_module_is_in_one_stage_in_order_and_the_norm_in_the_last(count, shares):
    modules, stages = stages_of(count)
    assert sum(stages, []) == modules
    assert [len(stage) for stage in stages] == [1, *shares[:3], shares[3] + 1]


@pytest.mark.parametrize(("fixed", "frozen"), [(0, 0), (1, 2), (2, 3), (3, 4), (4, 5)])
def test_fixed_blocks_freeze_the_stem_with_them_and_none_freezes_nothing(fixed, frozen):
    _, stages = stages_of(8)
    assert fix_stages(stages, fixed) == frozen
    trained = [[p.requires_grad for module in stage for p in module.parameters()] for stage in stages]
    assert trained == [[index >= frozen] * len(stage) for index, stage in enumerate(trained)]


def test_fewer_fixed_blocks_later_train_again_what_was_frozen():
    _, stages = stages_of(8)
    fix_stages(stages, 4)
    assert fix_stages(stages, 1) == 2
    assert all(p.requires_grad for stage in stages[2:] for module in stage for p in module.parameters())


@pytest.mark.parametrize("count", [-1, 5])
def test_another_number_of_blocks_is_refused(count):
    with pytest.raises(ValueError, match=f"{count} fixed blocks, expected 0 to 4"):
        fix_stages(stages_of(4)[1], count)
