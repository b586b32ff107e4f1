"""Train an image-text matching model and keep the epoch with the best RSUM on dev."""

from __future__ import annotations

import argparse
import os

from lib.commands.flags import (
    add_data_arguments,
    add_image_arguments,
    add_machine_arguments,
    add_model_arguments,
    add_path_arguments,
    add_training_arguments,
    check_training,
)
from lib.console.parser import Parser
from lib.console.script import command_line, script
from lib.datasets import known_name
from lib.datasets.layout import precomp_folder


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add_data_arguments(parser)
    add_image_arguments(parser)
    add_model_arguments(parser)
    add_path_arguments(parser)
    add_training_arguments(parser)
    add_machine_arguments(parser)
    args = parser.parse_args(argv)
    args.data_name = known_name(args.data_name)
    args.data_path = args.data_path or f"data/{args.data_name}"
    args.model_name = args.model_name or f"runs/{args.data_name}_{args.similarity}"
    args.logger_name = args.logger_name or os.path.join(args.model_name, "log")
    check_training(args)
    return args


@script
def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    precomp_folder(args.data_path, args.data_name)  # a missing folder is said before torch is imported
    from lib.commands.train import train

    train(args, command_line(argv))


if __name__ == "__main__":
    main()
