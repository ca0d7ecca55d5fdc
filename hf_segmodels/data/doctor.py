# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Finds what is wrong with the label maps of a data set before a model is trained on them."""

import os
import signal
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from math import gcd
from typing import Any

from tqdm import tqdm
from transformers.utils import logging

from .label_facts import SampleFacts, sample_facts
from .label_reader import LabelReader
from .layouts import CITYSCAPES_TRAIN_IDS
from .loading import OpenedSplit, open_split
from .segmentation_data import SegmentationData


logger = logging.get_logger(__name__)

FAULTS: dict[str, str] = {
    "missing-label": "an image has no label map",
    "missing-image": "a label map has no image",
    "several-files": "several files have the name of one image or label map",
    "unreadable-image": "an image is damaged, cut off, or none",
    "unreadable-label": "a label map is damaged, cut off, or none",
    "size-mismatch": "an image and its label map differ in size",
    "turned-image": "EXIF data turns an image, but not its label map (warning)",
    "colour-label-map": "a label map holds colours instead of classes",
    "float-label-map": "a label map holds fractions",
    "wide-label-map": "a label map has 16 bits or more without need (warning)",
    "jpeg-label-map": "a label map is a JPEG, which blurs classes",
    "differing-palettes": "a value has different colours in different files",
    "number-of-classes": "the model's classes are not as many as the layout's",
    "0-and-255": "masks of 0 and 255: one of the two classes is the ignored label",
    "stretched-values": "classes were spread over 0 to 255 or 65535 to make them visible",
    "label-ids": "Cityscapes' labelIds are read as if they were trainIds",
    "train-ids": "Cityscapes' trainIds are mapped as if they were labelIds",
    "not-reduced": "0 is unlabelled and classes start at 1, but labels are not reduced",
    "reduced-twice": "classes start at 0, but labels are reduced",
    "void-value": "a value that marks void pixels is not the ignored label",
    "unmapped-values": "values have no class in the label mapping",
    "outside-classes": "values are neither classes nor the ignored label",
    "all-ignored": "nothing in a label map counts (a warning unless that is so for most)",
    "one-class": "one class takes all pixels of all label maps",
    "absent-classes": "classes never occur (warning)",
}
"""Names of what [`check_data`] finds."""

_MAX_EXAMPLES = 5
_MAX_ROWS = 20
_CHUNK = 16
_CITYSCAPES_CLASSES = 19


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
        examples = self.examples[:_MAX_EXAMPLES]
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


@dataclass
class _Meaning:
    """What values in the files mean."""

    num_labels: int
    ignore_index: int
    do_reduce_labels: bool
    reader: LabelReader

    def label(self, value: int) -> int | None:
        """The label that training sees for `value`; None where the mapping names none."""
        if self.reader.mapping is not None:
            if value not in self.reader.mapping:
                return None
            value = self.reader.mapping[value]
        if self.do_reduce_labels:
            return self.ignore_index if value in (0, self.ignore_index) else value - 1
        return value

    def is_class(self, label: int | None) -> bool:
        return label is not None and 0 <= label < self.num_labels and label != self.ignore_index


def check_data(
    source: str,
    splits: Sequence[str],
    *,
    num_labels: int,
    id2label: Mapping[int, str] | None = None,
    layout: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    label_mapping: Mapping[int, int | None] | str | None = None,
    do_reduce_labels: bool = False,
    ignore_index: int = 255,
    streaming: bool = False,
    num_workers: int | None = None,
    max_samples: int | None = None,
    progress: bool = False,
) -> DataReport:
    """
    Reads the label maps of a data set and reports what is wrong with them.

    Args:
        source (`str`): See [`load_segmentation_dataset`].
        splits (`Sequence[str]`): Names of the splits.
        num_labels (`int`): Number of classes.
        id2label (`Mapping[int, str]`, *optional*): Their names.
        layout, image_column, label_column, label_mapping, streaming: See [`load_segmentation_dataset`].
        do_reduce_labels (`bool`, *optional*, defaults to `False`): Whether the image processor reduces labels.
        ignore_index (`int`, *optional*, defaults to 255): Label of pixels that do not count.
        num_workers (`int`, *optional*): Processes that read; as many as there are processors if unset, 0 for none but
            this one.
        max_samples (`int`, *optional*): Label maps to read, spread over the split; all if unset.
        progress (`bool`, *optional*, defaults to `False`): Whether to show a progress bar.

    Returns:
        `DataReport`: for each split sizes, modes, pixels and images of each class, and faults.

    Raises:
        ValueError: if a split, layout or column does not exist, or there is nothing to read.
    """
    reports = []
    for split in splits:
        opened = open_split(
            source,
            split,
            layout,
            image_column=image_column,
            label_column=label_column,
            label_mapping=label_mapping,
            ignore_index=ignore_index,
            streaming=streaming,
        )
        meaning = _Meaning(num_labels, ignore_index, do_reduce_labels, opened.reader)
        names = [(id2label or {}).get(index, f"class {index}") for index in range(num_labels)]
        reports.append(_check_split(opened, meaning, names, num_workers, max_samples, progress))
    return DataReport(source, layout, num_labels, ignore_index, do_reduce_labels, reports)


