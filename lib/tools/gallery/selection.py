"""Which queries a gallery shows: the worst failures, a random sample, those that only one of two matrices answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lib.evaluation.queries import Answers


class Section(NamedTuple):
    """Queries shown together, in order, with what they have in common; `total` is how many there are of them."""

    title: str
    says: str
    queries: np.ndarray
    total: int


def sections(
    models: Sequence[Answers], names: Sequence[str], count: int, seed: int = 0, chosen: Sequence[int] = ()
) -> list[Section]:
    """The sections of one direction with at most `count` queries each; those of the first matrix, and with a second
    one the queries that only one of the two answers with a right item at the top."""
    first = models[0]
    failed = np.flatnonzero(first.rank > 0)
    by_rank = failed[np.lexsort((first.margin[failed], -first.rank[failed]))]
    by_margin = failed[np.argsort(first.margin[failed], kind="stable")]
    drawn = np.random.default_rng(seed).permutation(len(first.rank))
    found = [
        ("Chosen", "queries that were asked for", np.array(chosen, np.int64)),
        ("Worst ranks", "the right item stands furthest down", by_rank),
        ("Worst margins", "a wrong item scores highest above the right one", by_margin),
        ("Random sample", "queries drawn from all, right or wrong", drawn),
    ]
    for one, other, own, theirs in zip(models, models[::-1], names, names[::-1], strict=True) if models[1:] else ():
        only = np.flatnonzero((one.rank == 0) & (other.rank > 0))
        order = np.argsort(-other.rank[only], kind="stable")
        found.append((f"Only {own} is right", f"and {theirs} is furthest off first", only[order]))
    return [Section(title, says, queries[:count], len(queries)) for title, says, queries in found if len(queries)]
