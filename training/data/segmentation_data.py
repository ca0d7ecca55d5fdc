# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Decoded samples, and the order in which training sees them."""

from collections.abc import Iterator
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from torchvision import tv_tensors


class SegmentationData(Dataset):
    """
    One split of a data set with a column of images and one of label maps.

    Samples of small sets are decoded once and kept in memory (`keep_in_memory`).

    Args:
        source (`str`): What `datasets.load_dataset` takes: a folder (parquet, image folder) or a Hub repository.
        split (`str`): The split's name.
        image_column, label_column (`str`, *optional*): The columns' names.
        keep_in_memory (`bool`, *optional*, defaults to `True`): Whether to keep decoded samples.
    """

    def __init__(
        self,
        source: str,
        split: str,
        image_column: str = "image",
        label_column: str = "label",
        keep_in_memory: bool = True,
    ):
        self.rows = datasets.load_dataset(source, split=split)
        missing = {image_column, label_column} - set(self.rows.column_names)
        if missing:
            raise ValueError(
                f"{source} has no column {sorted(missing)}: set `image_column` and `label_column` in the recipe to two "
                f"of {self.rows.column_names}."
            )
        self.image_column, self.label_column = image_column, label_column
        self.kept: dict[int, tuple[torch.Tensor, torch.Tensor]] | None = {} if keep_in_memory else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """Image `(3, height, width)` and label map `(height, width)`, both uint8."""
        if self.kept is not None and index in self.kept:
            image, label_map = self.kept[index]
        else:
            row = self.rows[index]
            # (height, width, 3) -> (3, height, width)
            image = torch.from_numpy(np.array(row[self.image_column].convert("RGB"))).permute(2, 0, 1).contiguous()
            label_map = torch.from_numpy(np.array(row[self.label_column]))
            if label_map.dtype != torch.uint8 or label_map.shape != image.shape[1:]:
                raise ValueError(
                    f"Sample {index}: a label map of {label_map.dtype} and shape {tuple(label_map.shape)} for an image "
                    f"of shape {tuple(image.shape)}. Label maps must be single-channel PNGs of the image's size."
                )
            if self.kept is not None:
                self.kept[index] = image, label_map
        return tv_tensors.Image(image), tv_tensors.Mask(label_map)

    def class_counts(self, num_labels: int) -> torch.Tensor:
        """Labelled pixels of each class, `(num_labels,)`; ignored ones are beyond `num_labels`."""
        counts = torch.zeros(256, dtype=torch.int64)
        for index in range(len(self)):
            counts += torch.bincount(self[index][1].flatten().long(), minlength=256)
        return counts[:num_labels]


class AugmentedData(Dataset):
    """
    `data` under a random `transform` that depends only on the seed, the epoch and the sample, so that a resumed run
    sees exactly the pixels that an uninterrupted one sees, whatever the number of worker processes.
    """

    def __init__(self, data: SegmentationData, transform: Any, seed: int):
        self.data, self.transform, self.seed = data, transform, seed

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
