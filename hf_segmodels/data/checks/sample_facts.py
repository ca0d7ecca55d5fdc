# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Properties of an image and its label map in a few numbers, which the workers of the label checks return."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import PIL.Image
import PIL.ImageChops

from ...image_processing.label_maps import drop_channel
from ...utils.errors import first_line
from ..label_reader import LabelReader, open_image


# Arrays with larger values are sorted instead of counted in one bin per value
_MAX_BINS = 2**20
# Markers of a complete file, which are within the last bytes
_END_MARKERS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_TAIL = 4096
_ORIENTATION = 0x0112
# Orientations that swap width and height
_TRANSPOSED = (5, 6, 7, 8)


@dataclass
class SampleFacts:
    """Properties of an image and its label map. Sizes are `"WIDTHxHEIGHT"`, empty if unreadable."""

    name: str
    image_size: str = ""
    is_rotated: bool = False
    """Whether EXIF data rotates or mirrors the image."""
    image_error: str = ""
    label_size: str = ""
    label_mode: str = ""
    """PIL mode, or the dtype of an array."""
    label_format: str = ""
    label_error: str = ""
    is_gray: bool = False
    """Whether a label map with several channels has the same values in all of them."""
    values: dict[int, int] = field(default_factory=dict)
    """Number of pixels of each value in the file."""
    colors: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Palette colors of these values."""

    @property
    def is_float(self) -> bool:
        """Whether the label map holds floating-point numbers."""
        return self.label_mode == "F" or self.label_mode.startswith("float")


def read_sample_facts(row: Mapping[str, Any], name: str, reader: LabelReader) -> SampleFacts:
    """
    Read a label map and the header of its image. The image is decoded only if its file seems truncated.

    Args:
        row (`Mapping`): `image` and `label`, undecoded.
        name (`str`): Name of the sample in the report.
        reader (`LabelReader`): Reader for the label map.

    Raises:
        ImportError: if a library for the annotation format is not installed.
    """
    facts = SampleFacts(name)
    try:
        _add_image(facts, row["image"])
    # Pillow raises many kinds of errors for damaged files
    except Exception as error:
        facts.image_error = first_line(error)
    try:
        _add_label_map(facts, reader.read_raw(row["label"]))
    except ImportError:
        raise
    except Exception as error:
        facts.label_error = first_line(error)
    return facts


def _add_image(facts: SampleFacts, value: Any) -> None:
    image = open_image(value)
    if _is_truncated(image):
        image.load()
    # Pillow decodes a PNG file without EXIF data to search for it
    has_exif = image.format != "PNG" or "exif" in image.info
    orientation = image.getexif().get(_ORIENTATION, 1) if has_exif else 1
    facts.is_rotated = orientation in range(2, 9)
    width, height = image.size
    facts.image_size = f"{height}x{width}" if orientation in _TRANSPOSED else f"{width}x{height}"


def _is_truncated(image: PIL.Image.Image) -> bool:
    """Whether the marker at the end of the file is missing."""
    file: BinaryIO | None = getattr(image, "fp", None)
    marker = _END_MARKERS.get(image.format or "")
    if file is None or marker is None:
        return False
    position = file.tell()
    length = file.seek(0, os.SEEK_END)
    file.seek(max(0, length - _TAIL))
    tail = file.read()
    file.seek(position)
    return marker not in tail


def _add_label_map(facts: SampleFacts, label_map: PIL.Image.Image | np.ndarray) -> None:
    if isinstance(label_map, np.ndarray):
        values = np.asarray(drop_channel(label_map))
        if values.ndim != 2:
            raise ValueError(f"an array of shape {values.shape} is not a label map, (height, width)")
        facts.label_mode = str(label_map.dtype)
        facts.label_size = f"{values.shape[1]}x{values.shape[0]}"
        facts.values = _count(values)
        return
    label_map.load()
    facts.label_mode, facts.label_format = label_map.mode, label_map.format or ""
    facts.label_size = f"{label_map.width}x{label_map.height}"
    bands = label_map.getbands()
    if len(bands) > 1:
        first, *others = [label_map.getchannel(band) for band in bands if band not in ("A", "a")]
        facts.is_gray = not any(PIL.ImageChops.difference(first, other).getbbox() for other in others)
        return
    if label_map.mode in ("L", "P"):
        # faster than counting in an array
        facts.values = {value: pixels for value, pixels in enumerate(label_map.histogram()) if pixels}
    else:
        facts.values = _count(np.asarray(label_map))
    if label_map.mode == "P":
        palette = label_map.getpalette("RGB") or []
        facts.colors = {
            value: tuple(palette[3 * value : 3 * value + 3]) for value in facts.values if 3 * value < len(palette)
        }


def _count(values: np.ndarray) -> dict[int, int]:
    """Number of pixels of each value; empty for arrays of floats."""
    if values.dtype.kind not in "biu" or values.size == 0:
        return {}
    if values.min() >= 0 and values.max() < _MAX_BINS:
        counts = np.bincount(values.ravel())
        (present,) = counts.nonzero()
        return {int(value): int(counts[value]) for value in present}
    return {int(value): int(pixels) for value, pixels in zip(*np.unique(values, return_counts=True), strict=True)}
