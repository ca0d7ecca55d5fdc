# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Checks of the labels of a split: one function for each kind of issue, in the list `CHECKS`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from math import gcd

from ..layouts import CITYSCAPES_TRAIN_IDS
from .report import MAX_EXAMPLES, LabelIssue, SplitReport
from .sample_checks import SAMPLE_CHECKS, SampleCheck
from .statistics import SplitStatistics


_CITYSCAPES_CLASSES = 19


@dataclass
class CheckedSplit:
    """Input of the checks."""

    statistics: SplitStatistics
    report: SplitReport
    """Without issues, except for those of earlier checks."""
    unexplained: set[int]
    """Values in the files that are neither classes nor ignored and that no earlier check has explained."""


@dataclass(frozen=True)
class Check:
    """A check of a split."""

    name: str
    description: str
    find: Callable[[CheckedSplit], LabelIssue | None]
    is_diagnosis: bool = False
    """Whether the check explains the values as a whole. Only the first diagnosis that applies is reported."""


def run_checks(statistics: SplitStatistics) -> SplitReport:
    """Report on a split with the issues that [`CHECKS`] find, in their order."""
    report = statistics.report()
    split = CheckedSplit(statistics, report, set(report.other_values))
    is_diagnosed = False
    for check in CHECKS:
        if check.is_diagnosis and is_diagnosed:
            continue
        issue = check.find(split)
        if issue is not None:
            report.issues.append(issue)
            is_diagnosed |= check.is_diagnosis
    return report


def _missing_label(split: CheckedSplit) -> LabelIssue | None:
    pairs = split.statistics.raw.files.pairs if split.statistics.raw.files else []
    return _issue_of_files(
        "missing-label",
        "These images have no label map of the same name: add the label map, or remove the image.",
        [pair.name for pair in pairs if pair.label is None],
    )


def _missing_image(split: CheckedSplit) -> LabelIssue | None:
    pairs = split.statistics.raw.files.pairs if split.statistics.raw.files else []
    return _issue_of_files(
        "missing-image",
        "These label maps have no image of the same name: add the image, or remove the label map.",
        [pair.name for pair in pairs if pair.image is None],
    )


def _duplicate_files(split: CheckedSplit) -> LabelIssue | None:
    return _issue_of_files(
        "duplicate-files",
        "Several images or label maps have this name with different suffixes: keep one of each.",
        split.statistics.raw.files.ambiguous if split.statistics.raw.files else [],
    )


def _sample_issue(check: SampleCheck, split: CheckedSplit) -> LabelIssue | None:
    """The issue of the samples that a sample check has found."""
    statistics = split.statistics
    if check.name not in statistics.found:
        return None
    message = check.message.format(detail=statistics.details[check.name], num_labels=statistics.labels.num_labels)
    return _issue_of_files(check.name, message, statistics.found[check.name], check.is_warning)


def _all_ignored(split: CheckedSplit) -> LabelIssue | None:
    statistics, labels = split.statistics, split.statistics.labels
    ignored, num_counted = statistics.ignored_samples, statistics.num_counted
    # a selection of label maps may happen to be unlabeled
    is_most = 2 * len(ignored) > num_counted if statistics.is_complete else len(ignored) == num_counted
    return _issue_of_files(
        "all-ignored",
        f"All pixels of these label maps are ignored: their label is {labels.ignore_index}"
        f"{' after the reduction' if labels.do_reduce_labels else ''}. They do not contribute to training"
        f"{': check `do_reduce_labels`, `ignore_index` and the label mapping' if is_most else ''}.",
        ignored,
        is_warning=not is_most,
    )


def _number_of_classes(split: CheckedSplit) -> LabelIssue | None:
    layout, num_labels = split.statistics.layout, split.statistics.labels.num_labels
    if layout is None or layout.num_labels in (None, num_labels):
        return None
    return LabelIssue(
        "number-of-classes",
        f"The layout {layout.name!r} has {layout.num_labels} classes, the model {num_labels}: set `num_labels` (or the class "
        "names, `id2label`) accordingly.",
    )


