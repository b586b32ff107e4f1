"""Evaluation on Crisscrossed Captions (CxC, Parekh et al., EACL 2021): retrieval across and within the modalities, and
correlation of similarities with human ratings. numpy alone.

Letters: N images, C captions, D size of a vector, Q queries, P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import numpy as np

from lib.core.errors import InputError
from lib.evaluation.cxc.annotations import Annotations, Positives, Rows, read_annotations
from lib.evaluation.metrics import RECALLS_AT, check_matrix, count_at_least

__all__ = ["Annotations", "Correlation", "TaskRecalls", "cxc_correlations", "cxc_recalls", "read_annotations"]

BLOCK_QUERIES = 512  # queries whose similarities to a whole gallery are held at once
MISS = np.iinfo(np.int64).max  # the rank of a query without a positive in the gallery


@dataclass(frozen=True)
class TaskRecalls:
    """R@1, R@5, R@10 of a task in percent of its queries."""

    r1: float
    r5: float
    r10: float
    queries: int

    def as_dict(self) -> dict:
        """The figures as plain numbers for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Correlation:
    """Mean and standard deviation of the sampled Spearman correlation, times 100 as in the paper's tables."""

    mean: float
    std: float
    queries: int

    def as_dict(self) -> dict:
        """The figures as plain numbers for JSON."""
        return asdict(self)


def cxc_recalls(
    scores: np.ndarray,
    image_vectors: np.ndarray | None,
    caption_vectors: np.ndarray | None,
    annotations: Annotations,
    progress: Callable[[Iterable], Iterable] = iter,
) -> dict[str, TaskRecalls]:
    """Recalls of I2T and T2I from the scores (N, C), of I2I and T2T from one vector per item (N, D), (C, D).

    R@K is the percentage of queries with a positive among the first K of the gallery, the query itself left out; on a
    tie a wrong item comes before a positive. Similarity within a modality is the dot product. A task whose vectors are
    None, or that has no query, is left out. `progress` wraps the blocks of queries, for a progress bar. Raises
    InputError for shapes that don't fit the annotations, and for NaN.
    """
    scores = check_matrix(scores)
    images, captions = len(annotations.image_ids), len(annotations.caption_ids)
    if scores.shape != (images, captions):
        raise InputError(
            f"CxC: similarity matrix {scores.shape}, expected {(images, captions)} as the annotations list"
        )
    positives = annotations.positives
    ranks = dict(zip(("i2t", "t2i"), _ranks_across(scores, positives["i2t"], positives["t2i"]), strict=True))
    if image_vectors is not None:
        image_vectors = _check_vectors(image_vectors, images, "image vectors")
        ranks["i2i"] = _ranks_within(image_vectors, positives["i2i"], progress)
    if caption_vectors is not None:
        caption_vectors = _check_vectors(caption_vectors, captions, "caption vectors")
        ranks["t2t"] = _ranks_within(caption_vectors, positives["t2t"], progress)
    return {task: _recalls(of_task) for task, of_task in ranks.items() if len(of_task)}


