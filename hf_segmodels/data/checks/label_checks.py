# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Totals over the samples of a split, and checks of them: one function for each kind of issue, in the list `CHECKS`."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import gcd

from ..layouts import CITYSCAPES_TRAIN_IDS, SplitFiles
from ..loading import RawSplit
from ..specs import LabelSpec
from .report import MAX_EXAMPLES, LabelIssue, SplitReport
from .sample_checks import SAMPLE_CHECKS, SampleFacts


_CITYSCAPES_CLASSES = 19


class SplitStatistics:
    """Totals over the samples of a split. `is_complete`: whether all samples are read, not a selection."""

    def __init__(self, raw: RawSplit, labels: LabelSpec, is_complete: bool):
        self.raw, self.labels, self.is_complete = raw, labels, is_complete
        self.num_labels = labels.num_labels or 0
        self.mapping = raw.reader.mapping
        # a custom mapping replaces the meaning that the layout gives the values
        self.layout = None if raw.dataset.label_mapping is not None else raw.layout
        self.files = raw.files or SplitFiles([])
        self.num_read = self.num_counted = 0
        self.image_sizes: Counter[str] = Counter()
        self.label_sizes: Counter[str] = Counter()
        self.label_modes: Counter[str] = Counter()
        # for each value in the files: pixels, samples, a few names of samples, and the color in the first palette
        self.pixels: Counter[int] = Counter()
        self.samples: Counter[int] = Counter()
        self.examples: dict[int, list[str]] = defaultdict(list)
        self.first_colors: dict[int, tuple[int, ...]] = {}
        self.class_samples: Counter[int | None] = Counter()
        self.ignored_samples: list[str] = []
        # for each sample check: samples with the issue, and the detail of the first one
        self.found: dict[str, list[str]] = defaultdict(list)
        self.details: dict[str, str | bool] = {}

    def add(self, facts: SampleFacts) -> None:
        self.num_read += 1
        if facts.image_size:
            self.image_sizes[facts.image_size] += 1
        if facts.label_size:
            self.label_sizes[facts.label_size] += 1
            self.label_modes[" ".join(filter(None, (facts.label_format, facts.label_mode)))] += 1
        for check in SAMPLE_CHECKS:
            if detail := check.find(facts, self.labels, self.first_colors):
                self.found[check.name].append(facts.name)
                self.details.setdefault(check.name, detail)
        if not facts.values:
            return
        self.num_counted += 1
        for value, pixels in facts.values.items():
            self.pixels[value] += pixels
            self.samples[value] += 1
            if len(self.examples[value]) < MAX_EXAMPLES:
                self.examples[value].append(facts.name)
        labels = {self.label(value) for value in facts.values}
        self.class_samples.update(labels)
        if labels == {self.labels.ignore_index}:
            self.ignored_samples.append(facts.name)

    @property
    def present_classes(self) -> list[int]:
        return sorted(label for label in self.class_samples if label is not None and self.labels.is_class(label))

    def label(self, value: int) -> int | None:
        """The label that training sees for a value in the files; None if the mapping lacks the value."""
        if self.mapping is None:
            return self.labels.reduce(value)
        return self.labels.reduce(self.mapping[value]) if value in self.mapping else None

    def report(self) -> SplitReport:
        """The report without issues."""
        report = SplitReport(
            self.raw.split,
            self.num_read if self.raw.dataset.streaming else len(self.raw.rows),
            self.num_read,
            dict(self.image_sizes.most_common()),
            dict(self.label_sizes.most_common()),
            dict(self.label_modes.most_common()),
            self.labels.class_names,
            [0] * self.num_labels,
            [self.class_samples[index] for index in range(self.num_labels)],
        )
        for value, pixels in sorted(self.pixels.items()):
            label = self.label(value)
            if label is not None and self.labels.is_class(label):
                report.pixels[label] += pixels
            elif label == self.labels.ignore_index:
                report.ignored_pixels += pixels
            else:
                report.other_values[value] = pixels
        return report


_Find = Callable[[SplitStatistics, set[int]], LabelIssue | None]


@dataclass(frozen=True)
class Check:
    """
    A check of a split. `find` takes the statistics and the values that are neither classes, nor ignored, nor explained
    by an earlier check.
    """

    name: str
    description: str
    find: _Find
    is_diagnosis: bool
    """Whether the check explains the values as a whole. Only the first diagnosis that applies is reported."""


CHECKS: list[Check] = []