def _reduced_layout(split: CheckedSplit) -> LabelIssue | None:
    """Labels of a layout that are reduced, but start at 0."""
    layout = split.statistics.layout
    if layout is None or layout.num_labels is None or layout.do_reduce_labels:
        return None
    if not split.statistics.labels.do_reduce_labels:
        return None
    return LabelIssue(
        "reduced-twice",
        f"In the layout {layout.name!r} classes start at 0. The reduction drops the first class and shifts all others: set "
        "`do_reduce_labels` to false.",
    )


def _train_ids(split: CheckedSplit) -> LabelIssue | None:
    """Cityscapes' trainIds that are mapped as if they were labelIds."""
    statistics, unmapped = split.statistics, _unmapped(split)
    is_cityscapes = set(statistics.mapping or ()) == set(CITYSCAPES_TRAIN_IDS)
    highest = max(set(statistics.pixels) - {255}, default=0)
    if not is_cityscapes or unmapped != {255} or highest >= _CITYSCAPES_CLASSES:
        return None
    return _issue_of_values(
        split,
        "train-ids",
        "These label maps hold 255 and otherwise nothing above 18: they are trainIds already, and the mapping from labelIds "
        "would assign wrong classes. Name the files `*_labelTrainIds.png`, or remove the mapping.",
        unmapped,
    )


def _unmapped_values(split: CheckedSplit) -> LabelIssue | None:
    unmapped = _unmapped(split)
    if not unmapped:
        return None
    return _issue_of_values(
        split,
        "unmapped-values",
        f"The label mapping has no class for {_describe(split, unmapped)}: add one for each value, or null for void.",
        unmapped,
    )


def _zero_and_255(split: CheckedSplit) -> LabelIssue | None:
    statistics, labels = split.statistics, split.statistics.labels
    if statistics.mapping is not None or set(statistics.pixels) != {0, 255} or (labels.num_labels or 0) < 2:
        return None
    return _issue_of_values(
        split,
        "0-and-255",
        f"All label maps hold only 0 and 255, and 255 is {'ignored' if labels.ignore_index == 255 else 'not a class'}, so at "
        "most one class remains. If these are masks of two classes, map them with `label_mapping: {0: 0, 255: 1}`.",
        {255},
    )


def _rescaled_labels(split: CheckedSplit) -> LabelIssue | None:
    """Classes that were spread over the range of gray values."""
    values, num_labels = sorted(split.statistics.pixels), split.statistics.labels.num_labels or 0
    if split.statistics.mapping is not None or not split.unexplained or not 3 <= len(values) <= num_labels:
        return None
    highest = values[-1]
    if values[0] < 0 or highest < num_labels:
        return None
    step = gcd(*values)
    is_even = all(abs(value - index * highest / (len(values) - 1)) <= 1 for index, value in enumerate(values))
    if step >= 2 and highest // step < num_labels:
        what = f"multiples of {step}: divide them by {step}"
    elif is_even and values[0] == 0 and highest in (255, 65535):
        what = f"spread evenly from 0 to {highest}: number them from 0"
    else:
        return None
    return _issue_of_values(
        split,
        "rescaled-labels",
        f"All values ({_listed(map(str, values))}) are {what}. They were rescaled for display, and are not class ids. "
        "`label_mapping` can also give each value a class.",
        split.unexplained,
    )


def _label_ids(split: CheckedSplit) -> LabelIssue | None:
    """Cityscapes' labelIds that are read as if they were trainIds."""
    statistics, labels = split.statistics, split.statistics.labels
    if statistics.mapping is not None or labels.num_labels != _CITYSCAPES_CLASSES or not split.unexplained:
        return None
    highest = max(set(statistics.pixels) - {255, labels.ignore_index}, default=0)
    is_named = any("labelIds" in name for value in split.unexplained for name in statistics.examples[value])
    if not (is_named or _CITYSCAPES_CLASSES < highest <= max(CITYSCAPES_TRAIN_IDS)):
        return None
    return _issue_of_values(
        split,
        "label-ids",
        f"With {_CITYSCAPES_CLASSES} classes, values up to {highest} look like Cityscapes' labelIds, not its trainIds, so "
        "every class is mistaken for another one. Set `layout: cityscapes`, which maps the ids, or read the "
        "`*_labelTrainIds.png` files. If the values are other classes, increase the number of classes.",
        split.unexplained,
    )