def quick_check(data: SegmentationData, num_labels: int | None = None, max_samples: int = 32) -> SplitReport:
    """
    The quick form, before training: reads a few label maps, spread over the split, in this process.

    Args:
        data (`SegmentationData`): A split.
        num_labels (`int`, *optional*): Number of classes, where its processor does not say it.
        max_samples (`int`, *optional*, defaults to 32): Label maps to read.

    Returns:
        `SplitReport`: with warnings only, which are logged too.

    Raises:
        ValueError: if there are faults; says which and what to do.
    """
    num_labels = data.num_labels or num_labels
    if num_labels is None:
        raise ValueError("The number of classes is not known: give `num_labels`, or `data` a processor that has it.")
    meaning = _Meaning(num_labels, data.ignore_index, data.do_reduce_labels, data.opened.reader)
    names = [f"class {index}" for index in range(num_labels)]
    report = _check_split(data.opened, meaning, names, 0, max_samples, False)
    faults = [str(fault) for fault in report.faults if not fault.is_warning]
    if faults:
        raise ValueError(
            "\n".join(
                [f"The labels of {data.split} cannot be trained on (`hf-segmodels check-data` tells more):", *faults]
            )
        )
    for fault in report.faults:
        logger.warning(f"{data.split}: {fault}")
    return report


def _check_split(
    opened: OpenedSplit,
    meaning: _Meaning,
    class_names: list[str],
    num_workers: int | None,
    max_samples: int | None,
    progress: bool,
) -> SplitReport:
    total = None if opened.is_streamed else len(opened.rows)
    is_whole = max_samples is None or (total is not None and total <= max_samples)
    findings = _Findings(opened, meaning, class_names, is_whole)
    num_read = total if max_samples is None or total is None else min(total, max_samples)
    bar = tqdm(total=num_read, desc=f"label maps of {opened.split}", unit="map", disable=not progress)
    with bar:
        for facts in _read(opened, num_workers, max_samples):
            findings.add(facts)
            bar.update()
    return findings.report()


