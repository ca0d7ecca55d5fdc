# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""`hf-segmodels train`."""

import argparse
from typing import Any

from ..utils.errors import UserError, first_line


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="train a model from a recipe",
        description="Trains a model. The recipe's output_dir receives the model, results.json, curves.png, predictions.png and "
        "checkpoints. On several GPUs: accelerate launch -m hf_segmodels.cli train ...",
        epilog="Exit code: 0 if the training finished, 2 for an invalid recipe, data that cannot be used, or a missing package.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file with the settings of the run")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="settings to replace, as YAML: max_steps=500, model.window_size=512, resume=true",
    )
    parser.add_argument(
        "--trainer", action="store_true", help="use transformers' Trainer (default: a loop on Accelerate)"
    )


def run(arguments: argparse.Namespace) -> int:
    try:
        from ..training.recipe import Recipe

        if arguments.trainer:
            from ..training.trainer_loop import train
        else:
            from ..training.accelerate_loop import train
    except ImportError as error:
        raise UserError(f"training needs {error.name}: pip install 'hf_segmodels[train]'.") from error
    try:
        train(Recipe.read(arguments.recipe, arguments.overrides))
    except (OSError, ValueError, FloatingPointError, ImportError) as error:
        raise UserError(first_line(error)) from error
    return 0
