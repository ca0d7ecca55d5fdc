# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""What all counts of the metrics have in common."""

from typing import Any

import torch


class ClassCounts:
    """
    Numbers per class that grow batch by batch, in a memory that does not: those of parts of a data set add up to those
    of the whole.

    Args:
        num_labels (`int`): Number of classes.
        ignore_index (`int`, *optional*, defaults to 255): Label of pixels that do not count.
    """

    counts: torch.Tensor

    def __init__(self, num_labels: int, ignore_index: int = 255):
        if num_labels < 1:
            raise ValueError(f"`num_labels` must be at least 1, got {num_labels}.")
        self.num_labels = num_labels
        self.ignore_index = ignore_index

    @property
    def settings(self) -> dict[str, Any]:
        """What another's counts have to agree in to be added."""
        return {name: value for name, value in vars(self).items() if name != "counts"}

    def update(self, predictions: Any, references: Any) -> None:
        """Counts one label map or a batch of them."""
        raise NotImplementedError

    def merge(self, other: "ClassCounts") -> None:
        """Adds another's counts, e.g. those of another process."""
        if type(self) is not type(other) or self.settings != other.settings:
            raise ValueError(
                f"Counts of {type(self).__name__} with {self.settings} and of {type(other).__name__} with "
                f"{other.settings} cannot be merged."
            )
        self.counts += other.counts.to(self.counts.device)
