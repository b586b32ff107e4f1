"""Evaluate checkpoints, our own or released ESL and VSE-infinity files, on COCO, Flickr30K and CxC.

The configuration comes from the file. Without --model_path, every runs/release_weights/<dataset>_*/ is evaluated.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from lib.alignment import gpu_kernel
from lib.checkpoint import Checkpoint, load_model, read_checkpoint
from lib.command_line import Parser, positive, script
from lib.config import add_machine_arguments
from lib.datasets.captions import load_tokenizer
from lib.datasets.layout import cxc_folder
from lib.datasets.raw import RawImages
from lib.datasets.splits import Split, open_split
from lib.errors import InputError
from lib.evaluation import report
from lib.evaluation.cxc import cxc_correlations, cxc_recalls
from lib.evaluation.cxc_annotations import Annotations, read_annotations
from lib.evaluation.results import checkpoint_hash, plain, save_results
from lib.evaluation.scoring import set_precision
from lib.files import check_writable, write_json
from lib.model import local_bert_values
from lib.parallel import Runner, visible_devices
from lib.training.engine import SplitScores, score_split, tokenize_for

RELEASED = Path("runs/release_weights")
COCO_IMAGES = 5000  # of COCO's testall: only there do published figures apply


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", "--data_name", choices=("coco", "f30k"), default="coco", help="(default: coco)")
    parser.add_argument("--data_path", metavar="DIR", help="<root>/coco or <root>/f30k (default: data/<dataset>)")
    parser.add_argument(
        "--model_path",
        nargs="+",
        metavar="FILE",
        default=None,
        help=f"checkpoints (default: those in {RELEASED}/<dataset>_*/)",
    )
    parser.add_argument(
        "--bert_path",
        default="bert-base-uncased",
        metavar="DIR|NAME",
        help="where the tokenizer is; BERT's weights come from the checkpoint (default: %(default)s)",
    )
    parser.add_argument("--split", metavar="NAME", help="(default: testall for coco, else test)")
    parser.add_argument("--limit", type=positive(int), metavar="N", help="only the first N images, for a quick look")
    parser.add_argument("--evaluate_cxc", action="store_true", help="CxC on COCO testall: recalls and correlations")
    parser.add_argument(
        "--save_results",
        action="store_true",
        help="save the similarity matrix as results_<dataset>.npy beside the checkpoint",
    )
    parser.add_argument("--output", metavar="DIR", help="folder of the result files (default: beside the checkpoint)")
    parser.add_argument("--batch_size", type=positive(int), default=128, metavar="N", help="(default: %(default)s)")
    add_machine_arguments(parser)
    args = parser.parse_args(argv)
    args.data_path = args.data_path or f"data/{args.dataset}"
    args.split = args.split or ("testall" if args.dataset == "coco" else "test")
    if args.evaluate_cxc and (args.dataset != "coco" or args.split != "testall" or args.limit):
        raise InputError("--evaluate_cxc is defined on the whole testall split of coco; drop --split and --limit")
    return args


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    set_precision(args.precision)
    gpu_kernel.set_enabled(not args.no_kernels)
    devices = visible_devices(args.device)
    paths = [Path(path) for path in args.model_path] if args.model_path else released_files(args.dataset)
    tokenizer = load_tokenizer(args.bert_path)
    for path in paths:  # before the first takes its time
        if not path.exists():
            raise InputError(f"{path}: no such file; --model_path names checkpoints")
        check_writable(output_folder(path, args), "--output")
    results, cxc_rows, correlation_rows = [], [], []
    for path, place in zip(paths, output_places(paths, args), strict=True):
        began = time.perf_counter()
        checkpoint = read_checkpoint(path, local_bert_values(args.bert_path))
        split = open_split(
            args.data_path,
            args.dataset,
            args.split,
            checkpoint.config.img_dim,
            need_features=not checkpoint.config.grid,
            limit=args.limit,
        )
        annotations = cxc_annotations(args, split) if args.evaluate_cxc else None
        print(f"{path}: {checkpoint.description}")
        scores = score(checkpoint, split, tokenizer, args, devices)
        rows = report.evaluate_matrix(
            args.dataset, scores.matrix, split.image_of_caption, args.split, args.limit if split.limited else None
        )
        print(report.format_table(rows))
        info = {
            "dataset": args.dataset,
            "split": args.split,
            "limit": args.limit if split.limited else None,
            "checkpoint": path.name,
            "checkpoint_hash": checkpoint_hash(path),
            "model": checkpoint.description,
            "config": {name: value for name, value in checkpoint.config.as_dict().items() if name != "bert"},
            "images": split.n_images,
            "captions": split.n_captions,
            "precision": args.precision,
            "results": rows,
        }
        if len(set(np.bincount(split.image_of_caption))) > 1:  # an ensemble needs to know whose captions are whose
            info["image_of_caption"] = split.image_of_caption
        name = f"{path.parent.name}/{path.name}"
        if args.evaluate_cxc:
            judged = scores.matrix, scores.image_vectors, scores.caption_vectors, annotations
            info["cxc"], info["cxc_correlations"] = cxc_recalls(*judged), cxc_correlations(*judged)
            cxc_rows.append((name, info["cxc"]))
            correlation_rows.append((name, info["cxc_correlations"]))
            print(report.format_cxc(cxc_rows[-1:], with_published=len(paths) == 1 and split.n_images == COCO_IMAGES))
            print(report.format_correlations(correlation_rows[-1:]))
        write_outputs(place, args, scores.matrix, info)
        print(f"{time.perf_counter() - began:.1f} s\n")
        encoder = checkpoint.config.backbone_source if checkpoint.config.grid else "region"
        results.append(report.ModelResult(name, rows, checkpoint.config.similarity, encoder))
    if len(results) > 1 or report.has_published(results):
        print(report.format_summary(results))
    if len(cxc_rows) > 1:
        print(report.format_cxc(cxc_rows, with_published=split.n_images == COCO_IMAGES))
        print(report.format_correlations(correlation_rows))


def score(checkpoint: Checkpoint, split: Split, tokenizer, args: argparse.Namespace, devices: list) -> SplitScores:
    """Encode and score the split with the checkpoint's model."""
    config = checkpoint.config
    tokenized = tokenize_for(config, split.captions, tokenizer, args.bert_path)
    load_image = None
    if config.grid:
        load_image = RawImages(args.data_path, args.dataset, split, config.input_scale_factor, config.backbone_source)
        load_image.check()
    runner = Runner(load_model(checkpoint), devices)
    return score_split(
        runner,
        split,
        tokenized,
        args.batch_size,
        args.workers,
        load_image,
        vectors=args.evaluate_cxc,
        precision=args.precision,
        score_memory=args.score_memory,
    )


