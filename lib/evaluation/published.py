"""Figures that the papers and READMEs of the models report. None of them is measured here.

Sources: ESL, Zhang et al., IEEE TCSVT 2023; VSE∞, Chen et al., CVPR 2021, and its README; CxC, Parekh et al., EACL
2021. All with BERT. `encoder` is "region" (BUTD region features) or the backbone of a grid encoder.
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """Figures of one model under one protocol; `recalls` are R@1 R@5 R@10 of i2t, then of t2i, where they are known."""

    name: str
    similarity: str
    encoder: str
    protocol: str
    rsum: float
    recalls: tuple[float, ...] | None = None


PUBLISHED = (
    Published("ESL-H", "esl_h", "region", "Flickr30K 1K", 523.7, (83.5, 96.3, 98.4, 65.1, 87.6, 92.7)),
    Published("ESL-H", "esl_h", "region", "COCO 1K mean", 533.5, (82.5, 97.4, 99.0, 66.2, 91.9, 96.7)),
    Published("ESL-H", "esl_h", "region", "COCO 5K", 446.9, (63.6, 87.4, 93.5, 44.2, 74.1, 84.0)),
    Published("ESL-A", "esl_a", "region", "Flickr30K 1K", 522.4, (84.3, 96.3, 98.0, 64.1, 87.4, 92.2)),
    Published("ESL-A", "esl_a", "region", "COCO 1K mean", 533.4, (82.2, 96.9, 98.9, 66.5, 92.1, 96.7)),
    Published("ESL-A", "esl_a", "region", "COCO 5K", 447.0, (63.0, 87.6, 93.3, 44.5, 74.4, 84.1)),
    Published("VSE∞", "vse_infty", "region", "Flickr30K 1K", 513.5),
    Published("VSE∞", "vse_infty", "region", "COCO 1K mean", 527.5),
    Published("VSE∞", "vse_infty", "region", "COCO 5K", 434.3),
    Published("VSE∞ BUTD grid", "vse_infty", "detector", "Flickr30K 1K", 522.3),
    Published("VSE∞ BUTD grid", "vse_infty", "detector", "COCO 1K mean", 531.6),
    Published("VSE∞ BUTD grid", "vse_infty", "detector", "COCO 5K", 440.0),
    Published("VSE∞ WSL grid", "vse_infty", "wsl", "Flickr30K 1K", 550.9),
    Published("VSE∞ WSL grid", "vse_infty", "wsl", "COCO 1K mean", 545.4),
    Published("VSE∞ WSL grid", "vse_infty", "wsl", "COCO 5K", 468.9),
)

PUBLISHED_CXC = {  # R@1
    "VSE++": {"i2t": 43.1, "t2i": 32.5, "t2t": 38.7, "i2i": 36.4},
    "VSRN": {"i2t": 52.4, "t2i": 40.1, "t2t": 41.0, "i2i": 44.2},
    "DE": {"i2t": 55.9, "t2i": 41.7, "t2t": 42.4, "i2i": 38.5},
    "VSE∞ grid": {"i2t": 60.6, "t2i": 46.2, "t2t": 45.9, "i2i": 44.4},
    "VSE∞ WSL grid": {"i2t": 67.9, "t2i": 53.6, "t2t": 46.7, "i2i": 51.3},
}


def published(similarity: str | None, encoder: str | None, protocol: str) -> Published | None:
    """The reported figures of a model (head and image encoder) under a protocol as `report.Row` labels it, or None."""
    for figures in PUBLISHED:
        if (figures.similarity, figures.encoder, figures.protocol) == (similarity, encoder, protocol):
            return figures
    return None
