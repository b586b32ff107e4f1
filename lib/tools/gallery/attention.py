"""Word-region pictures for the queries of a gallery: of the right pair, and of the wrong one that was preferred."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from lib.checkpoint import load_model, read_checkpoint
from lib.commands.flags import image_limits, machine_paths
from lib.core.errors import InputError
from lib.datasets.images import ImageFolder
from lib.datasets.inputs import open_inputs
from lib.datasets.layout import image_folder, read_id_mapping
from lib.distributed.launch import visible_devices
from lib.distributed.runner import Runner
from lib.evaluation.matrices.stored import checkpoint_hash
from lib.evaluation.matrices.together import Saved, Setting
from lib.files.npy import map_array
from lib.inference.attention import word_rows
from lib.inference.input_spec import input_spec
from lib.inference.pictures.picture import draw_picture, save_picture
from lib.inference.pictures.words import as_written, is_word
from lib.similarity.head import SimilarityHead
from lib.tools.gallery.page import Gallery

DPI = 80


class Attention:
    """The checkpoint that made a matrix, and its split as that checkpoint reads it.

    Raises InputError for a checkpoint that is not there, that made another matrix, or whose head has no attention.
    """

    def __init__(self, args: argparse.Namespace, saved: Saved, setting: Setting):
        if len(saved.folds) > 1:
            raise InputError(f"--pictures needs a whole matrix; {saved.path} holds folds")
        self.scores, info, path = saved.folds[0], saved.info or {}, args.model_path
        if path is None:
            name = info.get("checkpoint")
            if not isinstance(name, str) or Path(name).name != name:
                raise InputError(
                    f"--pictures: no JSON file beside {saved.path} names its checkpoint; give --model_path"
                )
            path = saved.path.with_name(name)
        checkpoint = read_checkpoint(path, machine_paths(args))
        if info.get("checkpoint_hash") not in (None, checkpoint_hash(checkpoint.path)):
            raise InputError(f"{path}: is not the checkpoint that made {saved.path}; name that one with --model_path")
        model = load_model(checkpoint).eval()
        if type(model.similarity).attention is SimilarityHead.attention:
            raise InputError(f"--pictures: the head of {path} compares no word with a region; ESL checkpoints do")
        what = input_spec(checkpoint.config, machine_paths(args))
        self.inputs = open_inputs(
            args.data_path, setting.dataset, setting.split_name, what, setting.limit, image_limits(args)
        )
        self.decode = getattr(what.transform, "decode", None)
        self.runner, self.grid = Runner(model, visible_devices(args.device)[:1]), what.transform is not None
        folder, names = image_folder(args.data_path, setting.dataset), read_id_mapping(args.data_path)
        self.photos = ImageFolder(folder, names, self.inputs.split.image_ids, image_limits(args))

    def write(self, out: Path, gallery: Gallery, count: int) -> dict[tuple[str, int], list[tuple[str, str]]]:
        """Pictures of the first `count` different queries of each direction, by the first model's answers."""
        written: dict[tuple[str, int], list[tuple[str, str]]] = {}
        for direction, sections in gallery.sections.items():
            queries = dict.fromkeys(query for section in sections for query in section.queries.tolist())
            for query in list(queries)[:count]:
                answers = gallery.models[0].answers[direction]
                right = answers.right[query]
                pairs = {"right": self.right(gallery, direction, query)}
                if not right.all():
                    pairs["wrong"] = answers.items[query][~right][0]
                for kind, item in pairs.items():
                    image, caption = (query, int(item)) if direction == "i2t" else (int(item), query)
                    path = f"pictures/{direction}_{query}_{kind}.png"
                    self.draw(out / path, image, caption)
                    shown = gallery.items.captions[caption] if direction == "i2t" else self.photos.path(image).name
                    written.setdefault((direction, query), []).append((path, f"{kind}: {shown}"))
        return written

    def right(self, gallery: Gallery, direction: str, query: int) -> int:
        """The best right item of a query."""
        owners = gallery.items.image_of_caption
        if direction == "t2i":
            return int(owners[query])
        own = np.flatnonzero(owners == query)
        return int(own[self.scores[query, own].argmax()])

    @torch.inference_mode()
    def draw(self, target: Path, image: int, caption: int) -> None:
        """The picture of one pair; without boxes, or without the image file, the heat map alone."""
        split, text = self.inputs.split, self.inputs.split.captions[caption]
        seen = self.inputs.images(image)
        words, rows = word_rows(self.runner, seen, self.inputs.captions, caption)
        boxes = None
        if not self.grid and split.files.boxes:
            every, expected = map_array(split.files.boxes), (*split.features.shape[:2], 4)
            if every.shape != expected:
                raise InputError(f"{split.files.boxes}: found shape {every.shape}, expected {expected} as the features")
            boxes = every[split.rows[image]][seen.real]
        shown = [place for place, word in enumerate(words) if is_word(word)] or list(range(len(words)))
        spelled = np.array(as_written(words, text), object)[shown].tolist()
        line = f"score {self.scores[image, caption]:.4f}  ·  {self.photos.path(image).name}"
        figure = draw_picture(spelled, rows[shown], text, line, self.photos.read(image, self.decode), boxes, self.grid)
        save_picture(figure, target, DPI)
