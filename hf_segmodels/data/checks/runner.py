# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Finds what is wrong with the label maps of a data set before a model is trained on them."""

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from tqdm import tqdm
from transformers.utils import logging

from ..dataset import SegmentationData
from ..loading import OpenedSplit, open_split
from .label_checks import Findings, Meaning
from .label_facts import SampleFacts, sample_facts
from .report import DataReport, SplitReport


logger = logging.get_logger(__name__)

# Label maps that a worker takes at once
_CHUNK = 16


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
        meaning = Meaning(num_labels, ignore_index, do_reduce_labels, opened.reader)
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
    meaning = Meaning(num_labels, data.ignore_index, data.do_reduce_labels, data.opened.reader)
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
    meaning: Meaning,
    class_names: list[str],
    num_workers: int | None,
    max_samples: int | None,
    progress: bool,
) -> SplitReport:
    total = None if opened.is_streamed else len(opened.rows)
    is_whole = max_samples is None or (total is not None and total <= max_samples)
    findings = Findings(opened, meaning, class_names, is_whole)
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


__all__ = ["check_data", "num_processors", "quick_check"]
