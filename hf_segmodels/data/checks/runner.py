# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Label checks of whole data sets, and their quick form before a training run."""

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers.utils import logging

from ..dataset import SegmentationData
from ..loading import RawSplit, open_split
from ..specs import DatasetSpec, LabelSpec, as_dataset_spec
from .label_checks import run_checks
from .report import DataReport, SplitReport
from .sample_facts import SampleFacts, read_sample_facts
from .statistics import SplitStatistics


logger = logging.get_logger(__name__)

# Samples that a worker takes at a time
_CHUNK = 16


def check_data(
    dataset: DatasetSpec | str | Path,
    splits: Sequence[str],
    labels: LabelSpec,
    *,
    num_workers: int | None = None,
    max_samples: int | None = None,
    progress: bool = False,
) -> DataReport:
    """
    Read the label maps of a data set and report the issues of its labels.

    Args:
        dataset (`DatasetSpec`, `str` or `Path`): The data set, or the source of one that needs no other options.
        splits (`Sequence[str]`): Names of the splits.
        labels (`LabelSpec`): Meaning of the labels, with `num_labels`.
        num_workers (`int`, *optional*): Number of processes that read. Defaults to the number of processors. 0 and 1
            read in this process.
        max_samples (`int`, *optional*): Number of samples to read, spread over the split. Defaults to all.
        progress (`bool`, *optional*, defaults to `False`): Whether to show a progress bar.

    Returns:
        `DataReport`: For each split the sizes, the modes, the pixels and images of each class, and the label issues.

    Raises:
        ValueError: if a split, layout or column does not exist, no image has a label map, or `labels` has no number of
            classes.
    """
    checker = LabelChecker(labels, num_workers, max_samples, progress)
    dataset = as_dataset_spec(dataset)
    return DataReport(
        dataset, labels, [checker.check(open_split(dataset, split, labels.ignore_index)) for split in splits]
    )


def quick_check(data: SegmentationData, max_samples: int = 32) -> SplitReport:
    """
    Check a few label maps, spread over a split, in this process. Logs warnings.

    Args:
        data (`SegmentationData`): The split.
        max_samples (`int`, *optional*, defaults to 32): Number of samples to read.

    Returns:
        `SplitReport`: The report, whose issues are warnings only.

    Raises:
        ValueError: if an issue is more than a warning, or the number of classes is unknown.
    """
    report = LabelChecker(data.labels, num_workers=0, max_samples=max_samples).check(data.raw)
    errors = [str(issue) for issue in report.issues if not issue.is_warning]
    if errors:
        header = f"Label issues were found in {data.split} (`hf-segmodels check-data` reports more):"
        raise ValueError("\n".join([header, *errors]))
    for issue in report.issues:
        logger.warning(f"{data.split}: {issue}")
    return report


@dataclass
class LabelChecker:
    """Reader of splits for the label checks; see [`check_data`] for the fields."""

    labels: LabelSpec
    num_workers: int | None = None
    max_samples: int | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        if self.labels.num_labels is None:
            raise ValueError("The number of classes is unknown: specify `num_labels` in the `LabelSpec`.")

    def check(self, raw: RawSplit) -> SplitReport:
        """Read a split and report its issues."""
        total = None if raw.dataset.streaming else len(raw.rows)
        is_complete = self.max_samples is None or (total is not None and total <= self.max_samples)
        statistics = SplitStatistics(raw, self.labels, is_complete)
        description = f"label maps of {raw.split}"
        num_read = total if is_complete else self.max_samples
        for facts in tqdm(self._read(raw), description, num_read, unit="map", disable=not self.progress):
            statistics.add(facts)
        return run_checks(statistics)

    def _read(self, raw: RawSplit) -> Iterator[SampleFacts]:
        """Facts of the samples, in order."""
        if raw.dataset.streaming:
            rows = raw.rows if self.max_samples is None else raw.rows.take(self.max_samples)
            for index, row in enumerate(rows):
                yield read_sample_facts(row, _sample_name(row, index), raw.reader)
            return
        count = len(raw.rows)
        indices: Sequence[int] = range(count)
        if self.max_samples is not None and self.max_samples < count:
            indices = [index * count // self.max_samples for index in range(self.max_samples)]
        num_workers = _num_processors() if self.num_workers is None else self.num_workers
        num_workers = min(num_workers, -(-len(indices) // _CHUNK))
        if num_workers <= 1:
            yield from (_facts_at(raw, index) for index in indices)
            return
        with ProcessPoolExecutor(num_workers, initializer=_start_worker, initargs=(raw,)) as pool:
            try:
                yield from pool.map(_facts_in_worker, indices, chunksize=_CHUNK)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _num_processors() -> int:
    """Number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# The split that a worker reads
_raw: RawSplit | None = None


def _start_worker(raw: RawSplit) -> None:
    global _raw
    _raw = raw
    # an interrupt ends the parent process, which ends its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _facts_in_worker(index: int) -> SampleFacts:
    assert _raw is not None
    return _facts_at(_raw, index)


def _facts_at(raw: RawSplit, index: int) -> SampleFacts:
    row = raw.rows[index]
    return read_sample_facts(row, _sample_name(row, index), raw.reader)


def _sample_name(row: Mapping[str, Any], index: int) -> str:
    """File of the label map or of the image, otherwise the row."""
    for column in ("label", "image"):
        value = row[column]
        if isinstance(value, Mapping) and value.get("path"):
            return str(value["path"]) if value.get("bytes") is None else f"row {index} ({value['path']})"
    return f"row {index}"
