# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Types of command line arguments, and the options that several commands have in common. Imports no torch."""

import argparse
from collections.abc import Callable


def whole_number(low: int, high: int | None = None) -> Callable[[str], int]:
    """Return a parser for whole numbers from `low` on, or from `low` to `high`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < low or (high is not None and int(text) > high):
            limits = f"from {low} on" if high is None else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {limits}")
        return int(text)

    return parse


def number(low: float, high: float) -> Callable[[str], float]:
    """Return a parser for numbers from `low` to `high`."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {high}")
        return value

    return parse


def parse_pixels(text: str) -> tuple[int, int]:
    """`"512"` or `"768x1024"` as `(height, width)`."""
    numbers = text.lower().split("x")
    if len(numbers) > 2 or not all(item.isdecimal() and int(item) > 0 for item in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of pixels (512) nor HEIGHTxWIDTH (768x1024)")
    return int(numbers[0]), int(numbers[-1])


def parse_window(text: str) -> tuple[int, int] | int:
    """`"512"` or `"768x1024"` as `(height, width)`, or `"0"` for the whole image."""
    return 0 if text == "0" else parse_pixels(text)


def add_model_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="folder of a model, or name of a repository on the Hub")


def add_prediction_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `predict`. The parsed arguments contain only those that were given."""
    options = parser.add_argument_group("prediction", argument_default=argparse.SUPPRESS)
    options.add_argument(
        "--window",
        dest="window_size",
        type=parse_window,
        metavar="N|HxW",
        help="size of the sliding window, in pixels of the image as the model's processor resizes it; 0: the whole image "
        "at once (default: from the model's configuration)",
    )
    options.add_argument(
        "--stride",
        dest="window_stride",
        type=parse_pixels,
        metavar="N|HxW",
        help="stride of the window (default: from the model's configuration)",
    )
    options.add_argument(
        "--scales",
        nargs="+",
        type=number(0.1, 10),
        metavar="S",
        help="average over the image at these scales, 0.1 to 10 (default: 1.0)",
    )
    options.add_argument("--flip", action="store_true", help="average over the image and its mirror image")


def add_device_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: cuda if available, otherwise cpu)")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="(default: float32)"
    )