def _not_reduced(split: CheckedSplit) -> LabelIssue | None:
    """Classes that start at 1, although labels are not reduced."""
    statistics, labels = split.statistics, split.statistics.labels
    if statistics.mapping is not None or labels.do_reduce_labels:
        return None
    if statistics.layout is not None and statistics.layout.do_reduce_labels:
        return _issue_of_values(
            split,
            "not-reduced",
            f'In the layout {statistics.layout.name!r} 0 means "other" and classes start at 1: set `do_reduce_labels` to '
            "true.",
            split.unexplained or {0},
        )
    num_labels = labels.num_labels or 0
    if split.unexplained != {num_labels}:
        return None
    meaning = "0 means 'unlabeled' and classes start at 1" if 0 in statistics.pixels else "classes start at 1"
    return _issue_of_values(
        split,
        "not-reduced",
        f"Values go up to {num_labels}, but the last of {num_labels} classes is {num_labels - 1}. If {meaning}, set "
        f"`do_reduce_labels` to true; if {num_labels} marks void pixels, map it to null in `label_mapping`.",
        split.unexplained,
    )


def _reduced_twice(split: CheckedSplit) -> LabelIssue | None:
    """Classes that start at 0, although labels are reduced."""
    statistics, labels = split.statistics, split.statistics.labels
    is_known = statistics.layout is not None and statistics.layout.labels is not None
    if statistics.mapping is not None or is_known or not labels.do_reduce_labels:
        return None
    num_labels, values = labels.num_labels or 0, set(statistics.pixels)
    if num_labels in values or not {0, num_labels - 1} <= values:
        return None
    # void pixels have a value of their own, or all classes occur without the reduction
    has_all = num_labels > 2 and set(range(num_labels)) <= values
    if not has_all and labels.ignore_index not in values:
        return None
    issue = _issue_of_values(
        split,
        "reduced-twice",
        f"Values go from 0 to {num_labels - 1} and never reach {num_labels}, so classes start at 0 already. The reduction drops "
        "the first class and shifts all others: set `do_reduce_labels` to false.",
        {0},
    )
    # a selection of label maps may lack the last of a few classes
    issue.is_warning = not statistics.is_complete and num_labels < 5
    return issue


def _void_value(split: CheckedSplit) -> LabelIssue | None:
    """A single value outside the classes."""
    statistics, labels = split.statistics, split.statistics.labels
    if len(split.unexplained) != 1 or split.unexplained == {labels.num_labels}:
        return None
    (value,) = split.unexplained
    return _issue_of_values(
        split,
        "void-value",
        f"{value} is neither a class nor the ignored label {labels.ignore_index}, but "
        f"{split.report.other_values[value] / statistics.pixels.total():.1%} of the pixels have it, in "
        f"{statistics.samples[value]} label maps. If it marks void pixels, set `ignore_index` to it or map it to null in "
        "`label_mapping`; if it is a class, increase the number of classes.",
        {value},
    )


def _outside_classes(split: CheckedSplit) -> LabelIssue | None:
    """Values outside the classes that no other check has explained."""
    labels, num_labels = split.statistics.labels, split.statistics.labels.num_labels or 0
    if not split.unexplained:
        return None
    return _issue_of_values(
        split,
        "outside-classes",
        f"Values outside the {num_labels} classes (0 to {num_labels - 1}{', after the reduction' * labels.do_reduce_labels}; "
        f"{labels.ignore_index} is ignored): {_describe(split, split.unexplained)}. Map them in `label_mapping` (null for "
        "void), or increase the number of classes if they are classes.",
        split.unexplained,
    )


def _one_class(split: CheckedSplit) -> LabelIssue | None:
    report, num_counted = split.report, split.statistics.num_counted
    present = [index for index, pixels in enumerate(report.pixels) if pixels]
    if len(present) != 1 or num_counted < 2 or len(report.pixels) < 2:
        return None
    if report.other_values or any(issue.name == "0-and-255" for issue in report.issues):
        return None
    return LabelIssue(
        "one-class",
        f"All pixels that are not ignored belong to class {present[0]} ({report.class_names[present[0]]}), in all "
        f"{num_counted} label maps: check how the label maps were written, and whether the mapping keeps the other classes.",
        # a selection of label maps may lack rare classes
        is_warning=not split.statistics.is_complete,
    )


