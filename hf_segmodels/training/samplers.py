# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Augmented samples, their order, and batches of them."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

from ..data import SegmentationData
from ..image_processing.segmentation_image_processor import SegmentationImageProcessor


Sample = tuple[torch.Tensor, torch.Tensor]


@dataclass(eq=False, kw_only=True)
class _Batches:
    """
    Range of batches of a process.

    Args:
        batch_size (`int`): Samples per batch of one process.
        start, stop (`int`): First batch, and end of the range of batches. A resumed run skips the batches before `start`.
        process_index, num_processes (`int`, *optional*): Index of this process, and number of processes.
        seed (`int`, *optional*, defaults to 0): Seed of the order, and of the transform of a stream.
    """

    batch_size: int
    start: int
    stop: int
    process_index: int = 0
    num_processes: int = 1
    seed: int = 0


@dataclass(eq=False)
class AugmentedData(Dataset):
    """
    Samples of `data` under a random `transform` that depends only on the seed, the epoch and the sample. A resumed run therefore
    sees the same pixels as an uninterrupted one, with any number of worker processes.
    """

    data: SegmentationData
    transform: Any
    seed: int

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, index = key
        return _augment(self.data[index], self.transform, (self.seed, epoch, index))


@dataclass(eq=False)
class TrainingBatches(_Batches, Sampler):
    """
    Batches of `(epoch, index)`. Each epoch is a permutation that depends only on the seed and the epoch. With several processes,
    each process takes one shard of every global batch. `length` is the number of samples in the data set.
    """

    length: int
    # the current epoch and its permutation
    order: tuple[int, list[int]] = (-1, [])

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


@dataclass(eq=False)
class AugmentedStream(_Batches, IterableDataset):
    """
    Samples of streamed `data` under a random `transform`, shuffled within a buffer in an order that depends only on the seed and
    the epoch. With several processes, each process reads its own shard. With several workers, the data loader takes their
    batches alternately; a resumed run then sees the same samples as an uninterrupted one if `start` is a multiple of the number
    of workers. The buffer holds `buffer_size` samples, not decoded.
    """

    data: SegmentationData
    transform: Any
    buffer_size: int = 256

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        worker_index, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        num_shards = self.data.rows.num_shards
        if num_workers > num_shards // self.num_processes and num_workers > 1:
            raise ValueError(
                f"{num_workers} workers of each of {self.num_processes} processes cannot split the {num_shards} shards of "
                f"the streamed data: set `num_workers` to at most {max(1, num_shards // self.num_processes)}."
            )
        # every `num_workers`-th batch belongs to this worker
        first, last = (
            self.batch_size * len(range(worker_index, batch, num_workers)) for batch in (self.start, self.stop)
        )
        rows = itertools.islice(self._rows(), first, last)
        for position, row in enumerate(rows, start=first):
            key = (self.seed, self.process_index, worker_index, position)
            yield _augment(self.data.decode(row, position), self.transform, key)

    def _rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of this worker, epoch after epoch."""
        from datasets.distributed import split_dataset_by_node

        shuffled = self.data.rows.shuffle(seed=self.seed, buffer_size=self.buffer_size)
        rows = split_dataset_by_node(shuffled, self.process_index, self.num_processes)
        for epoch in itertools.count():
            rows.set_epoch(epoch)
            row = None
            for row in rows:
                yield row
            if row is None:
                raise ValueError(f"The streamed data has no rows for process {self.process_index}.")


class TrainingCollator:
    """
    Batches in the form of the model's inputs: normalized, padded to the crop size, with all inputs that the method's processor
    adds (boundary targets of UN-EPT, superpixels). The processor also checks the labels. Samples that are smaller than `crop_size
    (height, width)` are padded at the bottom and right.
    """

    def __init__(self, processor: SegmentationImageProcessor, crop_size: Sequence[int]):
        self.processor = processor
        self.options: dict[str, Any] = {
            "do_resize": False,
            "do_reduce_labels": False,
            "do_pad": True,
            "pad_size": {"height": crop_size[0], "width": crop_size[1]},
            "return_tensors": "pt",
        }
        if hasattr(processor, "do_boundary_targets"):
            self.options["do_boundary_targets"] = True

    def __call__(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """
        Images `(3, height, width)` uint8 with label maps `(height, width)`, already reduced, become `pixel_values (batch_size, 3,
        height, width)`, `labels (batch_size, height, width)`, and the further inputs of the method.
        """
        images, label_maps = zip(*samples, strict=True)
        return dict(self.processor(list(images), **self.options | {"segmentation_maps": list(label_maps)}))


def _augment(sample: Sample, transform: Any, key: tuple[int, ...]) -> Sample:
    """Return image and label map under `transform`, with random numbers that depend only on `key`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hash(key) % 2**63)
        image, label_map = transform(*sample)
    return image.as_subclass(torch.Tensor), label_map.as_subclass(torch.Tensor)
