"""Score captions against one image or a few, and draw which words matched which regions: `python -m lib.tools.score`.

A grid checkpoint takes image files (--image), a region checkpoint the features of the image's regions (--features).
The scores are those of eval.py: the same encoders, the same tokeniser, the same scoring.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lib.checkpoint import Checkpoint, load_model, read_checkpoint
from lib.command_line import Parser, positive, script
from lib.config import ModelConfig
from lib.datasets.captions import TokenizedCaptions, load_tokenizer, read_captions
from lib.datasets.images import read_image
from lib.datasets.loaders import caption_batches
from lib.datasets.transforms import eval_transform, input_size
from lib.errors import InputError
from lib.evaluation import scoring
from lib.files import atomic_write
from lib.fragments import Fragments
from lib.model import local_bert_values
from lib.parallel import Runner, visible_devices
from lib.tools.picture import draw_picture
from lib.tools.single import SingleImages
from lib.training.engine import tokenize_for

TOKENS_PER_BATCH = 2048


class Candidate(NamedTuple):
    """An image to score: its name in the output, how to read it, and what a picture of it needs."""

    name: str
    read: Callable[[], Fragments | Tensor]  # a batch of one
    path: Path | None = None  # the image file
    boxes: np.ndarray | None = None  # (R, 4)
    grid: bool = False  # its regions are the cells of a square grid


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m lib.tools.score", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    add = parser.add_argument
    add("--model_path", required=True, type=Path, metavar="FILE", help="checkpoint: our own or a released one")
    add("--bert_path", default="bert-base-uncased", metavar="DIR|NAME",
        help="where the tokenizer is (default: %(default)s)")  # fmt: skip
    add("--caption", action="append", default=[], metavar="TEXT", help="a caption; may be given more than once")
    add("--captions_file", type=Path, metavar="FILE", help="more captions, one per line")
    add("--image", action="append", default=[], type=Path, metavar="FILE",
        help="an image file; may be given more than once. With --features: the image behind --picture")  # fmt: skip
    add("--features", type=Path, metavar="FILE.npy",
        help="region checkpoint: features (R, img_dim) of an image, or (N, R, img_dim) with --row")  # fmt: skip
    add("--row", action="append", type=int, metavar="N", help="row of --features, from 0; may be given more than once")
    add("--top", type=positive(int), metavar="N", help="print only the best N captions of each image")
    add("--picture", type=Path, metavar="OUT.png", help="ESL: draw which words of a caption matched which regions")
    add("--picture_caption", type=positive(int), metavar="N", help="draw the N-th caption (default: the best one)")
    add("--boxes", metavar="FILE.npy|grid",
        help="for --picture: the boxes of --features, (R, 4) or (N, R, 4), x1 y1 x2 y2 in pixels of --image; or 'grid' "
        "where the regions are grid cells (default: {split}_boxes.npy beside {split}_ims.npy)")  # fmt: skip
    add("--device", metavar="NAME", help="cpu, cuda or cuda:N (default: the GPU where there is one)")
    add("--precision", choices=scoring.PRECISIONS, default="float32", help="as in eval.py (default: %(default)s)")
    return parser.parse_args(argv)


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    captions = given_captions(args)
    device = visible_devices(args.device)[0]
    scoring.set_precision(args.precision)
    tokenizer = load_tokenizer(args.bert_path)
    checkpoint = read_checkpoint(args.model_path, local_bert_values(args.bert_path))
    config = checkpoint.config
    check_picture(args, checkpoint, len(captions))
    tokenized = tokenize(captions, tokenizer, args.bert_path, config)
    candidates = grid_candidates(args, config) if config.grid else region_candidates(args, config)
    print(f"{args.model_path}: {checkpoint.description}")

    runner = Runner(load_model(checkpoint).eval(), [device])
    batches = (candidate.read() for candidate in candidates)
    images = scoring.encode_images(runner, batches, len(candidates), precision=args.precision)
    batches = caption_batches(tokenized, TOKENS_PER_BATCH)
    texts = scoring.encode_captions(runner, batches, len(captions), precision=args.precision)
    matrix = scoring.similarity_matrix(runner, images, texts)  # (N, C)
    if not np.isfinite(matrix).all():
        raise InputError(f"{args.model_path}: gives scores that are no finite numbers; its weights are damaged")
    for candidate, scores in zip(candidates, matrix, strict=True):
        print("\n".join(ranked_lines(candidate.name, captions, scores, args.top)))
    if args.picture:
        scores = matrix[0]
        chosen = args.picture_caption - 1 if args.picture_caption else int(scores.argmax())
        similarity = attention(runner.model.similarity, images, texts, chosen)  # (W, R)
        words, rows = merge_pieces(tokenizer, tokenized, chosen, similarity)
        name = (candidates[0].path or Path(candidates[0].name)).name
        subtitle = f"score {scores[chosen]:.4f}  ·  {name}  ·  {checkpoint.description}"
        write_picture(args.picture, candidates[0], words, rows, captions[chosen], subtitle)


# --- What was given ---------------------------------------------------------------------------------------------------


def given_captions(args: argparse.Namespace) -> list[str]:
    """The captions of --caption, then those of --captions_file; InputError for none or an empty one."""
    captions = [" ".join(caption.split()) for caption in args.caption]
    for number, caption in enumerate(captions, start=1):
        if not caption:
            raise InputError(f"--caption number {number} is empty; give it some words")
    if args.captions_file:
        captions += read_captions(args.captions_file)
    if not captions:
        raise InputError('no captions: give --caption "…" or --captions_file FILE')
    return captions


def tokenize(captions: list[str], tokenizer, bert_path: str, config: ModelConfig) -> TokenizedCaptions:
    """InputError when the tokenizer finds nothing in a caption, or is not the model's."""
    tokenized = tokenize_for(config, captions, tokenizer, bert_path)
    nothing = np.flatnonzero(tokenized.lengths == 2)
    if len(nothing):
        raise InputError(f"caption number {nothing[0] + 1}: {captions[nothing[0]]!r} holds no character that the "
                         "tokenizer reads; give it some words")  # fmt: skip
    return tokenized


