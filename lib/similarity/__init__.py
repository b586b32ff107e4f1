"""Similarity heads: ESL (adaptive and heuristic aggregation) and pooled (VSE-infinity)."""

from __future__ import annotations

from lib.similarity.aggregators import AdaptiveAggregator, HeuristicAggregator, level_sizes
from lib.similarity.esl import ESLSimilarity, PlainContribution, ThresholdContribution

__all__ = ["ESLSimilarity", "esl_a", "esl_h"]


def esl_a(embed_size: int, kernel_size: int = 2, **switches: bool) -> ESLSimilarity:
    """ESL-A: adaptive aggregation, plain contribution degrees."""
    sizes = level_sizes(embed_size, kernel_size)
    aggregators = AdaptiveAggregator(sizes), AdaptiveAggregator(sizes)
    return ESLSimilarity(*aggregators, PlainContribution(len(sizes)), **switches)


def esl_h(embed_size: int, kernel_size: int = 2, **switches: bool) -> ESLSimilarity:
    """ESL-H: heuristic aggregation, contribution degrees sharpened around a threshold."""
    sizes = level_sizes(embed_size, kernel_size)
    aggregators = HeuristicAggregator(sizes, kernel_size), HeuristicAggregator(sizes, kernel_size)
    return ESLSimilarity(*aggregators, ThresholdContribution(len(sizes)), **switches)