def _ranks_across(scores: np.ndarray, i2t: Positives, t2i: Positives) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of the best positive of every I2T and T2I query, in one pass over the matrix."""
    best_i2t, tied_i2t = _best_positive(scores[i2t.query, i2t.item], i2t.query, scores.shape[0])
    best_t2i, tied_t2i = _best_positive(scores[t2i.item, t2i.query], t2i.query, scores.shape[1])
    i2t_counts, t2i_counts = count_at_least(scores, best_i2t, best_t2i)
    return (
        np.where(tied_i2t > 0, i2t_counts - tied_i2t, MISS)[i2t.queries],
        np.where(tied_t2i > 0, t2i_counts - tied_t2i, MISS)[t2i.queries],
    )


def _ranks_within(vectors: np.ndarray, positives: Positives, progress) -> np.ndarray:
    """Ranks of the best positive of every query in its own gallery, by blocks of queries."""
    ranks = np.empty(len(positives.queries), np.int64)
    for start in progress(range(0, len(ranks), BLOCK_QUERIES)):
        queries = positives.queries[start : start + BLOCK_QUERIES]
        similarity = vectors[queries] @ vectors.T  # (block, gallery)
        pairs = slice(*np.searchsorted(positives.query, (queries[0], queries[-1] + 1)))
        row = np.searchsorted(queries, positives.query[pairs])
        best, tied = _best_positive(similarity[row, positives.item[pairs]], row, len(queries))
        counts, _ = count_at_least(similarity, best)
        counts -= similarity[np.arange(len(queries)), queries] >= best  # the query itself
        ranks[start : start + len(queries)] = np.where(tied > 0, counts - tied, MISS)
    return ranks


def _best_positive(scores: np.ndarray, query: np.ndarray, n_queries: int) -> tuple[np.ndarray, np.ndarray]:
    """The best score (n_queries,) among the pairs (P,), sorted by query, and how many pairs reach it (0: no pair)."""
    best = np.full(n_queries, np.inf if scores.dtype.kind == "f" else np.iinfo(scores.dtype).max, scores.dtype)
    if len(query):
        starts = np.flatnonzero(np.diff(query, prepend=-1))
        with np.errstate(invalid="ignore"):  # NaN is reported by count_at_least
            best[query[starts]] = np.maximum.reduceat(scores, starts)
    return best, np.bincount(query[scores >= best[query]], minlength=n_queries)


def _recalls(ranks: np.ndarray) -> TaskRecalls:
    r1, r5, r10 = (100.0 * int(np.count_nonzero(ranks < k)) / len(ranks) for k in RECALLS_AT)
    return TaskRecalls(r1, r5, r10, len(ranks))


def _check_vectors(vectors: np.ndarray, n: int, what: str) -> np.ndarray:
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or len(vectors) != n or vectors.dtype.kind != "f":
        raise InputError(
            f"CxC: {what}: {vectors.dtype} {vectors.shape}, expected floats ({n}, D) as the annotations list"
        )
    bad = np.flatnonzero(~np.isfinite(vectors).all(1))
    if bad.size:
        raise InputError(f"CxC: {what}: NaN or infinity in row {bad[0]}")
    return vectors.astype(np.float32) if vectors.dtype == np.float16 else vectors


def cxc_correlations(
    scores: np.ndarray,
    image_vectors: np.ndarray | None,
    caption_vectors: np.ndarray | None,
    annotations: Annotations,
    samples: int = 1000,
    seed: int = 0,
) -> dict[str, Correlation]:
    """Sampled Spearman correlation with the human ratings on STS, SIS and SITS (Parekh et al., section 5).

    Each sample draws half of the queries without replacement and for each of them one of its rated items; mean and
    standard deviation over `samples` samples. In STS and SIS both items of a pair are queries, in SITS captions.
    A task without ratings, without vectors or with fewer than 4 queries in the gallery is left out.
    """
    images, captions = Rows(annotations.image_ids), Rows(annotations.caption_ids)
    tasks = {}
    if "sts" in annotations.rated and caption_vectors is not None:
        vectors = _check_vectors(caption_vectors, len(annotations.caption_ids), "caption vectors")
        tasks["sts"] = (captions, captions, _dot_products(vectors))
    if "sis" in annotations.rated and image_vectors is not None:
        vectors = _check_vectors(image_vectors, len(annotations.image_ids), "image vectors")
        tasks["sis"] = (images, images, _dot_products(vectors))
    if "sits" in annotations.rated:
        tasks["sits"] = (captions, images, lambda caption, image: scores[image, caption])

    results = {}
    for task, (query_rows, item_rows, similarity) in tasks.items():
        first, second, rating = annotations.rated[task]
        query, item = query_rows(first), item_rows(second)
        if task != "sits":
            query, item, rating = np.append(query, item), np.append(item, query), np.append(rating, rating)
        inside = (query >= 0) & (item >= 0)
        # each (query, item, rating) once: JSON files list both directions themselves
        query, item, rating = np.unique(np.stack([query, item, rating])[:, inside], axis=1)
        query, item = query.astype(np.int64), item.astype(np.int64)
        if len(np.unique(query)) >= 4:
            results[task] = sampled_spearman(query, rating, similarity(query, item), samples, seed)
    return results


def sampled_spearman(
    query: np.ndarray, x: np.ndarray, y: np.ndarray, samples: int = 1000, seed: int = 0
) -> Correlation:
    """Mean and std (times 100) of Spearman's rho between x and y (P,) over samples of half the queries, one pair each.

    `query` (P,) says which query a pair belongs to and is sorted. A sample with a constant side counts as 0.
    """
    if np.isnan(y).any():
        raise InputError("CxC: NaN among the similarities of rated pairs")
    starts = np.flatnonzero(np.diff(query, prepend=query[0] - 1))
    counts = np.diff(np.append(starts, len(query)))
    x, y = (np.unique(values, return_inverse=True)[1] for values in (x, y))  # ranking codes needs no sort per sample
    random = np.random.default_rng(seed)
    rhos = np.empty(samples)
    for i in range(samples):
        half = random.permutation(len(starts))[: len(starts) // 2]
        pairs = starts[half] + (random.random(len(half)) * counts[half]).astype(np.int64)
        rhos[i] = _pearson(_ranks_of_codes(x[pairs]), _ranks_of_codes(y[pairs]))
    return Correlation(100 * float(rhos.mean()), 100 * float(rhos.std()), len(starts))


def _ranks_of_codes(codes: np.ndarray) -> np.ndarray:
    """Ranks from 1 of small non-negative integers, equal ones share their average."""
    counts = np.bincount(codes)
    return (np.cumsum(counts) - (counts - 1) / 2)[codes]


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    size = math.sqrt((x * x).sum() * (y * y).sum())  # sums, not @: threads cost more than they save here
    return float((x * y).sum() / size) if size else 0.0


def _dot_products(vectors: np.ndarray, block: int = 8192):
    def of_pairs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        parts = range(0, len(first), block)
        products = [np.einsum("pd,pd->p", vectors[first[i : i + block]], vectors[second[i : i + block]]) for i in parts]
        return np.concatenate(products) if products else np.empty(0, vectors.dtype)

    return of_pairs
