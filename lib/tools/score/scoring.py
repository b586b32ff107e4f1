"""What `python -m lib.tools.score` does once its flags are understood: score the captions, and draw the picture."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib.checkpoint import load_model, read_checkpoint
from lib.commands.flags import image_limits, machine_paths
from lib.core.errors import InputError
from lib.core.fragments import Fragments
from lib.core.precision import set_precision
from lib.datasets.captions import TokenisedCaptions
from lib.datasets.inputs import Inputs, InputSpec
from lib.distributed.launch import visible_devices
from lib.distributed.runner import Runner
from lib.files.images import read_image
from lib.files.writing import check_target
from lib.inference.attention import Candidate, word_rows
from lib.inference.input_spec import input_spec
from lib.inference.pictures.picture import FORMS, draw_picture, save_picture
from lib.inference.pictures.words import as_written, is_content
from lib.inference.scoring import score_split
from lib.similarity.head import SimilarityHead
from lib.tools.score.single import SingleImages


class Candidates(list):
    """The candidates as the images of a split."""

    def __call__(self, index: int, rng=None) -> Fragments | Tensor:
        return self[index].image


def score_captions(args: argparse.Namespace, captions: list[str]) -> None:
    """Score and print as the flags say."""
    set_precision(args.precision)
    checkpoint = read_checkpoint(args.model_path, machine_paths(args))
    model = load_model(checkpoint).eval()
    check_picture(args, model.similarity, len(captions))
    what = input_spec(checkpoint.config, machine_paths(args))
    inputs = Inputs(None, given_images(args, what), tokenised(captions, what))
    print(f"{args.model_path}: {checkpoint.description}")

    runner = Runner(model, visible_devices(args.device)[:1], args.precision)
    matrix = score_split(runner, inputs).matrix  # (N, C)
    if not np.isfinite(matrix).all():
        raise InputError(f"{args.model_path}: gives scores that are not finite; its weights are damaged")
    for candidate, scores in zip(inputs.images, matrix, strict=True):
        print("\n".join(ranked_lines(candidate.name, captions, scores, args.top)))
    if args.picture:
        scores, candidate = matrix[0], inputs.images[0]
        chosen = args.picture_caption - 1 if args.picture_caption else int(scores.argmax())
        words, rows = word_rows(runner, candidate.image, inputs.captions, chosen)
        name = (candidate.path or Path(candidate.name)).name
        subtitle = "" if args.no_subtitle else f"score {scores[chosen]:.4f}  ·  {name}  ·  {checkpoint.description}"
        write_picture(args, candidate, as_written(words, captions[chosen]), rows, captions[chosen], subtitle)


# --- What was given ---------------------------------------------------------------------------------------------------


def tokenised(captions: list[str], what: InputSpec) -> TokenisedCaptions:
    """InputError when the tokeniser finds nothing in a caption."""
    tokens = TokenisedCaptions(captions, what.tokeniser)
    nothing = np.flatnonzero(tokens.lengths == len(what.tokeniser.frame))
    if len(nothing):
        raise InputError(f"caption number {nothing[0] + 1}: {captions[nothing[0]]!r} holds no character that the "
                         "tokenizer reads; give it some words")  # fmt: skip
    return tokens


def given_images(args: argparse.Namespace, what: InputSpec) -> Candidates:
    """The images that the model's encoder takes: image files, or rows of features."""
    for path in args.image:
        if not path.is_file():
            raise InputError(f"{path}: no such image file")
    return Candidates(raw_images(args, what) if what.transform else region_images(args, what))


def raw_images(args: argparse.Namespace, what: InputSpec) -> list[Candidate]:
    """The images of --image, transformed as in evaluation."""
    for flag in ("features", "row", "boxes"):
        if getattr(args, flag) is not None:
            raise InputError(f"{args.model_path} reads image files; leave out --{flag}")
    if not args.image:
        raise InputError(f"{args.model_path} reads image files; give --image FILE")
    decode = getattr(what.transform, "decode", None)
    seen = [(path, read_image(path, None, decode, image_limits(args))) for path in args.image]
    return [
        Candidate(str(path), what.transform(pixels, None), path, grid=True, pixels=pixels if decode else None)
        for path, pixels in seen
    ]


def region_images(args: argparse.Namespace, what: InputSpec) -> list[Candidate]:
    """The rows of --features that --row names, each with its boxes for a picture."""
    if args.features is None:
        found = ", which an image file does not hold" if args.image else ""
        raise InputError(f"{args.model_path} reads features of size {what.img_dim}{found}; give --features FILE.npy")
    if (args.image or args.boxes) and not args.picture:
        raise InputError(f"{'--image' if args.image else '--boxes'} with --features is for the picture; add --picture "
                         "OUT.png or leave it out")  # fmt: skip
    source = SingleImages(args.features, what.img_dim, args.model_path, image_limits(args))
    grid, regions = args.boxes == "grid", source.shape[-2]
    if grid and round(regions**0.5) ** 2 != regions:
        raise InputError(f"--boxes grid: {args.features} has {regions} regions, which form no square grid")
    candidates = []
    for row in source.choose(args.row):
        features, mask = source.read(row)  # (R, img_dim), (R)
        if grid and not mask.all():
            raise InputError(f"--boxes grid: row {row} of {args.features} lacks regions, which form no square grid")
        boxes = None
        if args.picture and not grid:
            boxes = source.boxes(row, Path(args.boxes) if args.boxes else None)
        image = source.image(row, args.image[0] if args.image else None) if args.picture else None
        candidates.append(Candidate(
            str(args.features) if args.row is None else f"{args.features} row {row}",
            Fragments(torch.from_numpy(features), mask),
            image, None if boxes is None else boxes[mask], grid,
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


def check_picture(args: argparse.Namespace, head: SimilarityHead, n_captions: int) -> None:
    """InputError for what makes a picture impossible, before anything is computed."""
    if not args.picture:
        if args.picture_caption:
            raise InputError("--picture_caption belongs to --picture; add --picture OUT.png or leave it out")
        return
    if type(head).attention is SimilarityHead.attention:
        raise InputError(f"--picture: the head of {args.model_path} compares no word with a region; ESL checkpoints "
                         "have this picture")  # fmt: skip
    if args.picture.suffix.lower() not in FORMS:
        raise InputError(f"--picture {args.picture}: expected a name that ends in {', '.join(FORMS)}")
    if max(len(args.image), len(args.row or ())) > 1:
        raise InputError("--picture draws one image; give one --image or one --row")
    if args.picture_caption and args.picture_caption > n_captions:
        raise InputError(f"--picture_caption {args.picture_caption}: only {n_captions} captions were given")
    check_target(args.picture, "--picture")


def write_picture(
    args: argparse.Namespace, candidate: Candidate, words: list[str], rows: np.ndarray, caption: str, subtitle: str
) -> None:
    """Draw and save the picture; says what it lacks when there is no image or no boxes."""
    image = candidate.pixels
    if image is None and candidate.path is not None:
        image = read_image(candidate.path, limits=image_limits(args))
    if image is None or (candidate.boxes is None and not candidate.grid):
        print(f"note: no {'image' if image is None else 'boxes'} given, so the picture is the heat map alone")
    if args.words == "content":
        kept = [place for place, word in enumerate(words) if is_content(word)]
        if not kept:
            raise InputError(f"--words content: {caption!r} has no word but function words; use --words all")
        words, rows = [words[place] for place in kept], rows[kept]
    picture = draw_picture(words, rows, caption, subtitle, image, candidate.boxes, candidate.grid, args.width)
    save_picture(picture, args.picture, args.dpi)
    print(f"picture: {args.picture}")