def cxc_annotations(args: argparse.Namespace, split: Split) -> Annotations:
    """The CxC annotations of the data set; InputError unless they are of the split's images in the split's order."""
    folder = cxc_folder(args.data_path)
    annotations = read_annotations(folder)
    theirs, ours = annotations.image_ids, split.image_ids
    if not np.array_equal(theirs, ours):
        where = f"{len(theirs)} there, {len(ours)} in the split"
        if len(theirs) == len(ours):
            first = np.flatnonzero(theirs != ours)[0]
            where = f"image {first} is {theirs[first]} there and {ours[first]} in the split"
        raise InputError(
            f"{folder}: testall_ids.txt lists other images than the split ({where}); "
            "both must be COCO's testall in the same order"
        )
    return annotations


def write_outputs(place: tuple[Path, str], args: argparse.Namespace, matrix: np.ndarray, info: dict) -> None:
    """The figures as JSON, and the matrix where it was asked for; a part of a split never replaces the whole's."""
    folder, own = place
    ending = f"{'_limited' if info['limit'] else ''}{own}"
    figures = folder / f"metrics_{args.dataset}_{args.split}{ending}.json"
    write_json(figures, plain(info))
    print(f"figures: {figures}")
    if args.save_results:
        target = folder / f"results_{args.dataset}{ending}.npy"
        save_results(target, matrix, info)
        print(f"matrix:  {target}")


def output_places(paths: list[Path], args: argparse.Namespace) -> list[tuple[Path, str]]:
    """The folder of each checkpoint's results, and what is added to their names where checkpoints share a folder."""
    folders = [output_folder(path, args) for path in paths]
    return [
        (folder, f"_{path.parent.name}_{path.stem}" if folders.count(folder) > 1 else "")
        for path, folder in zip(paths, folders, strict=True)
    ]


def output_folder(path: Path, args: argparse.Namespace) -> Path:
    return Path(args.output) if args.output else path.parent


def released_files(dataset: str) -> list[Path]:
    """The checkpoint of every runs/release_weights/<dataset>_*/; InputError that says where it looked."""
    found = []
    for folder in sorted(RELEASED.glob(f"{dataset}_*")):
        names = [folder / "model_best.pth"] if (folder / "model_best.pth").is_file() else []
        found += names or sorted([*folder.glob("*.pth"), *folder.glob("*.tar")])
    if not found:
        raise InputError(
            f"no checkpoint: looked for model_best.pth, *.pth and *.tar in "
            f"{RELEASED.resolve()}/{dataset}_*/; "
            "put released weights there or name files with --model_path"
        )
    return found


if __name__ == "__main__":
    main()
