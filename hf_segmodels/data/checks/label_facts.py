# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""What one image and its label map are, in a few numbers: what the doctor's workers send back."""

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


# Array of a label map's values is counted with a bin for each up to this one
_MAX_BINS = 2**20
# Bytes at the end of a whole file, and how far from the end they may be
_ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
_TAIL = 4096
_ORIENTATION = 0x0112
# Orientations that swap height and width
_TRANSPOSED = (5, 6, 7, 8)


@dataclass
class SampleFacts:
    """An image and its label map. Sizes are `(width, height)`."""

    name: str
    image_size: tuple[int, int] | None = None
    is_turned: bool = False
    """Whether its EXIF data turns or mirrors the image."""
    image_error: str = ""
    label_size: tuple[int, int] | None = None
    label_mode: str = ""
    """PIL's mode, or the dtype of an array."""
    label_format: str = ""
    label_error: str = ""
    is_gray: bool = False
    """Whether all channels of a map with several are equal."""
    values: dict[int, int] = field(default_factory=dict)
    """Pixels of each value, as it is in the file."""
    colors: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Of these values, where the file has a palette."""


def sample_facts(row: Mapping[str, Any], name: str, reader: LabelReader) -> SampleFacts:
    """
    Reads a label map whole and an image's header; of an image that seems cut off, all.

    Args:
        row (`Mapping`): `image` and `label`, undecoded.
        name (`str`): What the report calls it.
        reader (`LabelReader`): Reads the label map.
    """
    facts = SampleFacts(name)
    try:
        _add_image(facts, row["image"])
    # Pillow raises errors of many kinds on damaged files
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
    if _is_cut_off(image):
        image.load()
    # for PNG files without EXIF data, Pillow would decode the image to look for it
    has_exif = image.format != "PNG" or "exif" in image.info
    orientation = image.getexif().get(_ORIENTATION, 1) if has_exif else 1
    facts.is_turned = orientation in range(2, 9)
    width, height = image.size
    facts.image_size = (height, width) if orientation in _TRANSPOSED else (width, height)


def _is_cut_off(image: PIL.Image.Image) -> bool:
    """Whether the end of its file is not what it should be."""
    file: BinaryIO | None = getattr(image, "fp", None)
    ending = _ENDINGS.get(image.format or "")
    if file is None or ending is None:
        return False
    place = file.tell()
    length = file.seek(0, os.SEEK_END)
    file.seek(max(0, length - _TAIL))
    tail = file.read()
    file.seek(place)
    return ending not in tail


def _add_label_map(facts: SampleFacts, label_map: PIL.Image.Image | np.ndarray) -> None:
    if isinstance(label_map, np.ndarray):
        facts.label_mode = str(label_map.dtype)
        values = np.asarray(drop_channel(label_map))
        if values.ndim != 2:
            raise ValueError(f"an array of shape {values.shape} is no map of classes")
        facts.label_size = (values.shape[1], values.shape[0])
        facts.values = _count(values)
        return
    label_map.load()
    facts.label_mode, facts.label_format = label_map.mode, label_map.format or ""
    facts.label_size = label_map.size
    bands = label_map.getbands()
    if len(bands) > 1:
        first, *others = [label_map.getchannel(band) for band in bands if band not in ("A", "a")]
        facts.is_gray = not any(PIL.ImageChops.difference(first, other).getbbox() for other in others)
        return
    if label_map.mode in ("L", "P"):
        # faster than through an array
        facts.values = {value: pixels for value, pixels in enumerate(label_map.histogram()) if pixels}
    else:
        facts.values = _count(np.asarray(label_map))
    if label_map.mode == "P":
        palette = label_map.getpalette("RGB") or []
        facts.colors = {
            value: tuple(palette[3 * value : 3 * value + 3]) for value in facts.values if 3 * value < len(palette)
        }


def _count(values: np.ndarray) -> dict[int, int]:
    """Pixels of each value; nothing for fractions."""
    if values.dtype.kind not in "biu" or values.size == 0:
        return {}
    if values.min() >= 0 and values.max() < _MAX_BINS:
        counts = np.bincount(values.ravel())
        (present,) = counts.nonzero()
        return {int(value): int(counts[value]) for value in present}
    return {int(value): int(pixels) for value, pixels in zip(*np.unique(values, return_counts=True), strict=True)}


__all__ = ["SampleFacts", "sample_facts"]
