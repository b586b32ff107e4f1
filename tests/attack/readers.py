"""Every reader of files with a tiny valid file: a new one joins by a line in READERS."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lib.checkpoint import convert, read_checkpoint, save_checkpoint
from lib.datasets.captions import read_captions
from lib.datasets.layout import read_id_mapping
from lib.datasets.regions import RegionFeatures
from lib.evaluation.cxc.csv_files import read_pairs
from lib.evaluation.matrices.stored import load_scores, save_results
from lib.files.npy import map_array
from lib.files.pytorch import read_file
from lib.files.reading import read_ids, read_json
from lib.files.safetensors import write_safetensors
from lib.files.vocabulary import read_vocabulary
from lib.files.word_vectors import read_word_vectors
from lib.tools.prepare.karpathy import read_karpathy
from lib.tools.prepare.sources import read_records
from tests.checkpoint.released.layouts import released_content, small_model
from tests.tools.prepare.test_regions import bua_row, lxmert_row, write_lines, write_npz

# What a format promises when a file of it is damaged.
CHECKED = "checked"  # it carries checksums: damage is refused, or changes nothing that is read
BINARY = "binary"  # its structure is checked: damaged numbers may be read, of the same kind and shape
TEXT = "text"  # lines of text, or JSON: another text may be as good
OPTIONAL = "optional"  # text that may be missing


class Reader(NamedTuple):
    """The name of a file, how a tiny valid one is made, how it is read (to the values that count), what it promises."""

    file: str
    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    promise: str


def _content() -> dict[str, Any]:
    weights = {"weight": torch.arange(100.0), "half": torch.ones(3).half(), "count": torch.tensor(5)}
    return {"model": [weights], "opt": argparse.Namespace(margin=0.2), "best_rsum": np.float64(412.5)}


def _save(path: Path, content: Callable[[], Any] = _content, legacy: bool = False) -> None:
    torch.save(content(), path, _use_new_zipfile_serialization=not legacy)


def _save_ours(path: Path) -> None:
    save_checkpoint(path, small_model("vse_infty"), epoch=3, step=99, settings={"val_split": "dev", "margin": 0.2})


def _export(path: Path) -> None:
    _save_ours(path.with_name("ours.pth"))
    convert(path.with_name("ours.pth"), path, "safetensors")


def _read_ours(path: Path) -> dict[str, Any]:
    return {name: value for name, value in vars(read_checkpoint(path)).items() if name != "path"}


def _matrix() -> np.ndarray:
    return np.linspace(-1, 1, 60, dtype=np.float32).reshape(6, 10)


def _save_matrix(path: Path) -> None:
    save_results(path.with_suffix(".npy"), _matrix(), {"dataset": "f30k", "split": "test", "limit": None})


def _pickle_matrix(path: Path) -> None:
    np.save(path, {"npts": 6, "sims": _matrix()}, allow_pickle=True)


def _read_matrix(path: Path) -> Any:
    scores, info = load_scores(path.with_suffix(".npy") if path.suffix == ".json" else path)
    return np.array(scores), info


def _features() -> np.ndarray:
    return np.linspace(0, 1, 4 * 3 * 8, dtype=np.float32).reshape(4, 3, 8)


def _save_mask(path: Path) -> None:
    np.save(path.with_name("ims.npy"), _features())
    np.save(path, np.arange(12).reshape(4, 3) % 4 != 3)


def _records(path: Path, kind: str | None) -> list:
    return [(record.key, *record.decode()) for record in read_records(path, kind, img_dim=8)]


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


_KARPATHY = {"images": [
    {"filename": f"{i}.jpg", "filepath": "val2014", "cocoid": i, "imgid": i, "split": "test", "sentids": [i],
     "sentences": [{"raw": "A dog runs.", "tokens": ["a", "dog", "runs"], "imgid": i, "sentid": i}]}
    for i in range(1, 4)
]}  # fmt: skip
_VOCABULARY = {"idx2word": {str(i): word for i, word in enumerate("<pad> <start> <end> <unk> dog runs".split())}}
_VOCABULARY |= {"word2idx": {word: int(i) for i, word in _VOCABULARY["idx2word"].items()}, "idx": 6}

READERS = {
    "PyTorch file": Reader("a.pth", _save, read_file, CHECKED),
    "legacy PyTorch file": Reader("a.pth", partial(_save, legacy=True), read_file, BINARY),
    "checkpoint of ours": Reader("a.pth", _save_ours, _read_ours, CHECKED),
    "released checkpoint": Reader("a.tar", partial(_save, content=partial(released_content, "vse_infty")),
                                  _read_ours, CHECKED),
    "checkpoint as safetensors": Reader("a.safetensors", _export, _read_ours, CHECKED),
    "safetensors": Reader("a.safetensors", lambda path: write_safetensors(path, {"a": torch.arange(9.0)}, {}),
                          read_file, BINARY),
    "saved matrix": Reader("a.npy", _save_matrix, _read_matrix, CHECKED),
    "what a saved matrix is of": Reader("a.json", _save_matrix, _read_matrix, OPTIONAL),
    "matrix as text": Reader("a.txt", lambda path: np.savetxt(path, _matrix()), _read_matrix, TEXT),
    "pickled matrix": Reader("a.npy", _pickle_matrix, _read_matrix, BINARY),
    "region features": Reader("a_ims.npy", lambda path: np.save(path, _features()),
                              lambda path: RegionFeatures(path).rows(range(4)), BINARY),
    "region mask": Reader("a_mask.npy", _save_mask,
                          lambda path: RegionFeatures(path.with_name("ims.npy"), path).mask, BINARY),
    "boxes": Reader("a_boxes.npy", lambda path: np.save(path, _features()), map_array, BINARY),
    "regions as .npz": Reader("1.npz", lambda path: write_npz(path.parent, 1, 1),
                             lambda path: _records(path, None), CHECKED),
    "regions as TSV": Reader("a.tsv", lambda path: write_lines(path, [bua_row(1), lxmert_row(2, 2)]),
                             lambda path: _records(path, None), TEXT),
    "word vectors": Reader("a.txt", lambda path: path.write_text("dog 1 2 3\ncat 4 5 6\n"),
                           lambda path: read_word_vectors(path, {"dog": 4, "cat": 5}, 3), TEXT),
    "vocabulary": Reader("a.json", lambda path: _write_json(path, _VOCABULARY),
                         lambda path: read_vocabulary(path).words, TEXT),
    "captions": Reader("a_caps.txt", lambda path: path.write_text("A dog runs .\nTwo cats sit .\n"),
                       read_captions, TEXT),
    "ids": Reader("a_ids.txt", lambda path: path.write_text("17\n18\n19\n"), read_ids, TEXT),
    "JSON": Reader("a.json", lambda path: _write_json(path, {"a": [1, 2.5, None, "text"]}), read_json, TEXT),
    "id mapping": Reader("id_mapping.json", lambda path: _write_json(path, {"1": "a.jpg", "2": "b.jpg"}),
                         lambda path: read_id_mapping(path.parent), TEXT),
    "Karpathy's splits": Reader("dataset.json", lambda path: _write_json(path, _KARPATHY),
                                lambda path: read_karpathy(path, "coco"), TEXT),
    "CxC ratings": Reader("sis_test.csv", lambda path: path.write_text(
        "image1,image2,agg_score,sampling_method\nCOCO_val2014_000000000001.jpg,COCO_val2014_000000000002.jpg,2.5,a\n"),
        lambda path: list(read_pairs(path, "sis")), TEXT),
}  # fmt: skip