def _absent_classes(split: CheckedSplit) -> LabelIssue | None:
    report = split.report
    if not split.statistics.is_complete or not any(report.pixels):
        return None
    return _issue_of_files(
        "absent-classes",
        "These classes never occur: a model cannot learn them from this data, and they have no IoU.",
        [f"{index} ({report.class_names[index]})" for index, pixels in enumerate(report.pixels) if not pixels],
        is_warning=True,
    )


CHECKS = (
    Check("missing-label", "an image has no label map", _missing_label),
    Check("missing-image", "a label map has no image", _missing_image),
    Check("duplicate-files", "several images or label maps share a name", _duplicate_files),
    *(Check(check.name, check.description, partial(_sample_issue, check)) for check in SAMPLE_CHECKS),
    Check("all-ignored", "all pixels of a label map are ignored (a warning unless most are)", _all_ignored),
    Check("number-of-classes", "the model and the layout differ in the number of classes", _number_of_classes),
    Check("reduced-twice", "classes start at 0, but labels are reduced", _reduced_layout),
    Check("train-ids", "Cityscapes' trainIds are mapped as if they were labelIds", _train_ids, True),
    Check("unmapped-values", "values have no class in the label mapping", _unmapped_values, True),
    Check("0-and-255", "masks of 0 and 255: one of the two classes is ignored", _zero_and_255, True),
    Check("rescaled-labels", "classes were rescaled to 0 to 255 or 65535 for display", _rescaled_labels, True),
    Check("label-ids", "Cityscapes' labelIds are read as if they were trainIds", _label_ids, True),
    Check("not-reduced", "0 means unlabeled and classes start at 1, but labels are not reduced", _not_reduced, True),
    Check("reduced-twice", "classes start at 0, but labels are reduced", _reduced_twice, True),
    Check("void-value", "a value that marks void pixels is not the ignored label", _void_value),
    Check("outside-classes", "values are neither classes nor the ignored label", _outside_classes),
    Check("one-class", "all pixels of all label maps belong to one class", _one_class),
    Check("absent-classes", "classes never occur (warning)", _absent_classes),
)

ISSUES: dict[str, str] = {check.name: check.description for check in CHECKS}
"""Names and descriptions of the issues that [`check_data`] finds."""


def _unmapped(split: CheckedSplit) -> set[int]:
    """Values that the label mapping lacks."""
    return {value for value in split.unexplained if split.statistics.label(value) is None}


def _describe(split: CheckedSplit, values: Iterable[int]) -> str:
    """Values with their labels and the number of label maps that have them."""

    def describe(value: int) -> str:
        label, count = split.statistics.label(value), split.statistics.samples[value]
        became = "" if label in (None, value) else f", read as {label}"
        return f"{value}{became} ({count} label map{'s' * (count != 1)})"

    return _listed(map(describe, sorted(values)))


def _listed(texts: Iterable[str]) -> str:
    texts = list(texts)
    return ", ".join(texts[:10]) + (", ..." if len(texts) > 10 else "")


def _issue_of_files(name: str, message: str, files: list[str], is_warning: bool = False) -> LabelIssue | None:
    """An issue of `files`, if there are any."""
    return LabelIssue(name, message, len(files), files, is_warning) if files else None


def _issue_of_values(split: CheckedSplit, name: str, message: str, values: set[int]) -> LabelIssue:
    """An issue of `values`, which count as explained from here on; its examples are samples that have them."""
    statistics = split.statistics
    examples = dict.fromkeys(name for value in sorted(values) for name in statistics.examples.get(value, ()))
    count = max((statistics.samples[value] for value in values), default=0)
    split.unexplained = split.unexplained - values
    return LabelIssue(name, message, count, list(examples)[:MAX_EXAMPLES])


__all__ = ["CHECKS", "ISSUES", "run_checks"]