def _read(opened: OpenedSplit, num_workers: int | None, max_samples: int | None) -> Iterator[SampleFacts]:
    """Facts of the samples, in order."""
    if opened.is_streamed:
        rows = opened.rows if max_samples is None else opened.rows.take(max_samples)
        for index, row in enumerate(rows):
            yield sample_facts(row, _name(row, index), opened.reader)
        return
    count = len(opened.rows)
    wanted: Sequence[int] = range(count)
    if max_samples is not None and max_samples < count:
        wanted = [index * count // max_samples for index in range(max_samples)]
    num_workers = num_processors() if num_workers is None else num_workers
    num_workers = min(num_workers, -(-len(wanted) // _CHUNK))
    if num_workers <= 1:
        yield from (_facts_at(opened, index) for index in wanted)
        return
    with ProcessPoolExecutor(num_workers, initializer=_start_worker, initargs=(opened,)) as pool:
        try:
            yield from pool.map(_facts_in_worker, wanted, chunksize=_CHUNK)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def num_processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_opened: OpenedSplit | None = None


def _start_worker(opened: OpenedSplit) -> None:
    global _opened
    _opened = opened
    # an interrupt ends the parent, which ends its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _facts_in_worker(index: int) -> SampleFacts:
    assert _opened is not None
    return _facts_at(_opened, index)


def _facts_at(opened: OpenedSplit, index: int) -> SampleFacts:
    row = opened.rows[index]
    return sample_facts(row, _name(row, index), opened.reader)


def _name(row: Mapping[str, Any], index: int) -> str:
    """The label map's file, or the image's, or the row."""
    for column in ("label", "image"):
        value = row[column]
        if isinstance(value, Mapping) and value.get("path"):
            return str(value["path"]) if value.get("bytes") is None else f"row {index} ({value['path']})"
    return f"row {index}"


class _Findings:
    """Adds up the facts of a split's samples, and says what is wrong with them."""

    def __init__(self, opened: OpenedSplit, meaning: _Meaning, class_names: list[str], is_whole: bool):
        self.opened, self.meaning, self.class_names, self.is_whole = opened, meaning, class_names, is_whole
        self.image_sizes: Counter[str] = Counter()
        self.label_sizes: Counter[str] = Counter()
        self.label_modes: Counter[str] = Counter()
        self.pixels: Counter[int] = Counter()
        self.samples: Counter[int] = Counter()
        """That have each value."""
        self.class_samples: Counter[int | None] = Counter()
        """That have each label."""
        self.examples: dict[int, list[str]] = {}
        """Of each value, samples that have it."""
        self.first_colours: dict[int, tuple[int, ...]] = {}
        self.found: dict[str, list[str]] = {name: [] for name in FAULTS}
        """Samples that have a fault of their own."""
        self.details: dict[str, str] = {}
        """Of the first one of each fault."""
        self.num_read = self.num_counted = 0

    def add(self, facts: SampleFacts) -> None:
        """Adds a sample."""
        self.num_read += 1
        if facts.image_error:
            self._note("unreadable-image", facts, facts.image_error)
        if facts.image_size:
            self.image_sizes[_size(facts.image_size)] += 1
        if facts.is_turned:
            self._note("turned-image", facts)
        if facts.label_error:
            self._note("unreadable-label", facts, facts.label_error)
            return
        assert facts.label_size is not None
        self.label_sizes[_size(facts.label_size)] += 1
        self.label_modes[" ".join(filter(None, (facts.label_format, facts.label_mode)))] += 1
        if facts.image_size and facts.image_size != facts.label_size:
            what = f"{_size(facts.image_size)} and {_size(facts.label_size)}"
            self._note("size-mismatch", facts, what)
        self._add_mode(facts)
        self._add_values(facts)

    def _add_mode(self, facts: SampleFacts) -> None:
        mode = facts.label_mode
        if facts.label_format == "JPEG":
            self._note("jpeg-label-map", facts)
        if mode == "F" or mode.startswith("float"):
            self._note("float-label-map", facts, mode)
        elif not facts.values:
            self._note("colour-label-map", facts, f"{mode}{', all channels alike' if facts.is_grey else ''}")
        elif (
            mode.startswith("I")
            and self.meaning.num_labels <= 256
            and 0 <= min(facts.values) <= max(facts.values) <= 255
        ):
            self._note("wide-label-map", facts, mode)
        for value, colour in facts.colours.items():
            if self.first_colours.setdefault(value, colour) != colour:
                self._note("differing-palettes", facts, f"value {value} is {self.first_colours[value]} and {colour}")
                break

    def _add_values(self, facts: SampleFacts) -> None:
        if not facts.values:
            return
        self.num_counted += 1
        for value, pixels in facts.values.items():
            self.pixels[value] += pixels
            self.samples[value] += 1
            examples = self.examples.setdefault(value, [])
            if len(examples) < _MAX_EXAMPLES:
                examples.append(facts.name)
        labels = {self.meaning.label(value) for value in facts.values}
        self.class_samples.update(labels)
        if labels == {self.meaning.ignore_index}:
            self._note("all-ignored", facts)

    def _note(self, fault: str, facts: SampleFacts, detail: str = "") -> None:
        self.found[fault].append(facts.name)
        self.details.setdefault(fault, detail)

    def report(self) -> SplitReport:
        """The report on all that was added."""
        num_labels = self.meaning.num_labels
        report = SplitReport(
            self.opened.split,
            self.num_read if self.opened.is_streamed else len(self.opened.rows),
            self.num_read,
            dict(self.image_sizes.most_common()),
            dict(self.label_sizes.most_common()),
            dict(self.label_modes.most_common()),
            self.class_names,
            [0] * num_labels,
            [self.class_samples[index] for index in range(num_labels)],
        )
        for value, pixels in sorted(self.pixels.items()):
            label = self.meaning.label(value)
            if label is not None and self.meaning.is_class(label):
                report.pixels[label] += pixels
            elif label == self.meaning.ignore_index:
                report.ignored_pixels += pixels
            else:
                report.other_values[value] = pixels
        report.faults = [*self._partners(), *self._files(), *self._settings(), *self._values(report)]
        report.faults += self._classes(report)
        return report

    def _partners(self) -> Iterator[Fault]:
        """Files without a partner, of native layouts."""
        if self.opened.files is None:
            return
        pairs = self.opened.files.pairs
        for fault, names, message in (
            (
                "missing-label",
                [pair.name for pair in pairs if pair.label is None],
                "These images have no label map of their name: add it, or take the image out.",
            ),
            (
                "missing-image",
                [pair.name for pair in pairs if pair.image is None],
                "These label maps have no image of their name: add it, or take the label map out.",
            ),
            (
                "several-files",
                self.opened.files.ambiguous,
                "Several images or label maps have this name and differ in their suffix: keep one of each.",
            ),
        ):
            if names:
                yield _fault(fault, message, names)

    def _files(self) -> Iterator[Fault]:
        """Faults of single files."""
        num_labels = self.meaning.num_labels
        messages = {
            "unreadable-image": "These images cannot be read ({}): copy or download them again.",
            "unreadable-label": "These label maps cannot be read ({}): copy, download or write them again.",
            "size-mismatch": (
                "Image and label map differ in size (width x height: {}): each pixel needs its label, so resize or crop "
                "both alike (label maps without interpolation). Swapped sizes come from EXIF data that turns the image."
            ),
            "turned-image": (
                "EXIF data turns these images as they are read, but not their label maps: turn the pixels for good (Pillow's "
                "`ImageOps.exif_transpose`, then save), and look whether the labels lie on the objects."
            ),
            "colour-label-map": (
                "These label maps hold colours ({}), not class ids: write one channel with the class of each pixel (mode "
                "'L' or 'P'). If all channels are alike, keep one of them."
            ),
            "float-label-map": (
                "These label maps hold fractions ({}); class ids are integers: write them as 8-bit PNG, and never resize "
                "label maps with interpolation."
            ),
            "wide-label-map": (
                f"These label maps have more bits ({{}}) than {num_labels} classes need; they are read rightly here, but "
                "other programs cut them off at 255: 8-bit PNG is safer and smaller."
            ),
            "jpeg-label-map": (
                "These label maps are JPEG files, which changes values along every edge: make them again from the source, as "
                "PNG."
            ),
            "differing-palettes": (
                "The same value has different colours in different files ({}): each palette was made for its own image, so "
                "values are no classes. Translate the colours into class ids, the same for all files. If the values are "
                "classes after all, allow this."
            ),
        }
        for name, message in messages.items():
            if self.found[name]:
                is_warning = name in ("turned-image", "wide-label-map")
                yield _fault(name, message.format(self.details[name]), self.found[name], is_warning)
        if ignored := self.found["all-ignored"]:
            # a few label maps may all lie in what nobody labelled
            is_most = 2 * len(ignored) > self.num_counted if self.is_whole else len(ignored) == self.num_counted
            message = (
                f"Nothing in these label maps counts: all pixels are {self.meaning.ignore_index}"
                f"{' once labels are reduced' if self.meaning.do_reduce_labels else ''}. They teach nothing"
                f"{': check `do_reduce_labels`, `ignore_index` and the label mapping' if is_most else ''}."
            )
            yield _fault("all-ignored", message, ignored, not is_most)

    def _settings(self) -> Iterator[Fault]:
        """What contradicts the layout."""
        layout, meaning = self.opened.layout, self.meaning
        if layout is None or layout.num_labels is None or self.opened.is_mapped:
            return
        if layout.num_labels != meaning.num_labels:
            yield Fault(
                "number-of-classes",
                f"The layout {layout.name!r} has {layout.num_labels} classes, the model {meaning.num_labels}: set "
                "`num_labels` (or the class names, `id2label`) accordingly.",
            )
        if meaning.do_reduce_labels and not layout.do_reduce_labels:
            yield Fault(
                "reduced-twice",
                f"The layout {layout.name!r} gives classes from 0 on; reducing them again drops the first class and shifts "
                "all others: set `do_reduce_labels` to false.",
            )

    def _values(self, report: SplitReport) -> Iterator[Fault]:
        """Values that are not what they are taken for; each is explained once."""
        outside = set(report.other_values)
        meaning = self.meaning
        if meaning.reader.mapping is not None:
            unmapped = {value for value in outside if meaning.label(value) is None}
            yield from self._unmapped(unmapped)
            outside -= unmapped
        else:
            for diagnose in (self._two_values, self._stretched, self._label_ids, self._reduction):
                if found := diagnose(outside):
                    fault, explained = found
                    yield fault
                    outside -= explained
                    break
        if len(outside) == 1 and (value := next(iter(outside))) != meaning.num_labels:
            share = report.other_values[value] / self.pixels.total()
            yield self._value_fault(
                "void-value",
                f"{value} is no class and not the ignored label {meaning.ignore_index}, but takes {share:.1%} of the pixels "
                f"in {self.samples[value]} label maps. If it marks void pixels, set `ignore_index` to it or map it to null "
                "in `label_mapping`; if it is a class, raise the number of classes.",
                outside,
            )[0]
        elif outside:
            shown = ", ".join(self._describe(value) for value in sorted(outside)[:10])
            yield self._value_fault(
                "outside-classes",
                f"Values outside the {meaning.num_labels} classes (0 to {meaning.num_labels - 1}"
                f"{', after reducing' if meaning.do_reduce_labels else ''}; {meaning.ignore_index} is ignored): {shown}"
                f"{', ...' if len(outside) > 10 else ''}. Map them in `label_mapping` (null for void), or raise the number "
                "of classes if they are classes.",
                outside,
            )[0]

    def _unmapped(self, unmapped: set[int]) -> Iterator[Fault]:
        if not unmapped:
            return
        others = set(self.pixels) - {255}
        is_cityscapes = set(self.meaning.reader.mapping or ()) == set(CITYSCAPES_TRAIN_IDS)
        if is_cityscapes and unmapped == {255} and max(others, default=0) < _CITYSCAPES_CLASSES:
            yield self._value_fault(
                "train-ids",
                "These label maps hold 255 and nothing above 18: they are trainIds already, and the mapping from labelIds "
                "would scramble them. Name the files `*_labelTrainIds.png`, or leave the mapping out.",
                unmapped,
            )[0]
            return
        shown = ", ".join(self._describe(value) for value in sorted(unmapped)[:10])
        yield self._value_fault(
            "unmapped-values",
            f"The label mapping names no class for {shown}{', ...' if len(unmapped) > 10 else ''}: name one for each, or "
            "null where they do not count.",
            unmapped,
        )[0]

    def _describe(self, value: int) -> str:
        label = self.meaning.label(value)
        became = "" if label in (None, value) else f", read as {label}"
        return f"{value}{became} ({self.samples[value]} maps)"

    def _two_values(self, outside: set[int]) -> tuple[Fault, set[int]] | None:
        if set(self.pixels) != {0, 255} or self.meaning.num_labels < 2:
            return None
        seen = "is ignored" if self.meaning.ignore_index == 255 else "is no class"
        return self._value_fault(
            "0-and-255",
            f"All label maps hold 0 and 255 only, and 255 {seen}, so that one class is left at most: if these are masks of "
            "two classes, map them with `label_mapping: {0: 0, 255: 1}`.",
            {255},
        )

    def _stretched(self, outside: set[int]) -> tuple[Fault, set[int]] | None:
        values = sorted(self.pixels)
        num_labels, highest = self.meaning.num_labels, values[-1] if values else 0
        if not outside or not 3 <= len(values) <= num_labels or values[0] < 0 or highest < num_labels:
            return None
        step = gcd(*values)
        is_even = all(abs(value - index * highest / (len(values) - 1)) <= 1 for index, value in enumerate(values))
        if step >= 2 and highest // step < num_labels:
            what = f"multiples of {step}: divide by it"
        elif is_even and values[0] == 0 and highest in (255, 65535):
            what = f"spread evenly from 0 to {highest}: number them from 0"
        else:
            return None
        shown = ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")
        return self._value_fault(
            "stretched-values",
            f"All values ({shown}) are {what}. They were spread out to be visible, and are no class ids. "
            "`label_mapping` can name the class of each.",
            outside,
        )

    def _label_ids(self, outside: set[int]) -> tuple[Fault, set[int]] | None:
        others = set(self.pixels) - {255, self.meaning.ignore_index}
        highest = max(others, default=0)
        if self.meaning.num_labels != _CITYSCAPES_CLASSES or not outside:
            return None
        is_named = any("labelIds" in name for value in outside for name in self.examples[value])
        if not (is_named or _CITYSCAPES_CLASSES < highest <= max(CITYSCAPES_TRAIN_IDS)):
            return None
        return self._value_fault(
            "label-ids",
            f"With {_CITYSCAPES_CLASSES} classes, values up to {highest} look like Cityscapes' labelIds, not its trainIds: "
            "then every class is taken for another one. Set `layout: cityscapes`, which maps them, or read the "
            "`*_labelTrainIds.png` files. If they are other classes, raise the number of classes.",
            outside,
        )

    def _reduction(self, outside: set[int]) -> tuple[Fault, set[int]] | None:
        """Labels that are shifted by one, or would be."""
        layout, meaning = self.opened.layout, self.meaning
        layout = None if self.opened.is_mapped else layout
        num_labels, values = meaning.num_labels, set(self.pixels)
        if layout is not None and layout.do_reduce_labels and not meaning.do_reduce_labels:
            return self._value_fault(
                "not-reduced",
                f"In the layout {layout.name!r} 0 is no class and classes start at 1: set `do_reduce_labels` to true.",
                outside or {0},
            )
        if not meaning.do_reduce_labels and outside == {num_labels}:
            whole = "0 is 'unlabelled' and classes start at 1" if 0 in values else "classes start at 1"
            return self._value_fault(
                "not-reduced",
                f"Values go up to {num_labels}, one more than the last of {num_labels} classes. If {whole}, set "
                f"`do_reduce_labels` to true; if {num_labels} marks void pixels, map it to null in `label_mapping`.",
                outside,
            )
        is_known = layout is not None and layout.labels is not None
        if is_known or not meaning.do_reduce_labels or num_labels in values or not {0, num_labels - 1} <= values:
            return None
        # void pixels have a value of their own, or no class is missing once they are not reduced
        has_all = num_labels > 2 and set(range(num_labels)) <= values
        if not has_all and meaning.ignore_index not in values:
            return None
        fault, explained = self._value_fault(
            "reduced-twice",
            f"Values go from 0 to {num_labels - 1} and never reach {num_labels}, so classes start at 0 already; reducing them "
            "drops the first class and shifts all others: set `do_reduce_labels` to false.",
            {0},
        )
        # a few label maps may lack the last of a few classes
        fault.is_warning = not self.is_whole and num_labels < 5
        return fault, explained

    def _classes(self, report: SplitReport) -> Iterator[Fault]:
        """Too few classes."""
        present = [index for index, pixels in enumerate(report.pixels) if pixels]
        is_explained = report.other_values or any(fault.name == "0-and-255" for fault in report.faults)
        if len(present) == 1 and self.num_counted > 1 and len(report.pixels) > 1 and not is_explained:
            yield Fault(
                "one-class",
                f"Class {present[0]} ({report.class_names[present[0]]}) takes all pixels that count, in all "
                f"{self.num_counted} label maps: check how they were written, and whether the mapping keeps the others.",
                # others may be rare
                is_warning=not self.is_whole,
            )
        absent = [index for index, pixels in enumerate(report.pixels) if not pixels]
        if self.is_whole and absent and present:
            yield _fault(
                "absent-classes",
                "These classes never occur: they cannot be learned here, and have no IoU.",
                [f"{index} ({report.class_names[index]})" for index in absent],
                is_warning=True,
            )

    def _value_fault(self, name: str, message: str, values: set[int]) -> tuple[Fault, set[int]]:
        """A fault of some values, with samples that have them; and these values."""
        examples = list(dict.fromkeys(example for value in sorted(values) for example in self.examples.get(value, ())))
        count = max((self.samples[value] for value in values), default=0)
        return Fault(name, message, count, examples[:_MAX_EXAMPLES]), values


def _fault(name: str, message: str, examples: list[str], is_warning: bool = False) -> Fault:
    return Fault(name, message, len(examples), examples, is_warning)


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


__all__ = ["FAULTS", "DataReport", "Fault", "SplitReport", "check_data", "num_processors", "quick_check"]
