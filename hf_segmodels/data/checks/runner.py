# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Label checks of whole data sets, and their quick form before a training run."""

import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tqdm import tqdm
from transformers.utils import logging

from ..dataset import SegmentationData
from ..loading import RawSplit, open_split
from ..specs import DatasetSpec, LabelSpec, as_dataset_spec
from .label_checks import SplitStatistics, run_checks
from .report import DataReport, SplitReport
from .sample_checks import SampleFacts, read_sample_facts


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
    dataset = as_dataset_spec(dataset)
    reports = [
        _check_split(open_split(dataset, split, labels.ignore_index), labels, num_workers, max_samples, progress)
        for split in splits
    ]
    return DataReport(dataset, labels, reports)


def quick_check(data: SegmentationData, max_samples: int = 32) -> SplitReport:
    """
    Check `max_samples` label maps, spread over a split, in this process. Logs warnings, and returns the report with them.

    Raises:
        ValueError: if an issue is more than a warning, or the number of classes is unknown.
    """
    report = _check_split(data.raw, data.labels, num_workers=0, max_samples=max_samples)
    if errors := [str(issue) for issue in report.issues if not issue.is_warning]:
        header = f"Label issues were found in {data.split} (`hf-segmodels check-data` reports more):"
        raise ValueError("\n".join([header, *errors]))
    for issue in report.issues:
        logger.warning(f"{data.split}: {issue}")
    return report


def _check_split(
    raw: RawSplit, labels: LabelSpec, num_workers: int | None, max_samples: int | None, progress: bool = False
) -> SplitReport:
    if labels.num_labels is None:
        raise ValueError("The number of classes is unknown: specify `num_labels` in the `LabelSpec`.")
    total = None if raw.dataset.streaming else len(raw.rows)
    is_complete = max_samples is None or (total is not None and total <= max_samples)
    statistics = SplitStatistics(raw, labels, is_complete)
    facts = _read(raw, num_workers, None if is_complete else max_samples)
    num_read = total if is_complete else max_samples
    for sample in tqdm(facts, f"label maps of {raw.split}", num_read, unit="map", disable=not progress):
        statistics.add(sample)
    return run_checks(statistics)


def _read(raw: RawSplit, num_workers: int | None, max_samples: int | None) -> Iterator[SampleFacts]:
    """Facts of the samples, in order."""
    if raw.dataset.streaming:
        rows = raw.rows if max_samples is None else raw.rows.take(max_samples)
        yield from (read_sample_facts(row, index, raw.reader) for index, row in enumerate(rows))
        return
    count = len(raw.rows)
    max_samples = count if max_samples is None else max_samples
    indices = [index * count // max_samples for index in range(max_samples)]
    if num_workers is None:
        # the processors that this process may use
        num_workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    num_workers = min(num_workers, -(-max_samples // _CHUNK))
    if num_workers <= 1:
        yield from (read_sample_facts(raw.rows[index], index, raw.reader) for index in indices)
        return
    with ProcessPoolExecutor(num_workers, initializer=_start_worker, initargs=(raw,)) as pool:
        try:
            yield from pool.map(_read_in_worker, indices, chunksize=_CHUNK)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


# The split that a worker reads
_raw: RawSplit | None = None


def _start_worker(raw: RawSplit) -> None:
    global _raw
    _raw = raw
    # an interrupt ends the parent process, which ends its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _read_in_worker(index: int) -> SampleFacts:
    assert _raw is not None
    return read_sample_facts(_raw.rows[index], index, _raw.reader)
