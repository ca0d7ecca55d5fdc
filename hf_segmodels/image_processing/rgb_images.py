# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""From image files and PIL images of any mode to 8-bit RGB."""

from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps


def read_image(path: str | Path) -> PIL.Image.Image:
    """
    Reads an image as 8-bit RGB (see [`to_rgb`]), turned upright as its EXIF data says. Of animations and files with
    several pages, this is the first picture.

    Raises:
        OSError: if the file is missing or no image. Damaged files can make Pillow raise other errors.
    """
    with PIL.Image.open(path) as file:
        return to_rgb(PIL.ImageOps.exif_transpose(file))


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """
    Converts an image of any mode to 8-bit RGB.

    Transparent parts become white. 16-bit grays are divided by 257; 32-bit ones are scaled from their lowest to their
    highest value.
    """
    if image.mode.startswith("I;16"):
        return _gray_to_rgb(np.asarray(image), 0, 65535)
    if image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        return _gray_to_rgb(values, values.min(), values.max())
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        return PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _gray_to_rgb(values: np.ndarray, low: float, high: float) -> PIL.Image.Image:
    # Pillow's own conversion cuts everything above 255 off
    scaled = (values.astype(np.float64) - low) * (255 / max(high - low, 1e-12))
    return PIL.Image.fromarray(scaled.round().astype(np.uint8)).convert("RGB")
