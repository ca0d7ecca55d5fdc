# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Properties of an image and its label map in a few numbers, which the workers of the label checks return, and the checks of
single samples, in the list `SAMPLE_CHECKS`.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageChops

from ...image_processing.label_maps import drop_channel
from ...utils.errors import first_line
from ..label_reader import LabelReader, open_image
from ..specs import LabelSpec


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


def read_sample_facts(row: Mapping[str, Any], index: int, reader: LabelReader) -> SampleFacts:
    """Read a label map and the header of its image. The image is decoded only if its file seems truncated."""
    facts = SampleFacts(_sample_name(row, index))
    try:
        _add_image(facts, row["image"])
    # Pillow raises many kinds of errors for damaged files
    except Exception as error:
        facts.image_error = first_line(error)
    try:
        _add_label_map(facts, reader.read_raw(row["label"]))
    # a library for the annotation format is not installed
    except ImportError:
        raise
    except Exception as error:
        facts.label_error = first_line(error)
    return facts


def _sample_name(row: Mapping[str, Any], index: int) -> str:
    """File of the label map or of the image, otherwise the row."""
    for value in (row["label"], row["image"]):
        if isinstance(value, Mapping) and value.get("path"):
            return str(value["path"]) if value.get("bytes") is None else f"row {index} ({value['path']})"
    return f"row {index}"


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
    file, marker = getattr(image, "fp", None), _END_MARKERS.get(image.format or "")
    if file is None or marker is None:
        return False
    position = file.tell()
    file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
    is_truncated = marker not in file.read()
    file.seek(position)
    return is_truncated


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
        present = counts.nonzero()[0]
        pixels = counts[present]
    else:
        present, pixels = np.unique(values, return_counts=True)
    return dict(zip(present.tolist(), pixels.tolist(), strict=True))


Colors = dict[int, tuple[int, ...]]


@dataclass(frozen=True)
class SampleCheck:
    """A check of one sample."""

    name: str
    description: str
    find: Callable[[SampleFacts, LabelSpec, Colors], str | bool]
    """Takes a sample, the meaning of the labels, and the first color of each value. Returns whether the sample has the
    issue, or a detail of the issue (empty if the sample does not have it)."""
    message: str
    """The problem and the fix. `{}` stands for the detail of the first sample."""
    is_warning: bool = False


def _size_mismatch(facts: SampleFacts, labels: LabelSpec, colors: Colors) -> str:
    differs = facts.image_size and facts.label_size and facts.image_size != facts.label_size
    return f"{facts.image_size} and {facts.label_size}" if differs else ""


def _color_label_map(facts: SampleFacts, labels: LabelSpec, colors: Colors) -> str:
    if facts.label_error or facts.values or facts.is_float:
        return ""
    return f"{facts.label_mode}{', all channels equal' if facts.is_gray else ''}"


def _16_bit_label_map(facts: SampleFacts, labels: LabelSpec, colors: Colors) -> str:
    is_wide = facts.label_mode.startswith("I") and bool(facts.values)
    if not is_wide or (labels.num_labels or 0) > 256 or min(facts.values) < 0 or max(facts.values) > 255:
        return ""
    return facts.label_mode


def _differing_palettes(facts: SampleFacts, labels: LabelSpec, colors: Colors) -> str:
    for value, color in facts.colors.items():
        if (first := colors.setdefault(value, color)) != color:
            return f"value {value} is {first} and {color}"
    return ""


SAMPLE_CHECKS = (
    SampleCheck(
        "unreadable-image",
        "an image is damaged, truncated, or not an image",
        lambda facts, labels, colors: facts.image_error,
        "These images cannot be read ({}): copy or download them again.",
    ),
    SampleCheck(
        "unreadable-label",
        "a label map is damaged, truncated, or not an image",
        lambda facts, labels, colors: facts.label_error,
        "These label maps cannot be read ({}): copy, download or write them again.",
    ),
    SampleCheck(
        "size-mismatch",
        "an image and its label map differ in size",
        _size_mismatch,
        "Image and label map differ in size (width x height: {}): each pixel needs a label, so resize or crop both "
        "alike (label maps without interpolation). Swapped sizes come from EXIF data that rotates the image.",
    ),
    SampleCheck(
        "exif-rotation",
        "EXIF data rotates an image, but not its label map (warning)",
        lambda facts, labels, colors: facts.is_rotated,
        "EXIF data rotates these images when they are read, but not their label maps: rotate the pixels themselves "
        "(Pillow's `ImageOps.exif_transpose`, then save), and verify that the labels match the objects.",
        is_warning=True,
    ),
    SampleCheck(
        "color-label-map",
        "a label map holds colors instead of classes",
        _color_label_map,
        "These label maps hold colors ({}) instead of class ids: write one channel with the class of each pixel (mode "
        "'L' or 'P'). If all channels are equal, keep one of them.",
    ),
    SampleCheck(
        "float-label-map",
        "a label map holds floating-point numbers",
        lambda facts, labels, colors: facts.is_float and facts.label_mode,
        "These label maps hold floating-point numbers ({}) instead of integer class ids: write them as 8-bit PNG, and "
        "resize label maps without interpolation.",
    ),
    SampleCheck(
        "16-bit-label-map",
        "a label map has 16 bits or more without need (warning)",
        _16_bit_label_map,
        "These label maps have more bits ({}) than the classes need. They are read correctly here, but other programs "
        "clip them at 255: 8-bit PNG is safer and smaller.",
        is_warning=True,
    ),
    SampleCheck(
        "jpeg-label-map",
        "a label map is a JPEG file, whose compression changes classes",
        lambda facts, labels, colors: facts.label_format == "JPEG",
        "These label maps are JPEG files, whose compression changes values along every edge: create them again from "
        "the source, as PNG.",
    ),
    SampleCheck(
        "differing-palettes",
        "a value has different colors in different files",
        _differing_palettes,
        "The same value has different colors in different files ({}): each palette was made for its own image, so the "
        "values are not classes. Convert the colors to class ids, the same for all files. If the values are classes "
        "after all, allow this issue.",
    ),
)