def run_checks(split: SplitStatistics) -> SplitReport:
    """Report on a split, with the issues that the checks find in the order of the checks."""
    report = split.report()
    for sample_check in SAMPLE_CHECKS:
        name = sample_check.name
        if names := split.found[name]:
            message = sample_check.message.format(split.details[name])
            report.issues.append(LabelIssue(message, len(names), names, sample_check.is_warning, name=name))
    unexplained, is_diagnosed = set(report.other_values), False
    for check in CHECKS:
        if check.is_diagnosis and is_diagnosed:
            continue
        issue = check.find(split, unexplained)
        if issue is not None:
            report.issues.append(replace(issue, name=check.name))
            is_diagnosed |= check.is_diagnosis
    return report


def _check(name: str, description: str, is_diagnosis: bool = False) -> Callable[[_Find], _Find]:
    """Append a function to [`CHECKS`]."""

    def append(find: _Find) -> _Find:
        CHECKS.append(Check(name, description, find, is_diagnosis))
        return find

    return append


@_check("missing-label", "an image has no label map")
def _missing_label(split: SplitStatistics, unexplained: set[int]) -> LabelIssue | None:
    return _of_names(
        split.files.missing_labels, "These images have no label map of the same name: add it, or remove the image."
    )


@_check("missing-image", "a label map has no image")
def _missing_image(split: SplitStatistics, unexplained: set[int]) -> LabelIssue | None:
    return _of_names(
        split.files.missing_images, "These label maps have no image of the same name: add it, or remove the label map."
    )


@_check("duplicate-files", "several images or label maps share a name")
def _duplicate_files(split: SplitStatistics, unexplained: set[int]) -> LabelIssue | None:
    return _of_names(
        split.files.ambiguous, "Several images or label maps have this name with different suffixes: keep one of each."
    )


@_check("all-ignored", "all pixels of a label map are ignored (a warning unless most are)")
def _all_ignored(split: SplitStatistics, unexplained: set[int]) -> LabelIssue | None:
    ignored, labels = split.ignored_samples, split.labels
    # a selection of label maps may happen to be unlabeled
    is_most = 2 * len(ignored) > split.num_counted if split.is_complete else len(ignored) == split.num_counted
    message = (
        f"All pixels of these label maps are ignored: their label is {labels.ignore_index}"
        f"{' after the reduction' if labels.do_reduce_labels else ''}. They do not contribute to training"
        f"{': check `do_reduce_labels`, `ignore_index` and the label mapping' if is_most else ''}."
    )
    return _of_names(ignored, message, is_warning=not is_most)


@_check("number-of-classes", "the model and the layout differ in the number of classes")
def _number_of_classes(split: SplitStatistics, unexplained: set[int]) -> LabelIssue | None:
    if split.layout is None or split.layout.num_labels in (None, split.num_labels):
        return None
    return LabelIssue(
        f"The layout {split.layout.name!r} has {split.layout.num_labels} classes, the model {split.num_labels}: set "
        "`num_labels` (or the class names, `id2label`) accordingly."
    )


@_check("reduced-twice", "classes start at 0, but labels are reduced")
def _reduced_layout(split: SplitStatistics, unexplained: set[int]) -> LabelIssue | None:
    is_reduced = split.labels.do_reduce_labels
    if split.layout is None or split.layout.labels is None or split.layout.do_reduce_labels or not is_reduced:
        return None
    return LabelIssue(
        f"In the layout {split.layout.name!r} classes start at 0. The reduction drops the first class and shifts all "
        "others: set `do_reduce_labels` to false."
    )


@_check("train-ids", "Cityscapes' trainIds are mapped as if they were labelIds", is_diagnosis=True)
def _train_ids(split: SplitStatistics, unexplained: set[int]) -> LabelIssue | None:
    unmapped = {value for value in unexplained if split.label(value) is None}
    is_cityscapes = set(split.mapping or ()) == set(CITYSCAPES_TRAIN_IDS)
    if not is_cityscapes or unmapped != {255} or max(set(split.pixels) - {255}, default=0) >= _CITYSCAPES_CLASSES:
        return None
    message = (
        "These label maps hold 255 and otherwise nothing above 18: they are trainIds already, and the mapping from "
        "labelIds would assign wrong classes. Name the files `*_labelTrainIds.png`, or remove the mapping."
    )
    return _of_values(split, unexplained, unmapped, message)


@_check("unmapped-values", "values have no class in the label mapping", is_diagnosis=True)
def _unmapped_values(split: SplitStatistics, unexplained: set[int]) -> LabelIssue | None:
    unmapped = {value for value in unexplained if split.label(value) is None}
    message = f"The label mapping has no class for {_describe(split, unmapped)}: add one for each, or null for void."
    return _of_values(split, unexplained, unmapped, message) if unmapped else None


