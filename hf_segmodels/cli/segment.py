# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""`hf-segmodels segment`."""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.arguments import add_device_options, add_model_option, add_prediction_options, number


if TYPE_CHECKING:
    from ..visualization import ClassShare


_MAX_ROWS = 20


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "segment",
        help="segment images: an overlay with a legend and a label map for each",
        description="Segments images. For each image, DIR gets NAME_overlay.png (the class colors over the image, and a "
        "legend) and NAME_labels.png (the class index of each pixel: a palette image, or 16-bit gray for more than 256 "
        "classes). DIR/summary.json lists the classes in each image and their share of the pixels.",
        epilog="Exit code: 0 on success, 1 if some images could not be segmented (the others were), 2 for an error in the "
        "arguments.",
    )
    parser.set_defaults(run=run)
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files, or folders of images")
    add_model_option(parser)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder for the results")
    parser.add_argument("--recursive", action="store_true", help="also search subfolders")
    parser.add_argument("--skip-existing", action="store_true", help="skip images that have results in DIR")
    parser.add_argument(
        "--alpha", type=number(0, 1), default=0.5, metavar="A", help="opacity of the overlay, 0 to 1 (default: 0.5)"
    )
    parser.add_argument(
        "--attention", choices=["eager", "sdpa"], help="attention implementation (default: that of transformers)"
    )
    add_device_options(parser)
    add_prediction_options(parser)


def run(arguments: argparse.Namespace) -> int:
    from ..inference.segment_images import SUMMARY, segment_images

    results = segment_images(**vars(arguments))
    names = list(results.segmented)
    width = max((len(name) for name in names[:_MAX_ROWS]), default=0)
    for name in names[:_MAX_ROWS]:
        shares = results.segmented[name]
        largest = ", ".join(f"{share.name} {share.percent}" for share in shares[:4])
        print(f"{name:<{width}}  {largest}{', ...' if len(shares) > 4 else ''}")
    if len(names) > _MAX_ROWS:
        print(f"... and {len(names) - _MAX_ROWS} more images, see {SUMMARY}")
    if len(names) > 1:
        print_totals(results.totals, Counter(share.name for shares in results.segmented.values() for share in shares))
    skipped = f", {len(results.skipped)} skipped (already done)" if results.skipped else ""
    print(f"{len(names)} segmented{skipped}; overlays, label maps and {SUMMARY} are in {arguments.output}")
    for path, message in results.failed:
        print(f"error: {path}: {message}", file=sys.stderr)
    if results.failed:
        num_images = len(names) + len(results.failed)
        print(f"error: {len(results.failed)} of {num_images} images could not be segmented.", file=sys.stderr)
    return 1 if results.failed else 0


def print_totals(shares: Sequence["ClassShare"], num_images: Counter[str]) -> None:
    """Print a table of the classes: share of all pixels, and number of images with the class."""
    shown = shares[:_MAX_ROWS]
    width = max(len(share.name) for share in shown)
    print(f"\n{'class':<{width}}  {'share':>7}  images")
    for share in shown:
        print(f"{share.name:<{width}}  {share.percent:>7}  {num_images[share.name]:>6}")
    if len(shares) > _MAX_ROWS:
        print(f"... and {len(shares) - _MAX_ROWS} more classes, see summary.json")
    print()
