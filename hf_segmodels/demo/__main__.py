# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Segments a photograph with the small model that is part of the package (11 classes of street scenes, trained on CamVid).

    python -m hf_segmodels.demo [--image PATH] [--output PATH]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..utils.errors import UserError, first_line


if TYPE_CHECKING:
    from PIL import Image

DEMO_MODEL = Path(__file__).parent / "model"

PHOTOGRAPH = "china.jpg"
CREDIT = (
    f"Photograph: {PHOTOGRAPH} of scikit-learn, by danielbuechele (www.flickr.com/photos/danielbuechele), "
    "CC BY 2.0 (creativecommons.org/licenses/by/2.0); the colors were laid over it here."
)


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs the demo.

    Args:
        argv (`Sequence[str]`, *optional*): Arguments without the program's name; those of the process if unset.

    Returns:
        `int`: 0, or 2 for a mistake in the arguments or a missing package.
    """
    parser = argparse.ArgumentParser(prog="python -m hf_segmodels.demo", description="Segments a photograph.")
    parser.add_argument("--image", type=Path, metavar="PATH", help="a photograph of yours (default: scikit-learn's)")
    parser.add_argument(
        "--output", type=Path, metavar="PATH", help="the picture to write (default: demo_output/NAME_overlay.png)"
    )
    parser.add_argument("--model", default=str(DEMO_MODEL), help="folder of another model, or name of a repository")
    arguments = parser.parse_args(argv)
    try:
        run(arguments.image, arguments.output, arguments.model)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(image_path: Path | None, output: Path | None, model: str) -> None:
    """Segments the image, or the photograph of scikit-learn, and writes it with its overlay and a legend to `output`."""
    from ..inference.predictor import load_predictor
    from ..visualization import add_legend, class_shares, overlay, palette_for, side_by_side

    name = image_path.stem if image_path else Path(PHOTOGRAPH).stem
    output = output or Path("demo_output") / f"{name}_overlay.png"
    if image_path and output.resolve() == image_path.resolve():
        raise UserError(f"--output is the image itself, {image_path}: choose another path.")
    image = _read(image_path) if image_path else sample_photograph()
    predictor = load_predictor(model)
    label_map = predictor(image)

    palette = palette_for(predictor.model.config)
    shares = class_shares(label_map, predictor.id2label, ignore_index=None)
    painted = add_legend(overlay(image, label_map, palette, ignore_index=None), shares, palette)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        side_by_side([image, painted]).save(output)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot write {output} ({first_line(error)}): choose another --output, such as out.png."
        ) from error

    width = max(len(share.name) for share in shares)
    print(f"Classes found in {image_path or PHOTOGRAPH} ({image.width} x {image.height} pixels):")
    for share in shares:
        print(f"  {share.name:<{width}}  {share.percent:>7}")
    if image_path is None:
        print(CREDIT)
    print(f"The picture is in {output.resolve()}")


def _read(path: Path) -> "Image.Image":
    from ..image_processing import read_image

    try:
        return read_image(path)
    except Exception as error:  # decoders of damaged files raise anything
        raise UserError(f"cannot read {path} ({first_line(error)}): give an image file.") from error


def sample_photograph() -> "Image.Image":
    """
    The photograph that the demo segments, RGB.

    Raises:
        UserError: without scikit-learn, which ships it.
    """
    try:
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise UserError(
            "the photograph comes with scikit-learn, which is not installed: `pip install 'hf_segmodels[demo]'`, or give "
            "a photograph of yours with --image PATH."
        ) from error
    from PIL import Image

    return Image.fromarray(load_sample_image(PHOTOGRAPH))


if __name__ == "__main__":
    sys.exit(main())