@_check("0-and-255", "masks of 0 and 255: one of the two classes is ignored", is_diagnosis=True)
def _zero_and_255(split: SplitStatistics, unexplained: set[int]) -> LabelIssue | None:
    if not _is_binary(split):
        return None
    role = "ignored" if split.labels.ignore_index == 255 else "not a class"
    message = (
        f"All label maps hold only 0 and 255, and 255 is {role}, so at most one class remains. If these are masks of "
        "two classes, map them with `label_mapping: {0: 0, 255: 1}`."
    )
    return _of_values(split, unexplained, {255}, message)


@_check("rescaled-labels", "classes were rescaled to 0 to 255 or 65535 for display", is_diagnosis=True)
def _rescaled_labels(split: SplitStatistics, unexplained: set[int]) -> LabelIssue | None:
    values = sorted(split.pixels)
    if split.mapping is not None or not unexplained or not 3 <= len(values) <= split.num_labels:
        return None
    highest = values[-1]
    if values[0] < 0 or highest < split.num_labels:
        return None
    step = gcd(*values)
    is_even = all(abs(value - index * highest / (len(values) - 1)) <= 1 for index, value in enumerate(values))
    if step >= 2 and highest // step < split.num_labels:
        what = f"multiples of {step}: divide them by {step}"
    elif is_even and values[0] == 0 and highest in (255, 65535):
        what = f"spread evenly from 0 to {highest}: number them from 0"
    else:
        return None
    message = (
        f"All values ({_listed(map(str, values))}) are {what}. They were rescaled for display, and are not class ids. "
        "`label_mapping` can also give each value a class."
    )
    return _of_values(split, unexplained, unexplained, message)


@_check("label-ids", "Cityscapes' labelIds are read as if they were trainIds", is_diagnosis=True)
def _label_ids(split: SplitStatistics, unexplained: set[int]) -> LabelIssue | None:
    if split.mapping is not None or split.num_labels != _CITYSCAPES_CLASSES or not unexplained:
        return None
    highest = max(set(split.pixels) - {255, split.labels.ignore_index}, default=0)
    is_named = any("labelIds" in name for value in unexplained for name in split.examples[value])
    if not (is_named or _CITYSCAPES_CLASSES < highest <= max(CITYSCAPES_TRAIN_IDS)):
        return None
    message = (
        f"With {_CITYSCAPES_CLASSES} classes, values up to {highest} look like Cityscapes' labelIds, not its trainIds, "
        "so every class is mistaken for another one. Set `layout: cityscapes`, which maps the ids, or read the "
        "`*_labelTrainIds.png` files. If the values are other classes, increase the number of classes."
    )
    return _of_values(split, unexplained, unexplained, message)


@_check("not-reduced", "0 means unlabeled and classes start at 1, but labels are not reduced", is_diagnosis=True)
def _not_reduced(split: SplitStatistics, unexplained: set[int]) -> LabelIssue | None:
    if split.mapping is not None or split.labels.do_reduce_labels:
        return None
    if split.layout is not None and split.layout.do_reduce_labels:
        message = f"In the layout {split.layout.name!r} classes start at 1: set `do_reduce_labels` to true."
        return _of_values(split, unexplained, unexplained or {0}, message)
    last = split.num_labels
    if unexplained != {last}:
        return None
    meaning = "0 means 'unlabeled' and classes start at 1" if 0 in split.pixels else "classes start at 1"
    message = (
        f"Values go up to {last}, but the last of {last} classes is {last - 1}. If {meaning}, set `do_reduce_labels` "
        f"to true; if {last} marks void pixels, map it to null in `label_mapping`."
    )
    return _of_values(split, unexplained, unexplained, message)


@_check("reduced-twice", "classes start at 0, but labels are reduced", is_diagnosis=True)
def _reduced_twice(split: SplitStatistics, unexplained: set[int]) -> LabelIssue | None:
    is_known = split.layout is not None and split.layout.labels is not None
    if split.mapping is not None or is_known or not split.labels.do_reduce_labels:
        return None
    values, last = set(split.pixels), split.num_labels - 1
    if split.num_labels in values or not {0, last} <= values:
        return None
    # void pixels have a value of their own, or all classes occur without the reduction
    has_all = split.num_labels > 2 and set(range(split.num_labels)) <= values
    if not has_all and split.labels.ignore_index not in values:
        return None
    message = (
        f"Values go from 0 to {last} and never reach {last + 1}, so classes start at 0 already. The reduction drops "
        "the first class and shifts all others: set `do_reduce_labels` to false."
    )
    # a selection of label maps may lack the last of a few classes
    is_warning = not split.is_complete and split.num_labels < 5
    return _of_values(split, unexplained, {0}, message, is_warning)


