# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""What is wrong with label maps, from the facts of each."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd

from ..label_reader import LabelReader
from ..layouts import CITYSCAPES_TRAIN_IDS
from ..loading import OpenedSplit
from .label_facts import SampleFacts
from .report import FAULTS, MAX_EXAMPLES, Fault, SplitReport


_CITYSCAPES_CLASSES = 19


@dataclass
class Meaning:
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


class Findings:
    """Adds up the facts of a split's samples, and says what is wrong with them."""

    def __init__(self, opened: OpenedSplit, meaning: Meaning, class_names: list[str], is_whole: bool):
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
        self.first_colors: dict[int, tuple[int, ...]] = {}
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
            self._note("color-label-map", facts, f"{mode}{', all channels alike' if facts.is_gray else ''}")
        elif (
            mode.startswith("I")
            and self.meaning.num_labels <= 256
            and 0 <= min(facts.values) <= max(facts.values) <= 255
        ):
            self._note("wide-label-map", facts, mode)
        for value, color in facts.colors.items():
            if self.first_colors.setdefault(value, color) != color:
                self._note("differing-palettes", facts, f"value {value} is {self.first_colors[value]} and {color}")
                break

    def _add_values(self, facts: SampleFacts) -> None:
        if not facts.values:
            return
        self.num_counted += 1
        for value, pixels in facts.values.items():
            self.pixels[value] += pixels
            self.samples[value] += 1
            examples = self.examples.setdefault(value, [])
            if len(examples) < MAX_EXAMPLES:
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
            "color-label-map": (
                "These label maps hold colors ({}), not class ids: write one channel with the class of each pixel (mode "
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
                "The same value has different colors in different files ({}): each palette was made for its own image, so "
                "values are no classes. Translate the colors into class ids, the same for all files. If the values are "
                "classes after all, allow this."
            ),
        }
        for name, message in messages.items():
            if self.found[name]:
                is_warning = name in ("turned-image", "wide-label-map")
                yield _fault(name, message.format(self.details[name]), self.found[name], is_warning)
        if ignored := self.found["all-ignored"]:
            # a few label maps may all lie in what nobody labeled
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
            whole = "0 is 'unlabeled' and classes start at 1" if 0 in values else "classes start at 1"
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
        return Fault(name, message, count, examples[:MAX_EXAMPLES]), values


def _fault(name: str, message: str, examples: list[str], is_warning: bool = False) -> Fault:
    return Fault(name, message, len(examples), examples, is_warning)


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


__all__ = ["Findings", "Meaning"]
