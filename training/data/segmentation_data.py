# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Decoded samples, and the order in which training sees them."""

from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from torchvision import tv_tensors
from transformers.image_processing_utils import BaseImageProcessor

from hf_segmodels.label_maps import check_label_map, label_map_to_tensor, reduce_labels


class SegmentationData(Dataset):
    """
    One split of a data set with a column of images and one of label maps.

    Samples of small sets are decoded once and kept in memory (`keep_in_memory`).

    Args:
        source (`str`): What `datasets.load_dataset` takes: a folder (parquet, image folder) or a Hub repository.
        split (`str`): The split's name.
        image_column, label_column (`str`, *optional*): The columns' names.
        processor (`BaseImageProcessor`, *optional*): Says what labels mean, with its `do_reduce_labels`, `ignore_index`
            and `num_labels`. Without it they are taken as they are.
        keep_in_memory (`bool`, *optional*, defaults to `True`): Whether to keep decoded samples.
    """

    def __init__(
        self,
        source: str,
        split: str,
        image_column: str = "image",
        label_column: str = "label",
        processor: BaseImageProcessor | None = None,
        keep_in_memory: bool = True,
    ):
        self.rows = datasets.load_dataset(source, split=split)
        missing = {image_column, label_column} - set(self.rows.column_names)
        if missing:
            raise ValueError(
                f"{source} has no column {sorted(missing)}: set `image_column` and `label_column` in the recipe to two "
                f"of {self.rows.column_names}."
            )
        self.split, self.image_column, self.label_column = split, image_column, label_column
        self.do_reduce_labels = bool(processor and processor.do_reduce_labels)
        self.ignore_index = processor.ignore_index if processor else 255
        self.num_labels = processor.num_labels if processor else None
        fits_a_byte = 0 <= self.ignore_index <= 255 and self.num_labels is not None and self.num_labels <= 256
        self.label_dtype = torch.uint8 if fits_a_byte else torch.int64
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = {} if keep_in_memory else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """
        Image `(3, height, width)` uint8 and label map `(height, width)`, reduced if the processor says so, int64 or
        (where that is enough) uint8.

        Raises:
            ValueError: if the label map is no map of classes, or does not fit the image.
        """
        if self.kept is not None and index in self.kept:
            image, label_map = self.kept[index]
        else:
            row = self.rows[index]
            # (height, width, 3) -> (3, height, width)
            image = torch.from_numpy(np.array(row[self.image_column].convert("RGB"))).permute(2, 0, 1).contiguous()
            label_map = self._read_label_map(row[self.label_column], index)
            if label_map.shape != image.shape[1:]:
                raise ValueError(
                    f"The label map of sample {index} has (height, width) {tuple(label_map.shape)} but its image has "
                    f"{tuple(image.shape[1:])}: each pixel needs its label, so resize or crop them alike."
                )
            if self.kept is not None:
                self.kept[index] = image, label_map
        return tv_tensors.Image(image), tv_tensors.Mask(label_map)

    def _read_label_map(self, label_map: Any, index: int) -> torch.Tensor:
        """Class of each pixel, or `ignore_index`, `(height, width)`."""
        name = f"label map of sample {index} in {self.split}"
        if file := getattr(label_map, "filename", ""):
            name += f" ({file})"
        labels = label_map_to_tensor(label_map, name)
        if self.do_reduce_labels:
            labels, name = reduce_labels(labels, self.ignore_index), f"{name} (reduced)"
        if self.num_labels is not None:
            check_label_map(labels, self.num_labels, self.ignore_index, name)
        return labels.to(self.label_dtype)

    def class_counts(self, num_labels: int) -> torch.Tensor:
        """Labelled pixels of each class, `(num_labels,)`."""
        counts = torch.zeros(num_labels, dtype=torch.int64)
        for index in range(len(self)):
            label_map = self[index][1].as_subclass(torch.Tensor)
            counts += torch.bincount(label_map[label_map != self.ignore_index].long(), minlength=num_labels)
        return counts


class AugmentedData(Dataset):
    """
    `data` under a random `transform` that depends only on the seed, the epoch and the sample, so that a resumed run
    sees exactly the pixels that an uninterrupted one sees, whatever the number of worker processes.
    """

    def __init__(self, data: SegmentationData, transform: Any, seed: int):
        self.data, self.transform, self.seed = data, transform, seed

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
        epoch, index = key
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash((self.seed, epoch, index)) % 2**63)
            image, label_map = self.transform(*self.data[index])
        return image.as_subclass(torch.Tensor), label_map.as_subclass(torch.Tensor)


class TrainingBatches(Sampler):
    """
    Batches of `(epoch, index)` from `start` on, endlessly: every epoch is a permutation that depends only on the seed
    and the epoch, and with several processes each takes its share of every global batch.

    Args:
        length (`int`): Samples in the data set.
        batch_size (`int`): Samples in a batch of one process.
        start, stop (`int`): Batches to skip (resume), and the batch to stop before.
        process_index, num_processes (`int`, *optional*): This process, of how many.
        seed (`int`, *optional*): Seed of the permutations.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        start: int,
        stop: int,
        process_index: int = 0,
        num_processes: int = 1,
        seed: int = 0,
    ):
        self.length, self.batch_size, self.start, self.stop = length, batch_size, start, stop
        self.process_index, self.num_processes, self.seed = process_index, num_processes, seed
        self.order: tuple[int, list[int]] = (-1, [])

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in range(self.start, self.stop):
            first = (batch * self.num_processes + self.process_index) * self.batch_size
            yield [self._sample(position) for position in range(first, first + self.batch_size)]

    def _sample(self, position: int) -> tuple[int, int]:
        epoch, offset = divmod(position, self.length)
        if self.order[0] != epoch:
            generator = torch.Generator().manual_seed(hash((self.seed, epoch)) % 2**63)
            self.order = epoch, torch.randperm(self.length, generator=generator).tolist()
        return epoch, self.order[1][offset]
