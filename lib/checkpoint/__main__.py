"""Command line: convert a checkpoint to our format, a released layout or safetensors, or say what a file is."""

from __future__ import annotations

import argparse
import dataclasses
import os

from lib.checkpoint.formats import FORMATS
from lib.console.parser import Parser, existing
from lib.console.script import script
from lib.core.errors import InputError

_WRITTEN = {"ours": "our format", "safetensors": "safetensors, its configuration in the metadata"}
_BERT_HELP = (
    "folder or hub name of a BERT configuration that fits the weights of a released file, for the number of attention "
    "heads (default: heads of 64, as in every BERT release)"
)


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="python -m lib.checkpoint", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    change = commands.add_parser("convert", help="write a checkpoint in another format")
    change.add_argument("source", metavar="IN", type=existing, help="checkpoint: our own or a released one")
    change.add_argument("target", metavar="OUT", help="the file that is written")
    change.add_argument("--to", choices=FORMATS, required=True, help="the format of OUT")
    show = commands.add_parser("show", help="say what a checkpoint is")
    show.add_argument("source", metavar="FILE", type=existing, help="checkpoint: our own or a released one")
    for command in (change, show):
        command.add_argument("--bert_path", metavar="DIR|NAME", help=_BERT_HELP)
    return top


@script
def main(argv=None) -> None:
    args = parser().parse_args(argv)
    from lib.checkpoint import convert, read_checkpoint
    from lib.checkpoint.loading import check_complete
    from lib.checkpoint.reading import checkpoint_file
    from lib.encoders.bert import bert_values, load_bert_config

    paths = {} if args.bert_path is None else {"bert_values": bert_values(load_bert_config(args.bert_path))}
    args.source = checkpoint_file(args.source)
    if args.command == "show":
        checkpoint = read_checkpoint(args.source, paths)
        check_complete(checkpoint)
        print("\n".join(_lines(checkpoint)))
        return
    if os.path.realpath(args.source) == os.path.realpath(args.target):
        raise InputError(f"{args.target}: is IN as well; name another file for OUT")
    checkpoint = convert(args.source, args.target, args.to, paths)
    print(f"{args.source}: {checkpoint.description}")
    layout = _WRITTEN.get(args.to, "the released layout")
    print(f"{args.target}: written in {layout}")
    if args.to != "ours" and checkpoint.optimizer:
        print(f"the state of the optimizer has no place in {layout.partition(',')[0]} and was left out")


def _lines(checkpoint) -> list[str]:
    config = dataclasses.asdict(checkpoint.config)
    parts = {part: config.pop(f"{part}_options") for part in ("similarity", "image", "text")}
    weights = sum(tensor.numel() for tensor in checkpoint.model.values())
    settings = [f"{name} {value}" for name, value in sorted(checkpoint.settings.items()) if value not in ("", None)]
    return [
        f"{checkpoint.path}: {checkpoint.description}",
        f"epoch {checkpoint.epoch}, step {checkpoint.step}, best RSUM {checkpoint.best_rsum:.1f}, "
        f"{'with' if checkpoint.optimizer else 'without'} optimizer",
        f"{weights:,} values in {len(checkpoint.model)} tensors, and {len(checkpoint.extras)} unused tensors",
        "model: " + ", ".join(f"{name} {value}" for name, value in config.items()),
        *(
            f"{part}: {', '.join(f'{name} {value}' for name, value in options.items())}"
            for part, options in parts.items()
        ),
        f"settings: {', '.join(settings) or 'none'}",
    ]


if __name__ == "__main__":
    main()
