# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""What the doctor reports: faults by their names, and what the label maps of a split hold."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


FAULTS: dict[str, str] = {
    "missing-label": "an image has no label map",
    "missing-image": "a label map has no image",
    "several-files": "several files have the name of one image or label map",
    "unreadable-image": "an image is damaged, cut off, or none",
    "unreadable-label": "a label map is damaged, cut off, or none",
    "size-mismatch": "an image and its label map differ in size",
    "turned-image": "EXIF data turns an image, but not its label map (warning)",
    "color-label-map": "a label map holds colors instead of classes",
    "float-label-map": "a label map holds fractions",
    "wide-label-map": "a label map has 16 bits or more without need (warning)",
    "jpeg-label-map": "a label map is a JPEG, which blurs classes",
    "differing-palettes": "a value has different colors in different files",
    "number-of-classes": "the model's classes are not as many as the layout's",
    "0-and-255": "masks of 0 and 255: one of the two classes is the ignored label",
    "stretched-values": "classes were spread over 0 to 255 or 65535 to make them visible",
    "label-ids": "Cityscapes' labelIds are read as if they were trainIds",
    "train-ids": "Cityscapes' trainIds are mapped as if they were labelIds",
    "not-reduced": "0 is unlabeled and classes start at 1, but labels are not reduced",
    "reduced-twice": "classes start at 0, but labels are reduced",
    "void-value": "a value that marks void pixels is not the ignored label",
    "unmapped-values": "values have no class in the label mapping",
    "outside-classes": "values are neither classes nor the ignored label",
    "all-ignored": "nothing in a label map counts (a warning unless that is so for most)",
    "one-class": "one class takes all pixels of all label maps",
    "absent-classes": "classes never occur (warning)",
}
"""Names of what [`check_data`] finds."""

# Examples, sizes and classes that are printed
MAX_EXAMPLES = 5
_MAX_ROWS = 20


@dataclass
class Fault:
    """Something that is wrong, or may be."""

    name: str
    """One of [`FAULTS`]."""
    message: str
    """What it is and what to do."""
    count: int = 1
    """How many samples, values or classes it concerns."""
    examples: list[str] = field(default_factory=list)
    is_warning: bool = False

    def __str__(self) -> str:
        examples = self.examples[:MAX_EXAMPLES]
        shown = f"\n    {', '.join(examples)}{', ...' if self.count > len(examples) else ''}"
        return f"{'warning' if self.is_warning else 'fault'}: {self.name} ({self.count}): {self.message}" + (
            shown if self.examples else ""
        )


@dataclass
class SplitReport:
    """What the label maps of a split hold."""

    split: str
    num_samples: int
    """Images with label maps, of which `num_read` were read."""
    num_read: int = 0
    image_sizes: dict[str, int] = field(default_factory=dict)
    label_sizes: dict[str, int] = field(default_factory=dict)
    label_modes: dict[str, int] = field(default_factory=dict)
    class_names: list[str] = field(default_factory=list)
    pixels: list[int] = field(default_factory=list)
    """Of each class."""
    images: list[int] = field(default_factory=list)
    """In which each class occurs."""
    ignored_pixels: int = 0
    other_values: dict[int, int] = field(default_factory=dict)
    """Pixels of the values that are neither, as they are in the files."""
    faults: list[Fault] = field(default_factory=list)

    def __str__(self) -> str:
        total = sum(self.pixels) + self.ignored_pixels + sum(self.other_values.values())
        read = "" if self.num_read == self.num_samples else f", {self.num_read} read"
        lines = [f"{self.split}: {self.num_samples} images with label maps{read}"]
        for what, counts in (
            ("images", self.image_sizes),
            ("label maps", self.label_sizes),
            ("modes", self.label_modes),
        ):
            common = ", ".join(f"{key} ({count})" for key, count in list(counts.items())[:4])
            lines.append(f"  {what:<10}  {common}{f', and {len(counts) - 4} more' if len(counts) > 4 else ''}")
        present = sum(pixels > 0 for pixels in self.pixels)
        lines.append(f"  {'classes':<10}  {present} of {len(self.pixels)} occur")
        if total:
            lines.append(f"  {'ignored':<10}  {self.ignored_pixels / total:.1%} of the pixels")
            lines += self._histogram(total)
        lines += [f"  {fault}".replace("\n", "\n  ") for fault in self.faults]
        return "\n".join(lines)

    def _histogram(self, total: int) -> list[str]:
        """The classes with the most pixels, one a line."""
        order = sorted(range(len(self.pixels)), key=lambda index: -self.pixels[index])
        order = [index for index in order if self.pixels[index]]
        width = max((len(self.class_names[index]) for index in order[:_MAX_ROWS]), default=0)
        lines = [
            f"    {index:>4} {self.class_names[index]:<{width}} {self.pixels[index] / total:>7.2%} "
            f"in {self.images[index]} images"
            for index in order[:_MAX_ROWS]
        ]
        more = len(order) - _MAX_ROWS
        return lines + ([f"    ... and {more} more classes (--json has them all)"] if more > 0 else [])


@dataclass
class DataReport:
    """What [`check_data`] found in the splits of a data set."""

    source: str
    layout: str | None
    num_labels: int
    ignore_index: int
    do_reduce_labels: bool
    splits: list[SplitReport]

    def faults(self, allowed: Sequence[str] = (), strict: bool = False) -> list[Fault]:
        """Those that are not `allowed`; warnings too where `strict`."""
        found = [fault for split in self.splits for fault in split.faults if strict or not fault.is_warning]
        return [fault for fault in found if fault.name not in allowed]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n\n".join(map(str, self.splits))


__all__ = ["FAULTS", "MAX_EXAMPLES", "DataReport", "Fault", "SplitReport"]
