# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Base class of the metrics."""

from typing import Any

import torch


class ClassCounts:
    """
    Counts per class, accumulated batch by batch in constant memory. Counts of parts of a data set add up to the counts
    of the whole.

    Args:
        num_labels (`int`): Number of classes.
        ignore_index (`int`, *optional*, defaults to 255): Label of ignored pixels.
    """

    counts: torch.Tensor

    def __init__(self, num_labels: int, ignore_index: int = 255):
        if num_labels < 1:
            raise ValueError(f"`num_labels` must be at least 1, got {num_labels}.")
        self.num_labels = num_labels
        self.ignore_index = ignore_index

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that must be equal for counts to be merged."""
        return {name: value for name, value in vars(self).items() if name != "counts"}

    def update(self, predictions: Any, references: Any) -> None:
        """Count one label map or a batch of them."""
        raise NotImplementedError

    def merge(self, other: "ClassCounts") -> None:
        """Add the counts of another object, for example of another process."""
        if type(self) is not type(other) or self.settings != other.settings:
            raise ValueError(
                f"Counts of {type(self).__name__} with {self.settings} and of {type(other).__name__} with "
                f"{other.settings} cannot be merged."
            )
        self.counts += other.counts.to(self.counts.device)
