# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Decoded samples of a data set, as training and evaluation take them."""

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


class SegmentationData(Dataset):
    """
    One split of a data set of images and label maps, decoded.

    Args:
        source (`str` or `Path`): See [`load_segmentation_dataset`].
        split (`str`): The split's name.
        image_column, label_column (`str`, *optional*): The columns' names, without a layout.
        processor (`BaseImageProcessor`, *optional*): Says what labels mean, with its `do_reduce_labels`, `ignore_index`
            and `num_labels`. Without it they are taken as they are.
        layout (`str`, *optional*): A native layout; see [`load_segmentation_dataset`].
        label_mapping (`Mapping[int, int | None]` or `str`, *optional*): Class of each value in the label maps, before they
            are reduced; replaces the layout's own.
        streaming (`bool`, *optional*, defaults to `False`): Whether samples come one after another: then there is neither
            a length nor an index.
        max_kept_bytes (`int`, *optional*, defaults to 1 GiB): Decoded samples are kept in memory (of each process) up to
            this size together; those beyond are decoded each time. 0 keeps none.

    Raises:
        ValueError: if the layout's labels are to be reduced and `processor` does not, or the other way round.
    """

    def __init__(
        self,
        source: str | Path,
        split: str,
        image_column: str = "image",
        label_column: str = "label",
        processor: Any = None,
        layout: str | None = None,
        label_mapping: Mapping[int, int | None] | str | None = None,
        streaming: bool = False,
        max_kept_bytes: int = 2**30,
    ):
        self.do_reduce_labels = bool(processor and processor.do_reduce_labels)
        self.ignore_index = processor.ignore_index if processor else 255
        self.num_labels = processor.num_labels if processor else None
        self.opened = open_split(
            source,
            split,
            layout,
            image_column=image_column,
            label_column=label_column,
            label_mapping=label_mapping,
            ignore_index=self.ignore_index,
            streaming=streaming,
        )
        check_partners(self.opened)
        self._check_reduction(processor)
        self.rows, self.split, self.streaming = self.opened.rows, split, streaming
        fits_a_byte = 0 <= self.ignore_index <= 255 and self.num_labels is not None and self.num_labels <= 256
        self.label_dtype = torch.uint8 if fits_a_byte else torch.int64
        self.max_kept_bytes = 0 if streaming else max_kept_bytes
        self.kept_bytes = 0
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def _check_reduction(self, processor: Any) -> None:
        layout = self.opened.layout
        # of one's own folder and mapping nobody else knows what 0 means
        if processor is None or layout is None or layout.labels is None or self.opened.is_mapped:
            return
        if layout.do_reduce_labels != self.do_reduce_labels:
            meaning = "0 is no class" if layout.do_reduce_labels else "classes start at 0 as they are read"
            raise ValueError(
                f"In the layout {layout.name!r} {meaning}: the image processor needs "
                f"`do_reduce_labels={layout.do_reduce_labels}`."
            )

    def __len__(self) -> int:
        if self.streaming:
            raise TypeError("Streamed data has no length: iterate over it, or open it with `streaming=False`.")
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """
        Image `(3, height, width)` uint8 and label map `(height, width)`, reduced if the processor says so, int64 or
        (where that is enough) uint8.

        Raises:
            TypeError: if the data is streamed.
            ValueError: if the label map is no map of classes, or does not fit the image.
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
        return self.share()

    def share(
        self, process_index: int = 0, num_processes: int = 1
    ) -> Iterator[tuple[tv_tensors.Image, tv_tensors.Mask]]:
        """Samples in order: every n-th one where there is an index, otherwise the share that `datasets` deals out."""
        if not self.streaming:
            yield from (self[index] for index in range(process_index, len(self), num_processes))
            return
        from datasets.distributed import split_dataset_by_node

        for index, row in enumerate(split_dataset_by_node(self.rows, process_index, num_processes)):
            yield self.decode(row, index)

    def decode(self, row: Mapping[str, Any], index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """A row of `rows` as [`SegmentationData.__getitem__`] gives it; `index` is for messages."""
        pixels = np.array(to_rgb(import_datasets().Image().decode_example(row["image"])))
        # (height, width, 3) -> (3, height, width)
        image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
        label_map = self._read_label_map(row["label"], index)
        if label_map.shape != image.shape[1:]:
            raise ValueError(
                f"The {name_of(row['label'], f'label map of sample {index} in {self.split}')} has (height, width) "
                f"{tuple(label_map.shape)} but its image has {tuple(image.shape[1:])}: each pixel needs its label, so "
                "resize or crop them alike."
            )
        return tv_tensors.Image(image), tv_tensors.Mask(label_map)

    def _read_label_map(self, value: Any, index: int) -> torch.Tensor:
        """Class of each pixel, or `ignore_index`, `(height, width)`."""
        name = name_of(value, f"label map of sample {index} in {self.split}")
        labels = label_map_to_tensor(self.opened.reader.read(value, name), name)
        if self.do_reduce_labels:
            labels, name = reduce_labels(labels, self.ignore_index), f"{name} (reduced)"
        if self.num_labels is not None:
            check_label_map(labels, self.num_labels, self.ignore_index, name)
        return labels.to(self.label_dtype)

    def class_counts(self, num_labels: int) -> torch.Tensor:
        """Labeled pixels of each class, `(num_labels,)`."""
        counts = torch.zeros(num_labels, dtype=torch.int64)
        # images stay undecoded
        for index, row in enumerate(self.rows.select_columns("label")):
            label_map = self._read_label_map(row["label"], index)
            counts += torch.bincount(label_map[label_map != self.ignore_index].long(), minlength=num_labels)
        return counts


__all__ = ["SegmentationData"]
