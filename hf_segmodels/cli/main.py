# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
The program `hf-segmodels`.

    hf-segmodels segment photo.jpg folder/ --model FOLDER_OR_REPO --output results
    hf-segmodels segment-dataset DATASET --model FOLDER_OR_REPO --output results
    hf-segmodels train RECIPE.yaml max_steps=500
    hf-segmodels evaluate --model FOLDER_OR_REPO --dataset data/ADEChallengeData2016 --layout ade20k
    hf-segmodels convert --method segmenter --checkpoint checkpoint.pth --output_dir converted
    hf-segmodels check-data ADEChallengeData2016
    hf-segmodels publish FOLDER --repo-id OWNER/NAME
    hf-segmodels demo --model FOLDER_OR_REPO

Each command is a module with `add_parser(commands)` and `run(arguments)`. torch and the models are imported by `run`, so
that help and errors in the arguments show at once.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from .. import __version__
from ..utils.errors import UserError
from . import check_data, convert, demo, evaluate, publish, segment, segment_dataset, train


COMMANDS = (segment, segment_dataset, check_data, train, evaluate, convert, publish, demo)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see `{self.prog} --help`)")


def create_parser() -> argparse.ArgumentParser:
    """Return the complete parser, with a subparser for each command. Errors in the arguments raise [`UserError`]."""
    parser = _Parser(prog="hf-segmodels", description="Semantic segmentation with plain vision transformers.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run `hf-segmodels`.

    Args:
        argv (`Sequence[str]`, *optional*): Arguments without the program's name. Defaults to those of the process.

    Returns:
        `int`: 0 on success; 1 if some images failed, label issues were found, or a converted model differs from the original;
        2 for an error that the user can fix; 130 if interrupted.
    """
    try:
        arguments = create_parser().parse_args(argv)
        run = arguments.run
        # what remains are the options of the command
        del arguments.run, arguments.command
        from ..auto import register

        register()
        return run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
