# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Augmented samples, and the order in which training sees them."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

from ..data import SegmentationData


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
        return _augment(self.data[index], self.transform, (self.seed, epoch, index))


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


class AugmentedStream(IterableDataset):
    """
    Streamed `data` under a random `transform`: the samples of the batches from `start` on, in an order that depends only
    on the seed and the epoch, shuffled within a buffer. With several processes each takes its share, with several workers
    the loader takes batches from them in turn; resumed runs see the same samples as uninterrupted ones where `start` is a
    multiple of the number of workers.

    Args:
        data (`SegmentationData`): With `streaming=True`.
        transform: See [`AugmentedData`].
        seed (`int`): Of order and transform.
        batch_size (`int`): Samples in a batch of one process.
        start, stop (`int`): Batches to skip (resume), and the batch to stop before.
        process_index, num_processes (`int`, *optional*): This process, of how many.
        buffer_size (`int`, *optional*, defaults to 256): Samples to draw from, not decoded.
    """

    def __init__(
        self,
        data: SegmentationData,
        transform: Any,
        seed: int,
        batch_size: int,
        start: int,
        stop: int,
        process_index: int = 0,
        num_processes: int = 1,
        buffer_size: int = 256,
    ):
        self.data, self.transform, self.seed, self.batch_size = data, transform, seed, batch_size
        self.start, self.stop = start, stop
        self.process_index, self.num_processes = process_index, num_processes
        self.buffer_size = buffer_size

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        worker = get_worker_info()
        worker_index, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        num_shards = self.data.rows.num_shards
        if num_workers > num_shards // self.num_processes and num_workers > 1:
            raise ValueError(
                f"{num_workers} workers of each of {self.num_processes} processes cannot share the {num_shards} shards of "
                f"the streamed data: set `num_workers` to at most {max(1, num_shards // self.num_processes)}."
            )
        # this worker's batches: every n-th
        first, last = (
            self.batch_size * len(range(worker_index, batch, num_workers)) for batch in (self.start, self.stop)
        )
        rows = itertools.islice(self._rows(), first, last)
        for position, row in enumerate(rows, start=first):
            place = (self.seed, self.process_index, worker_index, position)
            yield _augment(self.data.decode(row, position), self.transform, place)

    def _rows(self) -> Iterator[dict[str, Any]]:
        """This worker's rows, epoch after epoch."""
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


def _augment(
    sample: tuple[torch.Tensor, torch.Tensor], transform: Any, place: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Image and label map under `transform`, whose random numbers depend on `place` only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hash(place) % 2**63)
        image, label_map = transform(*sample)
    return image.as_subclass(torch.Tensor), label_map.as_subclass(torch.Tensor)
