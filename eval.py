"""Evaluate checkpoints, our own or released ESL and VSE-infinity files, on COCO, Flickr30K, CxC or your own data.

The configuration comes from the file. Without --model_path, every runs/release_weights/<dataset>_*/ is evaluated.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from lib.commands.flags import add_image_arguments, add_machine_arguments, add_path_arguments
from lib.console.parser import Parser, existing
from lib.console.script import script
from lib.core.errors import InputError
from lib.core.values import positive
from lib.datasets import DATA_NAME, data_set, known_name
from lib.datasets.layout import precomp_folder
from lib.evaluation.matrices.together import Setting, check_protocols
from lib.evaluation.protocols import PROTOCOLS
from lib.evaluation.queries import check_table_name
from lib.evaluation.tables import FORMS

RELEASED, ZERO_SHOT = Path("runs/release_weights"), Path("runs/zero_shot")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--dataset", "--data_name", default="coco", help=DATA_NAME)
    add("--data_path", metavar="DIR", help="folder of the data set (default: data/<dataset>)")
    models = f"checkpoints (default: those in {RELEASED}/<dataset>_*/)"
    add("--model_path", nargs="+", metavar="FILE", type=existing, help=models)
    clip = f"plain CLIP without training, saved as a checkpoint in {ZERO_SHOT} or --output"
    add("--zero_shot", metavar="DIR|NAME", help=clip)
    add("--split", help="split to evaluate (default: testall for coco, else test)")
    add("--limit", type=positive(int), help="only the first N images, for a quick look")
    for name, protocol in PROTOCOLS.items():
        add(f"--evaluate_{name}", action="append_const", const=name, dest="protocols", help=protocol.help)
    add(
        "--save_results",
        action="store_true",
        help="save the similarity matrix as results_<dataset>.npy beside the checkpoint",
    )
    add(
        "--save_queries",
        nargs="?",
        const="",
        metavar="NAME",
        help="what each query got, a table of each direction: .csv or .jsonl (default: queries_<dataset>.csv)",
    )
    add("--output", metavar="DIR", help="folder of the result files (default: beside the checkpoint)")
    form = "form of the tables; with any but text, nothing else goes to stdout"
    add("--format", choices=FORMS, default="text", help=form)
    add("--batch_size", type=positive(int), default=128, help="images, and captions, that are encoded at a time")
    add_path_arguments(parser, evaluation=True)
    add_image_arguments(parser)
    add_machine_arguments(parser)
    args = parser.parse_args(argv)
    args.dataset = known_name(args.dataset)
    data = data_set(args.dataset)
    args.data_path = args.data_path or f"data/{args.dataset}"
    args.split = args.split or data.evaluated
    if args.zero_shot and args.model_path:
        raise InputError("--zero_shot and --model_path name different models; give one of them")
    if args.zero_shot:
        args.clip_path, args.output = args.zero_shot, args.output or ZERO_SHOT
    else:
        args.model_path = args.model_path or released_files(args.dataset)
    args.protocols = args.protocols or []
    if args.save_queries is not None:
        args.save_queries = check_table_name(args.save_queries or f"queries_{args.dataset}.csv", "--save_queries")
    check_protocols(args.protocols, Setting(args.dataset, args.split, args.limit))
    precomp_folder(args.data_path, args.dataset)
    return args


def released_files(dataset: str) -> list[str]:
    """The checkpoint of every runs/release_weights/<dataset>_*/; InputError that says where it looked."""
    checkpoints = []
    for folder in sorted(RELEASED.glob(f"{dataset}_*")):
        names = [folder / "model_best.pth"] if (folder / "model_best.pth").is_file() else []
        checkpoints += names or sorted([*folder.glob("*.pth"), *folder.glob("*.tar")])
    if not checkpoints:
        raise InputError(
            f"no checkpoint: looked for model_best.pth, *.pth and *.tar in {RELEASED.resolve()}/{dataset}_*/; put "
            "released weights there or name files with --model_path"
        )
    return checkpoints


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    from lib.commands.evaluate import evaluate_all  # imports torch, for which no error in the flags should wait

    evaluate_all(args)


if __name__ == "__main__":
    main()