def grid_candidates(args: argparse.Namespace, config: ModelConfig) -> list[Candidate]:
    """The images of --image, transformed as in evaluation."""
    for flag in ("features", "row", "boxes"):
        if getattr(args, flag) is not None:
            raise InputError(f"{args.model_path} is a grid checkpoint, which reads image files; leave --{flag} away")
    if not args.image:
        raise InputError(f"{args.model_path} is a grid checkpoint, which reads image files; give --image FILE")
    size = input_size(config.input_scale_factor)

    def reader(path: Path) -> Callable[[], Tensor]:
        return lambda: eval_transform(read_image(path), size, config.backbone_source)[None]  # (1, 3, H, W)

    for path in args.image:
        if not path.is_file():
            raise InputError(f"{path}: no such image file")
    return [Candidate(str(path), reader(path), path, grid=True) for path in args.image]


def region_candidates(args: argparse.Namespace, config: ModelConfig) -> list[Candidate]:
    """The rows of --features that --row names, each with its boxes for a picture."""
    if args.features is None:
        found = ", which an image file does not hold" if args.image else ""
        raise InputError(f"{args.model_path} is a region checkpoint and reads features of size {config.img_dim}{found};"
                         " give --features FILE.npy")  # fmt: skip
    if (args.image or args.boxes) and not args.picture:
        raise InputError(f"{'--image' if args.image else '--boxes'} with --features is for the picture; add --picture "
                         "OUT.png or leave it away")  # fmt: skip
    path = args.image[0] if args.image else None
    if path is not None and not path.is_file():
        raise InputError(f"{path}: no such image file")
    source = SingleImages(args.features, config.img_dim, args.model_path)
    grid, regions = args.boxes == "grid", source.shape[-2]
    if grid and round(regions**0.5) ** 2 != regions:
        raise InputError(f"--boxes grid: {args.features} has {regions} regions, which form no square grid")
    candidates = []
    for row in source.choose(args.row):
        features, mask = source.read(row)  # (R, img_dim), (R)
        boxes = None
        if args.picture and not grid:
            boxes = source.boxes(row, Path(args.boxes) if args.boxes else None)
        fragments = Fragments.full(torch.from_numpy(features[mask])[None])  # (1, R, img_dim), padding left out
        candidates.append(Candidate(
            str(args.features) if args.row is None else f"{args.features} row {row}", lambda batch=fragments: batch,
            path, None if boxes is None else boxes[mask], grid,
        ))  # fmt: skip
    return candidates


