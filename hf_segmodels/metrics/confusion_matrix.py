# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""A confusion matrix that grows batch by batch, and the scores that the papers report from it."""

from typing import Any

import torch


class ConfusionMatrix:
    """
    Counts pixels of class `i` predicted as class `j` over a whole data set, in `num_labels` squared integers.

    Pixels labelled `ignore_index` do not count, neither as intersection nor as union; scores are taken over the totals
    of the set, not averaged over images, and classes that occur neither in the labels nor in the predictions are left
    out of the means. This is what mmsegmentation's `mean_iou` counts, with which all four papers were evaluated.

    Args:
        num_labels (`int`): Number of classes.
        ignore_index (`int`, *optional*, defaults to 255): Label of pixels that do not count.

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
        if num_labels < 1:
            raise ValueError(f"`num_labels` must be at least 1, got {num_labels}.")
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.counts = torch.zeros(num_labels, num_labels, dtype=torch.int64)

    def update(self, predictions: Any, references: Any) -> None:
        """
        Counts one label map or a batch of them.

        Args:
            predictions (integer tensor or array of any shape): Predicted classes.
            references (integer tensor or array of that shape): Labels: classes, or `ignore_index`.

        Raises:
            ValueError: if the shapes differ, or a value that counts is no class.
        """
        predictions, references = torch.as_tensor(predictions), torch.as_tensor(references)
        if predictions.shape != references.shape:
            raise ValueError(
                f"Predictions of shape {tuple(predictions.shape)} do not fit labels of shape "
                f"{tuple(references.shape)}: bring them to the labels' size, e.g. with `target_sizes`."
            )
        valid = references != self.ignore_index
        references = references[valid].long()
        predictions = predictions.to(references.device)[valid].long()
        for name, values in (("Predictions", predictions), ("Labels", references)):
            if values.numel() and (values.min() < 0 or values.max() >= self.num_labels):
                raise ValueError(
                    f"{name} hold values from {values.min().item()} to {values.max().item()}, outside the "
                    f"{self.num_labels} classes: check `num_labels`, and whether label 0 has to be reduced "
                    f"(`do_reduce_labels`) or void labels have to be mapped to {self.ignore_index}."
                )
        counts = torch.bincount(references * self.num_labels + predictions, minlength=self.num_labels**2)
        # (num_labels * num_labels,) -> (labels, predictions)
        self.counts += counts.view(self.num_labels, self.num_labels).to(self.counts.device)

    def merge(self, other: "ConfusionMatrix") -> None:
        """Adds another matrix's counts, e.g. those of another process."""
        if (self.num_labels, self.ignore_index) != (other.num_labels, other.ignore_index):
            raise ValueError(
                f"Matrices of {self.num_labels} and {other.num_labels} classes (ignored labels {self.ignore_index} and "
                f"{other.ignore_index}) cannot be merged."
            )
        self.counts += other.counts

    def compute(self) -> dict[str, Any]:
        """
        Returns:
            `dict`: `mean_iou`, `mean_accuracy`, `overall_accuracy` (`float` from 0 to 1), `per_category_iou` and
            `per_category_accuracy` (`list[float]`; nan for a class that does not occur).
        """
        counts = self.counts.double()
        intersection = counts.diagonal()
        labelled, predicted = counts.sum(dim=1), counts.sum(dim=0)
        iou = intersection / (labelled + predicted - intersection)
        accuracy = intersection / labelled
        return {
            "mean_iou": iou.nanmean().item(),
            "mean_accuracy": accuracy.nanmean().item(),
            "overall_accuracy": (intersection.sum() / counts.sum()).item(),
            "per_category_iou": iou.tolist(),
            "per_category_accuracy": accuracy.tolist(),
        }
