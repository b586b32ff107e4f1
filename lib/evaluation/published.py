"""Figures that the papers and READMEs of the models report. None of them is measured here.

Sources: ESL, Zhang et al., IEEE TCSVT 2023; VSE∞, Chen et al., CVPR 2021, its README, and that of its BiGRU branch,
which states R@1 and R@5 alone; CxC, Parekh et al., EACL 2021. A model is named as `lib.model.describe` names
it; its region features are those of BUTD.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """Figures of one model under one protocol, None where they are not known; `recalls` are R@1 R@5 R@10 of i2t, then
    of t2i."""

    model: str
    protocol: str
    rsum: float | None
    recalls: tuple[float | None, ...] | None = None
    chosen_on: str | None = None  # the split whose RSUM chose the epoch, where it is known


PUBLISHED = (
    Published("ESL-H, region features, BERT", "Flickr30K 1K", 523.7, (83.5, 96.3, 98.4, 65.1, 87.6, 92.7), "test"),
    Published("ESL-H, region features, BERT", "COCO 1K mean", 533.5, (82.5, 97.4, 99.0, 66.2, 91.9, 96.7), "test"),
    Published("ESL-H, region features, BERT", "COCO 5K", 446.9, (63.6, 87.4, 93.5, 44.2, 74.1, 84.0), "test"),
    Published("ESL-A, region features, BERT", "Flickr30K 1K", 522.4, (84.3, 96.3, 98.0, 64.1, 87.4, 92.2), "test"),
    Published("ESL-A, region features, BERT", "COCO 1K mean", 533.4, (82.2, 96.9, 98.9, 66.5, 92.1, 96.7), "test"),
    Published("ESL-A, region features, BERT", "COCO 5K", 447.0, (63.0, 87.6, 93.3, 44.5, 74.4, 84.1), "test"),
    Published("VSE∞, region features, BERT", "Flickr30K 1K", 513.5),
    Published("VSE∞, region features, BERT", "COCO 1K mean", 527.5),
    Published("VSE∞, region features, BERT", "COCO 5K", 434.3),
    Published("VSE∞, grid features (detector), BERT", "Flickr30K 1K", 522.3),
    Published("VSE∞, grid features (detector), BERT", "COCO 1K mean", 531.6),
    Published("VSE∞, grid features (detector), BERT", "COCO 5K", 440.0),
    Published("VSE∞, grid features (wsl), BERT", "Flickr30K 1K", 550.9),
    Published("VSE∞, grid features (wsl), BERT", "COCO 1K mean", 545.4),
    Published("VSE∞, grid features (wsl), BERT", "COCO 5K", 468.9),
    Published("VSE∞, region features, BiGRU", "Flickr30K 1K", None, (76.5, 94.2, None, 56.4, 83.4, None)),
    Published("VSE∞, region features, BiGRU", "COCO 1K mean", None, (78.5, 96.0, None, 61.7, 90.3, None)),
    Published("VSE∞, grid features (detector), BiGRU", "Flickr30K 1K", None, (77.9, 93.7, None, 57.5, 83.4, None)),
    Published("VSE∞, grid features (detector), BiGRU", "COCO 1K mean", None, (78.0, 95.8, None, 62.6, 90.6, None)),
)

PUBLISHED_CXC = {  # R@1
    "VSE++": {"i2t": 43.1, "t2i": 32.5, "t2t": 38.7, "i2i": 36.4},
    "VSRN": {"i2t": 52.4, "t2i": 40.1, "t2t": 41.0, "i2i": 44.2},
    "DE": {"i2t": 55.9, "t2i": 41.7, "t2t": 42.4, "i2i": 38.5},
    "VSE∞ grid": {"i2t": 60.6, "t2i": 46.2, "t2t": 45.9, "i2i": 44.4},
    "VSE∞ WSL grid": {"i2t": 67.9, "t2i": 53.6, "t2t": 46.7, "i2i": 51.3},
}


def published(model: str | None, protocol: str) -> Published | None:
    """The reported figures of a model under a protocol as `report.Row` labels it, or None."""
    return next((row for row in PUBLISHED if (row.model, row.protocol) == (model, protocol)), None)
