# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""`hf-segmodels evaluate`."""

import argparse
from pathlib import Path
from typing import Any

from ..utils.arguments import add_device_options, add_model_option, add_prediction_options


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="score a model on a data set: mean IoU, accuracies, IoU of each class",
        description="Scores a model on a data set by the papers' protocol: sliding window, scales and flip, label maps at "
        "their own size, pixel counts over the whole set. On several GPUs: accelerate launch -m hf_segmodels.cli evaluate ...",
        epilog="Exit code: 0 on success, 2 for an error in the arguments or data that cannot be used.",
    )
    parser.set_defaults(run=run)
    add_model_option(parser)
    parser.add_argument("--dataset", required=True, help="folder, or name of a data set on the Hub")
    parser.add_argument("--layout", help="layout of the folder, such as ade20k (default: as `datasets` reads it)")
    parser.add_argument("--split", default="validation", help="(default: validation)")
    parser.add_argument("--image-column", default="image", help="(default: image)")
    parser.add_argument("--label-column", default="label", help="(default: label)")
    parser.add_argument("--label-mapping", metavar="JSON", help="file that maps values of label maps to classes")
    parser.add_argument("--boundary-iou", action="store_true", help="add the IoU of the pixels along class boundaries")
    parser.add_argument("--object-sizes", action="store_true", help="add the mean IoU by size of the objects")
    parser.add_argument("--output", type=Path, metavar="JSON", help="file for the results")
    add_device_options(parser)
    add_prediction_options(parser)


def run(arguments: argparse.Namespace) -> int:
    from ..evaluation.evaluate import evaluate

    evaluate(**vars(arguments))
    return 0
