"""Similarity heads. A new head is a file with a SimilarityHead and a row here; so is a new aggregator of ESL."""

from __future__ import annotations

from functools import partial

from lib.command_line import positive
from lib.config import Option, Part
from lib.similarity.aggregators import AdaptiveAggregator, HeuristicAggregator
from lib.similarity.esl import PlainContribution, ThresholdContribution, check_levels, esl
from lib.similarity.esl_clip import esl_clip
from lib.similarity.vse_infty import cosine, vse_infty

NORMS = {
    "no_imgnorm": Option(False, "do not l2-normalise the image side"),
    "no_txtnorm": Option(False, "do not l2-normalise the caption side"),
}
LEVELS = {"kernel_size": Option(2, "ESL: how many values one aggregation merges", positive(int))}

HEADS = {
    "esl_a": Part("ESL-A", partial(esl, AdaptiveAggregator, PlainContribution), LEVELS | NORMS, check_levels),
    "esl_h": Part("ESL-H", partial(esl, HeuristicAggregator, ThresholdContribution), LEVELS | NORMS, check_levels),
    "vse_infty": Part("VSE∞", vse_infty, NORMS),
    "esl_clip_a": Part("CLIP-based ESL-A", partial(esl_clip, AdaptiveAggregator), LEVELS | NORMS, check_levels),
    "esl_clip_h": Part("CLIP-based ESL-H", partial(esl_clip, HeuristicAggregator), LEVELS | NORMS, check_levels),
    "cosine": Part("cosine similarity", cosine, NORMS),
}
