# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Decoded samples of a data set, for training and evaluation."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from ..image_processing import to_rgb
from ..image_processing.label_maps import check_label_map, label_map_to_tensor, reduce_labels
from .label_reader import name_of
from .loading import check_partners, import_datasets, open_split
from .specs import DatasetSpec, LabelSpec, as_dataset_spec


class SegmentationData(Dataset):
    """
    One split of a data set as decoded images and label maps.

    Args:
        dataset (`DatasetSpec`, `str` or `Path`): The data set, or the source of one that needs no other options.
        split (`str`): Name of the split.
        labels (`LabelSpec`, *optional*): Meaning of the labels. Defaults to the labels of `processor`; without one,
            labels are neither reduced nor validated.
        processor (`BaseImageProcessor`, *optional*): Image processor whose `do_reduce_labels`, `ignore_index` and
            `num_labels` give `labels`.
        max_kept_bytes (`int`, *optional*, defaults to 1 GiB): Total size of the decoded samples that each process keeps
            in memory. Samples beyond this size are decoded on each access. 0 keeps none.

    Raises:
        ValueError: if `labels` and the layout disagree on `do_reduce_labels`, or an image or label map has no partner.
    """

    def __init__(
        self,
        dataset: DatasetSpec | str | Path,
        split: str,
        labels: LabelSpec | None = None,
        *,
        processor: Any = None,
        max_kept_bytes: int = 2**30,
    ):
        if labels is None and processor is not None:
            labels = LabelSpec.from_processor(processor)
        self.labels = labels or LabelSpec()
        self.raw = open_split(as_dataset_spec(dataset), split, self.labels.ignore_index)
        check_partners(self.raw)
        if labels is not None:
            self._check_reduction()
        self.rows, self.split, self.streaming = self.raw.rows, split, self.raw.dataset.streaming
        num_labels = self.labels.num_labels
        fits_uint8 = 0 <= self.labels.ignore_index <= 255 and num_labels is not None and num_labels <= 256
        self.label_dtype = torch.uint8 if fits_uint8 else torch.int64
        self.max_kept_bytes = 0 if self.streaming else max_kept_bytes
        self.kept_bytes = 0
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def _check_reduction(self) -> None:
        layout = self.raw.layout
        # custom folders and mappings do not define what 0 means
        if layout is None or layout.labels is None or self.raw.dataset.label_mapping is not None:
            return
        if layout.do_reduce_labels != self.labels.do_reduce_labels:
            zero = '"other"' if layout.do_reduce_labels else "the first class"
            raise ValueError(
                f"In the layout {layout.name!r} 0 means {zero}: the image processor needs "
                f"`do_reduce_labels={layout.do_reduce_labels}`."
            )

    def __len__(self) -> int:
        if self.streaming:
            raise TypeError("Streamed data has no length: iterate over it, or open it with `streaming=False`.")
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """
        Return a sample.

        Returns:
            `Image` of shape `(3, height, width)`, uint8, and `Mask` of shape `(height, width)`, uint8 if classes and
            `ignore_index` fit, otherwise int64. Labels are reduced if `labels.do_reduce_labels` is set.

        Raises:
            TypeError: if the data is streamed.
            ValueError: if the label map holds other values than classes, or differs in size from the image.
        """
        if self.streaming:
            raise TypeError("Streamed samples have no index: iterate over the data, or open it with `streaming=False`.")
        if index not in self.kept:
            sample = self.decode(self.rows[index], index)
            size = sum(part.nbytes for part in sample)
            if self.kept_bytes + size > self.max_kept_bytes:
                return sample
            self.kept[index] = sample
            self.kept_bytes += size
        image, label_map = self.kept[index]
        return tv_tensors.Image(image), tv_tensors.Mask(label_map)

    def __iter__(self) -> Iterator[tuple[tv_tensors.Image, tv_tensors.Mask]]:
        return self.shard(0, 1)

    def shard(self, rank: int, num_processes: int) -> Iterator[tuple[tv_tensors.Image, tv_tensors.Mask]]:
        """Iterate over the samples of a process: every n-th sample, or a shard of the stream, in order."""
        if not self.streaming:
            yield from (self[index] for index in range(rank, len(self), num_processes))
            return
        from datasets.distributed import split_dataset_by_node

        for index, row in enumerate(split_dataset_by_node(self.rows, rank, num_processes)):
            yield self.decode(row, index)

    def decode(self, row: Mapping[str, Any], index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """Decode a row of `rows`, see [`SegmentationData.__getitem__`]. `index` appears in error messages."""
        pixels = np.array(to_rgb(import_datasets().Image().decode_example(row["image"])))
        # (height, width, 3) -> (3, height, width)
        image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
        label_map = self._read_label_map(row["label"], index)
        if label_map.shape != image.shape[1:]:
            raise ValueError(
                f"The {name_of(row['label'], f'label map of sample {index} in {self.split}')} has (height, width) "
                f"{tuple(label_map.shape)} but its image has {tuple(image.shape[1:])}: each pixel needs a label, so "
                "resize or crop both alike."
            )
        return tv_tensors.Image(image), tv_tensors.Mask(label_map)

    def _read_label_map(self, value: Any, index: int) -> torch.Tensor:
        """Labels of shape `(height, width)`."""
        name = name_of(value, f"label map of sample {index} in {self.split}")
        labels = label_map_to_tensor(self.raw.reader.read(value, name), name)
        if self.labels.do_reduce_labels:
            labels, name = reduce_labels(labels, self.labels.ignore_index), f"{name} (reduced)"
        if self.labels.num_labels is not None:
            check_label_map(labels, self.labels.num_labels, self.labels.ignore_index, name)
        return labels.to(self.label_dtype)

    def class_counts(self, num_labels: int) -> torch.Tensor:
        """Count the pixels of each class, ignored ones excluded. Returns an int64 tensor of shape `(num_labels,)`."""
        counts = torch.zeros(num_labels, dtype=torch.int64)
        # images stay undecoded
        for index, row in enumerate(self.rows.select_columns("label")):
            label_map = self._read_label_map(row["label"], index)
            counts += torch.bincount(label_map[label_map != self.labels.ignore_index].long(), minlength=num_labels)
        return counts