# --- What comes out ---------------------------------------------------------------------------------------------------


def ranked_lines(name: str, captions: list[str], scores: np.ndarray, top: int | None = None) -> list[str]:
    """The image's name, then rank, score and caption, best first; equal scores in the order given."""
    order = np.argsort(-scores, kind="stable")[:top]
    numbers = [f"{scores[index]:.4f}" for index in order]
    rank_width, width = len(str(len(order))), max(map(len, numbers))
    lines = [
        f"  {rank:{rank_width}}  {number:>{width}}  {captions[index]}"
        for rank, (index, number) in enumerate(zip(order, numbers, strict=True), start=1)
    ]
    return [name, *lines]


def check_picture(args: argparse.Namespace, checkpoint: Checkpoint, n_captions: int) -> None:
    """InputError for what makes a picture impossible, before anything is computed."""
    if not args.picture:
        if args.picture_caption:
            raise InputError("--picture_caption belongs to --picture; add --picture OUT.png or leave it away")
        return
    if checkpoint.config.similarity == "vse_infty":
        raise InputError(f"--picture: {args.model_path} is VSE∞, which pools each side to one vector before it "
                         "compares them, so no word has a region; only ESL checkpoints have this picture")  # fmt: skip
    if args.picture.suffix.lower() != ".png":
        raise InputError(f"--picture {args.picture}: expected a name that ends in .png")
    if max(len(args.image), len(args.row or ())) > 1:
        raise InputError("--picture draws one image; give one --image or one --row")
    if args.picture_caption and args.picture_caption > n_captions:
        raise InputError(f"--picture_caption {args.picture_caption}: only {n_captions} captions were given")


def attention(head, images: scoring.Encoded, texts: scoring.Encoded, caption: int) -> np.ndarray:
    """Word-region similarity S (W, R) of the first image and one caption, as the score was made of."""
    image = images.chunks[0].select(slice(0, 1))
    for where, chunk in zip(texts.where, texts.chunks, strict=True):
        place = (where == caption).nonzero().flatten().tolist()
        if place:
            text = chunk.select(slice(place[0], place[0] + 1))
            with torch.inference_mode():
                S = head.attention(image.to(torch.float32), text.to(torch.float32))[0, 0]  # (W, R)
            return S[text.mask[0]].cpu().numpy()
    raise IndexError(f"caption {caption} was not encoded")


def merge_pieces(tokenizer, tokenized: TokenizedCaptions, index: int, rows: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Words of a caption, [CLS] and [SEP] included, and one row for each: the mean of the rows (W, R) of its pieces."""
    pieces = tokenizer.convert_ids_to_tokens(tokenized.ids(index).tolist())
    own = tokenized.words[tokenized.offsets[index] : tokenized.offsets[index + 1]]  # (W - 2,) the word of each piece
    starts = np.flatnonzero(np.diff(own, prepend=-1)) + 1
    starts = np.concatenate([[0], starts, [len(pieces) - 1]])
    stops = [*starts[1:], len(pieces)]
    words = [pieces[start] + "".join(piece.removeprefix("##") for piece in pieces[start + 1 : stop])
             for start, stop in zip(starts, stops, strict=True)]  # fmt: skip
    return words, np.stack([rows[start:stop].mean(0) for start, stop in zip(starts, stops, strict=True)])


def write_picture(
    target: Path, candidate: Candidate, words: list[str], rows: np.ndarray, caption: str, subtitle: str
) -> None:
    """Draw and save the picture; says what it lacks when there is no image or no boxes."""
    image = None if candidate.path is None else read_image(candidate.path)
    if image is None or (candidate.boxes is None and not candidate.grid):
        print(f"note: no {'image' if image is None else 'boxes'} given, so the picture is the heat map alone")
    picture = draw_picture(words, rows, caption, subtitle, image, candidate.boxes, candidate.grid)
    with atomic_write(target) as temporary:
        picture.save(temporary, format="PNG")
    print(f"picture: {target}")


if __name__ == "__main__":
    main()
