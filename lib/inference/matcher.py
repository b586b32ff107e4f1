"""The front door: a model that scores images with captions, encodes each item once and shows its attention.

Letters: B images, C captions, R regions or grid cells, W words, D size of a region feature, K size of a prepared row.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from lib.checkpoint import load_model, read_checkpoint
from lib.checkpoint.native import digests
from lib.checkpoint.reading import SUFFIXES
from lib.checkpoint.zero_shot import build_zero_shot
from lib.core.errors import InputError, shown
from lib.core.fragments import Fragments, Prepared
from lib.core.precision import set_precision
from lib.datasets.captions import TokenisedCaptions
from lib.datasets.inputs import InputSpec
from lib.datasets.loaders import caption_batches, image_batches
from lib.distributed.launch import visible_devices
from lib.distributed.runner import Runner
from lib.files.images import read_image
from lib.files.pytorch import read_file
from lib.files.vocabulary import vocabulary_file
from lib.files.writing import atomic_write
from lib.inference.attention import word_rows
from lib.inference.input_spec import input_spec
from lib.inference.pictures.picture import FORMS, draw_picture, save_picture
from lib.inference.pictures.words import as_written
from lib.inference.scoring import TOKENS_PER_CAPTION
from lib.model import MatchingModel
from lib.similarity.head import SimilarityHead

BATCH = 128


def load(
    path: str | Path,
    *,
    bert_path: str | Path = "bert-base-uncased",
    clip_path: str | Path | None = None,
    vocab_path: str | Path | None = None,
    device: str | None = None,
    precision: str = "float32",
) -> Matcher:
    """The Matcher of a checkpoint of ours, a released file, or plain CLIP in Hugging Face form (a folder or hub name).

    The other paths and values mean what the flags of eval.py mean. Raises InputError if there is no such model.
    """
    if not isinstance(path, str | Path):
        raise InputError(f"load takes the path of a checkpoint or the name of a CLIP, not type {type(path).__name__}")
    set_precision(precision)
    devices, here = visible_devices(device)[:1], Path(path)
    is_clip = (here / "config.json").is_file() if here.exists() else here.suffix not in SUFFIXES
    clip_path = clip_path or (str(path) if is_clip else "openai/clip-vit-base-patch16")
    vocabulary = vocabulary_file(vocab_path, None, None)
    paths = {"bert_path": str(bert_path), "clip_path": str(clip_path), "vocab_path": vocabulary}
    model = build_zero_shot(str(path)) if is_clip else load_model(read_checkpoint(path, paths))
    return Matcher(model, input_spec(model.config, paths), devices[0], precision)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Images or captions (`kind`) that the model with the digest `model` has encoded; slices give some of them.

    `items` are the prepared rows (L, K) of each, without padding.
    """

    kind: str
    items: list[Tensor]
    model: int

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int | slice) -> Encoded:
        items = self.items[index] if isinstance(index, slice) else [self.items[index]]
        return dataclasses.replace(self, items=items)

    def padded(self, places: Iterable[int], device: torch.device) -> Prepared:
        """The items at these places, ready to be scored on a device."""
        items = [self.items[place] for place in places]
        lengths = np.array([len(item) for item in items])
        rows = pad_sequence(items, batch_first=True).to(device)  # (N, L, K)
        return Prepared(rows, np.arange(rows.shape[1]) < lengths[:, None])

    def save(self, path: str | Path) -> None:
        """Write the items as tensors, to be read with `Encoded.load`."""
        content = {"kind": self.kind, "model": self.model, "lengths": torch.tensor([len(item) for item in self.items])}
        rows = torch.cat(self.items) if self.items else torch.empty(0)
        with atomic_write(Path(path)) as temporary:
            torch.save(content | {"rows": rows.cpu()}, temporary)

    @classmethod
    def load(cls, path: str | Path) -> Encoded:
        """The items of a file that `save` wrote; InputError for another file."""
        content = read_file(path)
        if not isinstance(content, dict) or content.keys() != {"kind", "model", "lengths", "rows"}:
            raise InputError(f"{path}: holds no encoded images or captions; write them with their save()")
        return cls(content["kind"], list(content["rows"].split(content["lengths"].tolist())), content["model"])


@dataclasses.dataclass(frozen=True)
class Match:
    """The words of a caption and their similarity S (W, R) to the regions or grid cells of an image."""

    words: list[str]
    S: np.ndarray
    caption: str
    pixels: np.ndarray | None = None  # (H, W, 3)
    boxes: np.ndarray | None = None  # (R, 4)
    grid: bool = False

    def save(self, path: str | Path, subtitle: str = "", dpi: float = 200, width: float | None = None) -> None:
        """Draw the match as PNG, PDF or SVG, by the name; without pixels or boxes the heat map alone."""
        if Path(path).suffix.lower() not in FORMS:
            raise InputError(f"{path}: expected a name that ends in {', '.join(FORMS)}")
        figure = draw_picture(self.words, self.S, self.caption, subtitle, self.pixels, self.boxes, self.grid, width)
        save_picture(figure, Path(path), dpi)


