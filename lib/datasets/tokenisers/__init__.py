"""Tokenisers. A new one is a file with a Tokeniser, and a row of TOKENISERS."""

from __future__ import annotations

from lib.datasets.tokenisers.clip import load_clip_tokeniser
from lib.datasets.tokenisers.scan import load_scan
from lib.datasets.tokenisers.tokeniser import Tokeniser
from lib.datasets.tokenisers.wordpiece import WordPiece, load_tokenizer, load_wordpiece

__all__ = ["TOKENISERS", "Tokeniser", "WordPiece", "load_tokenizer"]

# name -> function of the text encoder's options and this machine's paths
TOKENISERS = {"wordpiece": load_wordpiece, "scan": load_scan, "clip": load_clip_tokeniser}
