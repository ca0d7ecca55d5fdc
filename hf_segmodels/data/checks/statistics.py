# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Totals over the samples of a split, which the label checks read."""

from collections import Counter, defaultdict

from ..layouts import SplitFiles
from ..loading import RawSplit
from ..specs import LabelSpec
from .report import MAX_EXAMPLES, SplitReport
from .sample_checks import SAMPLE_CHECKS, SampleFacts


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