class Matcher:
    """A model with what it reads (`spec`), on one device and in one precision.

    Images are paths, PIL images or arrays of pixels (H, W, 3) for a model of raw images; features (N, R, D), or arrays
    (R, D) of any number of regions, for a model of regions. One image or caption may come without a list.
    """

    def __init__(self, model: MatchingModel, spec: InputSpec, device: torch.device, precision: str = "float32"):
        self.runner, self.spec = Runner(model.eval(), [device], precision), spec

    @property
    def model(self) -> MatchingModel:
        """The network."""
        return self.runner.model

    @functools.cached_property
    def digest(self) -> int:
        """A number that tells the weights and the configuration from those of other models."""
        content = {"config": dataclasses.asdict(self.model.config), "model": self.model.state_dict()}
        return zlib.crc32(ascii(sorted(digests(content).items())).encode())

    def similarity(self, images: Any, captions: Any) -> np.ndarray:
        """Scores (B, C), float32, of images and captions, encoded or not; those of eval.py."""
        return self._score(self._encoded(images, "images"), self._encoded(captions, "captions"))

    def encode_images(self, images: Any, batch_size: int = BATCH, workers: int = 0, progress: bool = False) -> Encoded:
        """The work of single images, done once."""
        images = self._images(images)
        starts = range(0, len(images), batch_size)
        places = (range(start, min(start + batch_size, len(images))) for start in starts)
        batches = zip(places, image_batches(images, batch_size, workers), strict=True)
        return self._encode("images", batches, self._prepared_images, len(images), progress)

    def encode_captions(self, captions: str | list[str], batch_size: int = BATCH, progress: bool = False) -> Encoded:
        """The work of single captions, done once."""
        tokens = self.tokenise(captions)
        batches = caption_batches(tokens, batch_size * TOKENS_PER_CAPTION)
        return self._encode("captions", batches, self._prepared_captions, len(tokens), progress)

    def attention(self, image: Any, caption: str, photo: Any = None, boxes: np.ndarray | None = None) -> Match:
        """Which words of the caption match which regions or cells of the image, as an ESL head compares them.

        For a picture of region features, `photo` is the image and `boxes` (R, 4) are the regions in its pixels.
        """
        self.check_attention()
        images, tokens, grid = self._images(image), self.tokenise(caption), self.spec.transform is not None
        if len(images) != 1 or len(tokens) != 1:
            raise InputError(f"attention takes one image and one caption, not {len(images)} and {len(tokens)}")
        caption = caption if isinstance(caption, str) else caption[0]
        words, S = word_rows(self.runner, images(0), tokens, 0)
        pixels = images.pixels(0) if grid else None
        if photo is not None:
            pixels = _pixels(photo, "photo", None)
        return Match(as_written(words, caption), S, caption, pixels, boxes, grid)

    def check_attention(self) -> None:
        """InputError for a head that compares no words with regions."""
        head = self.model.similarity
        if type(head).attention is SimilarityHead.attention:
            raise InputError(f"a {self.model.config.similarity} head compares no word with a region; ESL heads do")

    def tokenise(self, captions: str | list[str]) -> TokenisedCaptions:
        """Captions as tokens; InputError for anything but text, and for text in which the tokeniser finds nothing."""
        captions = [captions] if isinstance(captions, str) else captions
        if not isinstance(captions, list | tuple) or not captions:
            raise InputError(f"captions take a text or a list of texts, not {_named(captions)}")
        for number, caption in enumerate(captions, start=1):
            if not isinstance(caption, str):
                raise InputError(f"caption number {number}: expected a text, not {_named(caption)}")
        tokens = TokenisedCaptions(list(captions), self.spec.tokeniser)
        nothing = np.flatnonzero(tokens.lengths == len(self.spec.tokeniser.frame))
        if len(nothing):
            raise InputError(f"caption number {nothing[0] + 1}: {captions[nothing[0]]!r} holds no character that the "
                             "tokenizer reads; give it some words")  # fmt: skip
        return tokens

    def _images(self, images: Any) -> _Pixels | _Regions:
        if isinstance(images, Encoded):
            raise InputError("encoded images where images are needed; only similarity takes encoded ones")
        return _Regions(images, self.spec.img_dim) if self.spec.transform is None else _Pixels(images, self.spec)

    def _encoded(self, items: Any, kind: str) -> Encoded:
        if not isinstance(items, Encoded):
            return self.encode_images(items) if kind == "images" else self.encode_captions(items)
        if items.kind != kind:
            raise InputError(f"encoded {items.kind} where {kind} are needed; similarity takes images, then captions")
        if items.model != self.digest:
            raise InputError(f"these {kind} were encoded by another model; encode them with this one")
        return items

    def _prepared_images(self, batch: Fragments | Tensor) -> Prepared:
        return self.runner.prepare_images(self.runner.encode_images(batch))

    def _prepared_captions(self, batch) -> Prepared:
        return self.runner.prepare_captions(self.runner.encode_captions(batch))

    @torch.inference_mode()
    def _encode(self, kind: str, batches: Iterable, prepare: Callable, count: int, progress: bool) -> Encoded:
        items: list = [None] * count
        with tqdm(total=count, desc=f"encode {kind}", unit=kind, disable=not progress) as bar:
            for places, batch in batches:
                prepared = prepare(batch.to(self.runner.device))
                rows = prepared.packed().split(prepared.lengths.tolist())
                for place, item in zip(places, rows, strict=True):
                    items[place] = item
                bar.update(len(places))
        return Encoded(kind, items, self.digest)

    @torch.inference_mode()
    def _score(self, images: Encoded, captions: Encoded) -> np.ndarray:
        matrix = np.empty((len(images), len(captions)), np.float32)
        if not matrix.size:
            return matrix
        head, device = self.model.similarity, self.runner.device
        order = np.argsort([-len(item) for item in captions.items], kind="stable")  # long ones first: little padding
        columns = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        texts = [captions.padded(part, device) for part in columns]
        tile = head.images_per_tile(max(map(len, images.items)), len(images), device)
        for start in range(0, len(images), tile):
            rows = range(start, min(start + tile, len(images)))
            block = images.padded(rows, device)
            for part, prepared in zip(columns, texts, strict=True):
                matrix[rows.start : rows.stop, part] = head.score(block, prepared).float().cpu().numpy()
        return matrix


