"""Similarity heads. A new head is a file with a SimilarityHead and a row here; so is a new aggregator of ESL."""

from __future__ import annotations

from lib.core.config import Option, Part, lazy
from lib.core.values import Number

NORMS = {
    "no_imgnorm": Option(False, "do not l2-normalise the image side"),
    "no_txtnorm": Option(False, "do not l2-normalise the caption side"),
}
LEVELS = {"kernel_size": Option(2, "ESL: how many values one aggregation merges", Number(int, 2, 1 << 16))}

_check_levels = lazy("lib.similarity.esl:check_levels")

HEADS = {
    "esl_a": Part("ESL-A", lazy("lib.similarity.esl:esl_a"), LEVELS | NORMS, _check_levels),
    "esl_h": Part("ESL-H", lazy("lib.similarity.esl:esl_h"), LEVELS | NORMS, _check_levels),
    "vse_infty": Part("VSE∞", lazy("lib.similarity.vse_infty:vse_infty"), NORMS),
    "esl_clip_a": Part("CLIP-based ESL-A", lazy("lib.similarity.esl_clip:esl_clip_a"), LEVELS | NORMS, _check_levels),
    "esl_clip_h": Part("CLIP-based ESL-H", lazy("lib.similarity.esl_clip:esl_clip_h"), LEVELS | NORMS, _check_levels),
    "cosine": Part("cosine similarity", lazy("lib.similarity.vse_infty:cosine"), NORMS),
}
