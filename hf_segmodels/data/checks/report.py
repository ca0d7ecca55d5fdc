# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Report of the label checks: the issues, and the content of the label maps of each split."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..specs import DatasetSpec, LabelSpec


# Examples and classes that are printed
MAX_EXAMPLES = 5
_MAX_CLASSES = 20


@dataclass
class LabelIssue:
    """A problem, or a warning of one."""

    # a check does not repeat its own name
    name: str = field(default="", kw_only=True)
    """One of [`ISSUES`]."""
    message: str
    """The problem and the fix."""
    count: int = 1
    """Number of affected samples or classes."""
    examples: list[str] = field(default_factory=list)
    is_warning: bool = False

    def __str__(self) -> str:
        text = f"{'warning' if self.is_warning else 'error'}: {self.name} ({self.count}): {self.message}"
        examples = self.examples[:MAX_EXAMPLES]
        return text + (f"\n    {', '.join(examples)}{', ...' * (self.count > len(examples))}" if examples else "")


@dataclass
class SplitReport:
    """Content of the label maps of a split, and their issues."""

    split: str
    num_samples: int
    """Number of images with label maps, `num_read` of which were read."""
    num_read: int = 0
    image_sizes: dict[str, int] = field(default_factory=dict)
    label_sizes: dict[str, int] = field(default_factory=dict)
    label_modes: dict[str, int] = field(default_factory=dict)
    class_names: list[str] = field(default_factory=list)
    pixels: list[int] = field(default_factory=list)
    """Number of pixels of each class."""
    images: list[int] = field(default_factory=list)
    """Number of images in which each class occurs."""
    ignored_pixels: int = 0
    other_values: dict[int, int] = field(default_factory=dict)
    """Number of pixels of each value in the files that is neither a class nor ignored."""
    issues: list[LabelIssue] = field(default_factory=list)

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
        lines += [f"  {issue}".replace("\n", "\n  ") for issue in self.issues]
        return "\n".join(lines)

    def _histogram(self, total: int) -> list[str]:
        """Lines of the classes with the most pixels."""
        order = sorted(range(len(self.pixels)), key=lambda index: -self.pixels[index])
        order = [index for index in order if self.pixels[index]]
        width = max((len(self.class_names[index]) for index in order[:_MAX_CLASSES]), default=0)
        lines = [
            f"    {index:>4} {self.class_names[index]:<{width}} {self.pixels[index] / total:>7.2%} "
            f"in {self.images[index]} images"
            for index in order[:_MAX_CLASSES]
        ]
        more = len(order) - _MAX_CLASSES
        return lines + ([f"    ... and {more} more classes (--json writes all of them)"] if more > 0 else [])


@dataclass
class DataReport:
    """Reports of the splits of a data set, as [`check_data`] returns them."""

    dataset: DatasetSpec
    labels: LabelSpec
    splits: list[SplitReport]

    def issues(self, allowed: Sequence[str] = (), strict: bool = False) -> list[LabelIssue]:
        """
        Select issues.

        Args:
            allowed (`Sequence[str]`, *optional*): Names of issues to leave out.
            strict (`bool`, *optional*, defaults to `False`): Whether to include warnings.
        """
        found = [issue for split in self.splits for issue in split.issues if strict or not issue.is_warning]
        return [issue for issue in found if issue.name not in allowed]

    def summary(self, allowed: Sequence[str] = (), strict: bool = False) -> str:
        """One line with the names of the selected issues, see [`DataReport.issues`]."""
        if found := self.issues(allowed, strict):
            names = ", ".join(dict.fromkeys(issue.name for issue in found))
            return f"{_number(len(found), 'label issue')} found: {names}"
        num_warnings = 0 if strict else len(self.issues(strict=True)) - len(self.issues())
        return "no label issues found" + (f", {_number(num_warnings, 'warning')}" if num_warnings else "")

    def to_dict(self) -> dict[str, Any]:
        """Content of the report for JSON."""
        return {
            "source": str(self.dataset.source),
            "layout": self.dataset.layout,
            "num_labels": self.labels.num_labels,
            "ignore_index": self.labels.ignore_index,
            "do_reduce_labels": self.labels.do_reduce_labels,
            "splits": [asdict(split) for split in self.splits],
        }

    def __str__(self) -> str:
        header = (
            f"{self.dataset.source}: layout {self.dataset.layout or 'of the `datasets` library'}, "
            f"{self.labels.num_labels} classes, labels {'are' if self.labels.do_reduce_labels else 'are not'} reduced, "
            f"{self.labels.ignore_index} is ignored"
        )
        return "\n\n".join([header, *map(str, self.splits)])


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