class _Pixels:
    """Images for a model of raw images; files are looked for at once and read when they are needed."""

    def __init__(self, images: Any, spec: InputSpec):
        if isinstance(images, str | Path | Image.Image) or isinstance(images, np.ndarray) and images.ndim == 3:
            images = [images]
        if not isinstance(images, list | tuple | np.ndarray) or not len(images):
            raise InputError(f"this model {_TAKES_IMAGES}, not {_named(images)}")
        self.images, self.transform = images, spec.transform
        for number, image in enumerate(images):
            _check_image(image, f"image number {number + 1}")

    def __len__(self) -> int:
        return len(self.images)

    def __call__(self, number: int, rng=None) -> Tensor:
        return self.transform(self.pixels(number), rng)

    def pixels(self, number: int) -> np.ndarray:
        """The image as the encoder's transform takes it (H, W, 3)."""
        decode = getattr(self.transform, "decode", None)
        return _pixels(self.images[number], f"image number {number + 1}", decode)


class _Regions:
    """Images for a model of regions: Fragments (R, D), padded to the most regions of all."""

    def __init__(self, images: Any, size: int):
        expected = f"this model takes features (N, R, {size}) or a list of arrays (R, {size})"
        if isinstance(images, np.ndarray | Tensor):
            images = [images] if images.ndim == 2 else images
        elif not isinstance(images, list | tuple):
            raise InputError(f"{expected}, not {_named(images)}")
        if not len(images):
            raise InputError(f"{expected}, not none")
        self.images = []
        for number, image in enumerate(images, start=1):
            if not isinstance(image, np.ndarray | Tensor):
                raise InputError(f"{expected}; image number {number} is {_named(image)}")
            image = torch.as_tensor(image)
            if image.ndim != 2 or image.shape[1] != size or not len(image) or not image.is_floating_point():
                raise InputError(f"{expected}; image number {number} is {image.dtype} {tuple(image.shape)}")
            if not image.isfinite().all():
                raise InputError(f"image number {number}: its features hold NaN or infinity; extract them again")
            self.images.append(image)
        self.regions = max(map(len, self.images))

    def __len__(self) -> int:
        return len(self.images)

    def __call__(self, number: int, rng=None) -> Fragments:
        image = self.images[number]
        rows = image.new_zeros(self.regions, image.shape[1])  # (R, D)
        rows[: len(image)] = image
        return Fragments(rows, np.arange(self.regions) < len(image))


_TAKES_IMAGES = "takes image files, PIL images or arrays of pixels, uint8 (H, W, 3)"


def _check_image(image: Any, where: str) -> None:
    if isinstance(image, str | Path):
        if not Path(image).is_file():
            raise InputError(f"{where}, {shown(image, 300)}: no such image file")
    elif isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise InputError(f"{where}: this model {_TAKES_IMAGES}, not {image.dtype} {image.shape}")
    elif not isinstance(image, Image.Image):
        raise InputError(f"{where}: this model {_TAKES_IMAGES}, not {_named(image)}")


def _pixels(image: Any, where: str, decode: Callable | None) -> np.ndarray:
    """An image decoded to pixels (H, W, 3), by `decode` where an encoder has its own."""
    _check_image(image, where)
    if isinstance(image, str | Path):
        return read_image(image, None, decode)
    if decode:
        return decode(image if isinstance(image, Image.Image) else Image.fromarray(image))
    return np.array(image.convert("RGB")) if isinstance(image, Image.Image) else image


def _named(value: Any) -> str:
    if isinstance(value, Encoded):
        return f"encoded {value.kind}"
    if isinstance(value, str | list | tuple) and not value:
        return "an empty one"
    return f"type {type(value).__name__}"
