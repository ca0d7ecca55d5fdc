# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""`hf-segmodels convert`, called with the arguments of the command."""

from collections.abc import Sequence

from hf_segmodels.cli.main import main as run_program


def main(arguments: Sequence[str]) -> int:
    return run_program(["convert", *arguments])
