# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""All metrics of a data set together, over one or several processes."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from .boundary_iou import BoundaryIoU
from .class_counts import ClassCounts
from .confusion_matrix import ConfusionMatrix
from .object_sizes import ObjectSizes


@dataclass(eq=False)
class SegmentationScores:
    """
    Mean IoU, accuracies and, optionally, boundary IoU and mean IoU by the size of objects, accumulated batch by batch.

    Args:
        num_labels (`int`): Number of classes.
        ignore_index (`int`, *optional*, defaults to 255): Label of ignored pixels.
        boundary_iou (`bool`, *optional*, defaults to `False`): Whether to compute [`BoundaryIoU`].
        dilation_ratio (`float`, *optional*, defaults to 0.02): See [`BoundaryIoU`].
        object_sizes (`bool`, *optional*, defaults to `False`): Whether to compute [`ObjectSizes`].

    Example:

    ```python
    >>> import torch
    >>> from hf_segmodels.metrics import SegmentationScores

    >>> scores = SegmentationScores(num_labels=2, boundary_iou=True, object_sizes=True)
    >>> scores.update(torch.tensor([[0, 1, 1]]), torch.tensor([[0, 1, 1]]))
    >>> results = scores.compute()
    >>> results["mean_iou"], results["mean_boundary_iou"], results["mean_iou_small"]
    (1.0, 1.0, 1.0)
    ```
    """

    num_labels: int
    ignore_index: int = 255
    boundary_iou: bool = False
    dilation_ratio: float = 0.02
    object_sizes: bool = False

    def __post_init__(self) -> None:
        self.matrix = ConfusionMatrix(self.num_labels, self.ignore_index)
        self.boundaries = None
        if self.boundary_iou:
            self.boundaries = BoundaryIoU(self.num_labels, self.ignore_index, self.dilation_ratio)
        self.sizes = ObjectSizes(self.num_labels, self.ignore_index) if self.object_sizes else None

    @property
    def settings(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def parts(self) -> list[ClassCounts]:
        """The metrics; their `counts` are the whole state."""
        parts = (self.matrix, self.boundaries, self.sizes)
        return [part for part in parts if part is not None]

    def update(self, predictions: Any, references: Any) -> None:
        """
        Count one label map or a batch of them.

        Args:
            predictions (integer tensor, array or list of shape `(..., height, width)`): Predicted classes.
            references (integer tensor, array or list of that shape): Labels: classes, or `ignore_index`.

        Raises:
            ValueError: if the shapes differ, if boundaries or sizes of fewer than two dimensions are requested, or if a
                value is not an integer or not a class.
        """
        for part in self.parts:
            part.update(predictions, references)

    def merge(self, other: "SegmentationScores") -> None:
        """Add the counts of another object, for example of another part of the data set."""
        if self.settings != other.settings:
            raise ValueError(f"Scores with {self.settings} and with {other.settings} cannot be merged.")
        for part, other_part in zip(self.parts, other.parts, strict=True):
            part.merge(other_part)

    def compute(self) -> dict[str, Any]:
        """
        Returns:
            `dict`: the results of [`ConfusionMatrix`], [`BoundaryIoU`] and [`ObjectSizes`].
        """
        results = self.matrix.compute()
        boundaries = self.boundaries.compute() if self.boundaries is not None else {}
        sizes = self.sizes.compute(results["per_category_iou"]) if self.sizes is not None else {}
        return {**results, **boundaries, **sizes}


def sum_over_processes(scores: SegmentationScores | None) -> SegmentationScores | None:
    """
    Sum the counts of all processes of `torch.distributed`, and return the sum in each process. Without
    `torch.distributed`, return `scores`. All processes must call it, with `None` if they counted nothing. An error is
    raised in all of them.

    Raises:
        ValueError: if the settings of the processes differ.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return scores
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, scores and scores.settings)
    settings = [each for each in gathered if each is not None]
    if any(each != settings[0] for each in settings):
        raise ValueError(f"The processes have different settings, {settings}: use the same options in all processes.")
    if not settings:
        return None
    total = SegmentationScores(**settings[0])
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    for part, own in zip(total.parts, (scores or total).parts, strict=True):
        # a copy: `to` may return the same tensor, which must not change
        counts = own.counts.to(device, copy=True)
        torch.distributed.all_reduce(counts)
        part.counts = counts.cpu()
    return total
