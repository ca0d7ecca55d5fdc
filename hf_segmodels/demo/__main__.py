# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Segment a photograph with the packaged model.

    python -m hf_segmodels.demo [--image PATH] [--output PATH]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..utils.errors import UserError, first_line
from .sample import CREDIT, DEMO_MODEL, PHOTOGRAPH, sample_photograph


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo. Returns 0, or 2 for an error in the arguments or a missing package."""
    parser = argparse.ArgumentParser(prog="python -m hf_segmodels.demo", description="Segments a photograph.")
    parser.add_argument("--image", type=Path, metavar="PATH", help="image file (default: a photograph of scikit-learn)")
    parser.add_argument(
        "--output", type=Path, metavar="PATH", help="file for the picture (default: demo_output/NAME_overlay.png)"
    )
    parser.add_argument("--model", default=str(DEMO_MODEL), help="folder of another model, or name of a repository")
    try:
        _run(**vars(parser.parse_args(argv)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(image: Path | None, output: Path | None, model: str) -> None:
    from ..image_processing import read_image
    from ..inference.predictor import load_predictor
    from ..visualization import add_legend, class_shares, overlay, palette_for, side_by_side

    output = output or Path("demo_output") / f"{(image or Path(PHOTOGRAPH)).stem}_overlay.png"
    if image and output.resolve() == image.resolve():
        raise UserError(f"--output is the image {image}: choose another path.")
    try:
        photograph = read_image(image) if image else None
    except Exception as error:  # decoders raise any exception for damaged files
        raise UserError(f"cannot read {image} ({first_line(error)}): give an image file.") from error
    photograph = photograph or sample_photograph()
    predictor = load_predictor(model)
    label_map = predictor(photograph)
    palette = palette_for(predictor.model.config)
    shares = class_shares(label_map, predictor.id2label, ignore_index=None)
    painted = add_legend(overlay(photograph, label_map, palette, ignore_index=None), shares, palette)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        side_by_side([photograph, painted]).save(output)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot write {output} ({first_line(error)}): choose another --output, such as out.png."
        ) from error

    width = max(len(share.name) for share in shares)
    print(f"Classes found in {image or PHOTOGRAPH} ({photograph.width} x {photograph.height} pixels):")
    for share in shares:
        print(f"  {share.name:<{width}}  {share.percent:>7}")
    if image is None:
        print(f"{CREDIT} The colors were added here.")
    print(f"The picture is in {output.resolve()}")


if __name__ == "__main__":
    sys.exit(main())
