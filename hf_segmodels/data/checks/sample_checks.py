# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Checks of single images and label maps, in the list `SAMPLE_CHECKS`."""

from collections.abc import Callable
from dataclasses import dataclass

from ..specs import LabelSpec
from .sample_facts import SampleFacts


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
