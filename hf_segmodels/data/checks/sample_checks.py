# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Checks of single images and label maps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..specs import LabelSpec
from .sample_facts import SampleFacts, format_size


Colors = Mapping[int, tuple[int, ...]]


@dataclass(frozen=True)
class SampleCheck:
    """A check of one sample."""

    name: str
    description: str
    find: Callable[[SampleFacts, LabelSpec, Colors], str | None]
    """Takes a sample, the meaning of its labels and the first color of each value. Returns a detail for the message (which may
    be empty), or None if the sample is fine."""
    message: str
    """The problem and the fix, with `{detail}` and `{num_labels}`."""
    is_warning: bool = False


def _unreadable_image(facts: SampleFacts, labels: LabelSpec, colors: Colors) -> str | None:
    return facts.image_error or None


def _unreadable_label(facts: SampleFacts, labels: LabelSpec, colors: Colors) -> str | None:
    return facts.label_error or None


def _size_mismatch(facts: SampleFacts, labels: LabelSpec, colors: Colors) -> str | None:
    if facts.image_size is None or facts.label_size is None or facts.image_size == facts.label_size:
        return None
    return f"{format_size(facts.image_size)} and {format_size(facts.label_size)}"


def _exif_rotation(facts: SampleFacts, labels: LabelSpec, colors: Colors) -> str | None:
    return "" if facts.is_rotated else None


def _is_float(facts: SampleFacts) -> bool:
    return facts.label_mode == "F" or facts.label_mode.startswith("float")


def _color_label_map(facts: SampleFacts, labels: LabelSpec, colors: Colors) -> str | None:
    if facts.label_error or facts.values or _is_float(facts):
        return None
    return f"{facts.label_mode}{', all channels equal' if facts.is_gray else ''}"


def _float_label_map(facts: SampleFacts, labels: LabelSpec, colors: Colors) -> str | None:
    return facts.label_mode if _is_float(facts) else None


def _16_bit_label_map(facts: SampleFacts, labels: LabelSpec, colors: Colors) -> str | None:
    is_wide = facts.label_mode.startswith("I") and bool(facts.values)
    if not is_wide or (labels.num_labels or 0) > 256 or min(facts.values) < 0 or max(facts.values) > 255:
        return None
    return facts.label_mode


def _jpeg_label_map(facts: SampleFacts, labels: LabelSpec, colors: Colors) -> str | None:
    return "" if facts.label_format == "JPEG" else None


def _differing_palettes(facts: SampleFacts, labels: LabelSpec, colors: Colors) -> str | None:
    for value, color in facts.colors.items():
        if colors[value] != color:
            return f"value {value} is {colors[value]} and {color}"
    return None


SAMPLE_CHECKS = (
    SampleCheck(
        "unreadable-image",
        "an image is damaged, truncated, or not an image",
        _unreadable_image,
        "These images cannot be read ({detail}): copy or download them again.",
    ),
    SampleCheck(
        "unreadable-label",
        "a label map is damaged, truncated, or not an image",
        _unreadable_label,
        "These label maps cannot be read ({detail}): copy, download or write them again.",
    ),
    SampleCheck(
        "size-mismatch",
        "an image and its label map differ in size",
        _size_mismatch,
        "Image and label map differ in size (width x height: {detail}): each pixel needs a label, so resize or crop both "
        "alike (label maps without interpolation). Swapped sizes come from EXIF data that rotates the image.",
    ),
    SampleCheck(
        "exif-rotation",
        "EXIF data rotates an image, but not its label map (warning)",
        _exif_rotation,
        "EXIF data rotates these images when they are read, but not their label maps: rotate the pixels themselves (Pillow's "
        "`ImageOps.exif_transpose`, then save), and verify that the labels match the objects.",
        is_warning=True,
    ),
    SampleCheck(
        "color-label-map",
        "a label map holds colors instead of classes",
        _color_label_map,
        "These label maps hold colors ({detail}) instead of class ids: write one channel with the class of each pixel (mode "
        "'L' or 'P'). If all channels are equal, keep one of them.",
    ),
    SampleCheck(
        "float-label-map",
        "a label map holds floating-point numbers",
        _float_label_map,
        "These label maps hold floating-point numbers ({detail}) instead of integer class ids: write them as 8-bit PNG, and "
        "resize label maps without interpolation.",
    ),
    SampleCheck(
        "16-bit-label-map",
        "a label map has 16 bits or more without need (warning)",
        _16_bit_label_map,
        "These label maps have more bits ({detail}) than {num_labels} classes need. They are read correctly here, but other "
        "programs clip them at 255: 8-bit PNG is safer and smaller.",
        is_warning=True,
    ),
    SampleCheck(
        "jpeg-label-map",
        "a label map is a JPEG file, whose compression changes classes",
        _jpeg_label_map,
        "These label maps are JPEG files, whose compression changes values along every edge: create them again from the "
        "source, as PNG.",
    ),
    SampleCheck(
        "differing-palettes",
        "a value has different colors in different files",
        _differing_palettes,
        "The same value has different colors in different files ({detail}): each palette was made for its own image, so the "
        "values are not classes. Convert the colors to class ids, the same for all files. If the values are classes after "
        "all, allow this issue.",
    ),
)


__all__ = ["SAMPLE_CHECKS", "SampleCheck"]