@_check("void-value", "a value that marks void pixels is not the ignored label")
def _void_value(split: SplitStatistics, unexplained: set[int]) -> LabelIssue | None:
    if len(unexplained) != 1 or unexplained == {split.num_labels}:
        return None
    (value,) = unexplained
    message = (
        f"{value} is neither a class nor the ignored label {split.labels.ignore_index}, but "
        f"{split.pixels[value] / split.pixels.total():.1%} of the pixels have it, in {split.samples[value]} label "
        "maps. If it marks void pixels, set `ignore_index` to it or map it to null in `label_mapping`; if it is a "
        "class, increase the number of classes."
    )
    return _of_values(split, unexplained, {value}, message)


@_check("outside-classes", "values are neither classes nor the ignored label")
def _outside_classes(split: SplitStatistics, unexplained: set[int]) -> LabelIssue | None:
    if not unexplained:
        return None
    message = (
        f"Values outside the {split.num_labels} classes (0 to {split.num_labels - 1}"
        f"{', after the reduction' if split.labels.do_reduce_labels else ''}; {split.labels.ignore_index} is ignored): "
        f"{_describe(split, unexplained)}. Map them in `label_mapping` (null for void), or increase the number of "
        "classes if they are classes."
    )
    return _of_values(split, unexplained, unexplained, message)


@_check("one-class", "all pixels of all label maps belong to one class")
def _one_class(split: SplitStatistics, unexplained: set[int]) -> LabelIssue | None:
    present = split.present_classes
    others = split.class_samples.keys() - {*present, split.labels.ignore_index}
    if len(present) != 1 or others or _is_binary(split) or split.num_counted < 2 or split.num_labels < 2:
        return None
    return LabelIssue(
        f"All pixels that are not ignored belong to class {present[0]} ({split.labels.class_names[present[0]]}), in "
        f"all {split.num_counted} label maps: check how they were written, and whether the mapping keeps the other "
        "classes.",
        # a selection of label maps may lack rare classes
        is_warning=not split.is_complete,
    )


@_check("absent-classes", "classes never occur (warning)")
def _absent_classes(split: SplitStatistics, unexplained: set[int]) -> LabelIssue | None:
    present = set(split.present_classes)
    if not split.is_complete or not present:
        return None
    names = [f"{index} ({name})" for index, name in enumerate(split.labels.class_names) if index not in present]
    message = "These classes never occur: a model cannot learn them from this data, and they have no IoU."
    return _of_names(names, message, is_warning=True)


ISSUES = {check.name: check.description for check in SAMPLE_CHECKS} | {
    check.name: check.description for check in CHECKS
}
"""Names and descriptions of the issues that [`check_data`] finds."""


def _is_binary(split: SplitStatistics) -> bool:
    return split.mapping is None and set(split.pixels) == {0, 255} and split.num_labels > 1


def _describe(split: SplitStatistics, values: Iterable[int]) -> str:
    """List values with their labels and the number of label maps that have them."""

    def describe(value: int) -> str:
        label, count = split.label(value), split.samples[value]
        became = "" if label in (None, value) else f", read as {label}"
        return f"{value}{became} ({count} label map{'s' * (count != 1)})"

    return _listed(map(describe, sorted(values)))


def _listed(texts: Iterable[str]) -> str:
    texts = list(texts)
    return ", ".join(texts[:10]) + (", ..." if len(texts) > 10 else "")


def _of_names(names: list[str], message: str, is_warning: bool = False) -> LabelIssue | None:
    """Issue of samples or classes, if there are any."""
    return LabelIssue(message, len(names), names, is_warning) if names else None


def _of_values(
    split: SplitStatistics, unexplained: set[int], values: set[int], message: str, is_warning: bool = False
) -> LabelIssue:
    """Issue of values, which are no longer unexplained. The examples are samples that have the values."""
    examples = dict.fromkeys(name for value in sorted(values) for name in split.examples.get(value, ()))
    count = max((split.samples[value] for value in values), default=0)
    unexplained -= values
    return LabelIssue(message, count, list(examples)[:MAX_EXAMPLES], is_warning)
