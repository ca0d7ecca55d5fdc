# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Confusion matrix, accumulated batch by batch, and the scores that the papers compute from it."""

from typing import Any

import torch

from .class_counts import ClassCounts, read_pair


# Maximum size of the table of all pairs of values, in which values that are not classes are found after counting.
_MAX_TABLE = 1 << 18


class ConfusionMatrix(ClassCounts):
    """
    Number of pixels of class `i` predicted as class `j` over a whole data set, in `num_labels` squared integers.

    Pixels labeled `ignore_index` count neither as intersection nor as union. Scores are computed from the totals of the
    data set, not averaged over images. Classes that occur neither in the labels nor in the predictions are left out of
    the means. This is the definition of mmsegmentation's `mean_iou`, which all four papers use.

    Args:
        num_labels (`int`): Number of classes.
        ignore_index (`int`, *optional*, defaults to 255): Label of ignored pixels.

    Example:

    ```python
    >>> import torch
    >>> from hf_segmodels.metrics import ConfusionMatrix

    >>> matrix = ConfusionMatrix(num_labels=2)
    >>> matrix.update(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 1, 255]]))
    >>> matrix.compute()["mean_iou"]
    1.0
    ```
    """

    def __init__(self, num_labels: int, ignore_index: int = 255):
        super().__init__(num_labels, ignore_index)
        self.counts = torch.zeros(num_labels, num_labels, dtype=torch.int64)

    def update(self, predictions: Any, references: Any) -> None:
        """Count predictions of any shape; see [`~SegmentationScores.update`]."""
        predictions, references = read_pair(predictions, references)
        if references.numel() == 0:
            return
        counts = self._count_values(predictions.flatten(), references.flatten())
        if counts is None:
            counts = self._count_valid(predictions, references)
        self.counts += counts.to(self.counts.device)

    def _count_values(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor | None:
        """
        Count all pairs of values, then remove ignored pixels from the counts and search them for values that are not
        classes, in one pass over the pixels. Return `None` if the table would be too large, or if a value is not a
        class.
        """
        (lowest, highest), (lowest_label, highest_label) = (
            (int(bound) for bound in values.aminmax()) for values in (predictions, references)
        )
        rows, columns = max(highest_label + 1, self.num_labels), max(highest + 1, self.num_labels)
        if min(lowest, lowest_label) < 0 or rows * columns > _MAX_TABLE:
            return None
        # 32 bits suffice for the table's indices, at half the memory traffic of 64 bits
        pairs = predictions.to(torch.int32, copy=True).add_(references.int(), alpha=columns)
        # (rows * columns,) -> (labels, predictions)
        table = torch.bincount(pairs, minlength=rows * columns).view(rows, columns)
        if 0 <= self.ignore_index < rows:
            table[self.ignore_index] = 0
        if table[self.num_labels :].any() or table[:, self.num_labels :].any():
            return None
        return table[: self.num_labels, : self.num_labels]

    def _count_valid(self, predictions: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
        """Check the pixels that are not ignored, then count them."""
        is_valid = references != self.ignore_index
        predictions, references = predictions[is_valid].long(), references[is_valid].long()
        self._check_classes(predictions, references)
        counts = torch.bincount(references * self.num_labels + predictions, minlength=self.num_labels**2)
        # (num_labels * num_labels,) -> (labels, predictions)
        return counts.view(self.num_labels, self.num_labels)

    def compute(self) -> dict[str, Any]:
        """
        Returns:
            `dict`: `mean_iou`, `mean_accuracy`, `overall_accuracy` (`float` from 0 to 1), `per_category_iou` and
            `per_category_accuracy` (`list[float]`; nan for classes that do not occur).
        """
        counts = self.counts.double()
        intersection = counts.diagonal()
        labeled, predicted = counts.sum(dim=1), counts.sum(dim=0)
        iou = intersection / (labeled + predicted - intersection)
        accuracy = intersection / labeled
        return {
            "mean_iou": iou.nanmean().item(),
            "mean_accuracy": accuracy.nanmean().item(),
            "overall_accuracy": (intersection.sum() / counts.sum()).item(),
            "per_category_iou": iou.tolist(),
            "per_category_accuracy": accuracy.tolist(),
        }
