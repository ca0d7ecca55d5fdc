# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Boundary IoU (https://huggingface.co/papers/2103.16562) of label maps, accumulated batch by batch."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .class_counts import ClassCounts


class BoundaryIoU(ClassCounts):
    """
    Intersection over union near the edges of each class: of the pixels of the predicted and the labeled mask whose
    distance to the contour of their mask is at most `dilation_ratio` of the image's diagonal. Unlike IoU, it shows
    errors along the edges of large objects.

    As in the authors' code, the distance is that of a square neighborhood, and the border of the image belongs to the
    contour. Ignored pixels have no class in either map, so both maps have the same contour there. As for mean IoU,
    pixels are summed over the whole data set before intersections are divided by unions.

    Args:
        num_labels, ignore_index: See [`ConfusionMatrix`].
        dilation_ratio (`float`, *optional*, defaults to 0.02):
            Distance relative to the image's diagonal, rounded to whole pixels, at least one. The paper uses 0.02 for
            COCO and LVIS, and 0.005 for Cityscapes, whose images are larger.

    Example:

    ```python
    >>> import torch
    >>> from hf_segmodels.metrics import BoundaryIoU

    >>> labels = torch.zeros(64, 64, dtype=torch.long)
    >>> labels[16:48, 16:48] = 1
    >>> boundaries = BoundaryIoU(num_labels=2)
    >>> boundaries.update(labels.roll(1, dims=0), labels)
    >>> round(boundaries.compute()["mean_boundary_iou"], 2)
    0.67
    ```
    """

    def __init__(self, num_labels: int, ignore_index: int = 255, dilation_ratio: float = 0.02):
        super().__init__(num_labels, ignore_index)
        if not 0 < dilation_ratio <= 1:
            raise ValueError(f"`dilation_ratio` must be above 0 and at most 1, got {dilation_ratio}.")
        self.dilation_ratio = dilation_ratio
        # intersection, labeled, predicted
        self.counts = torch.zeros(3, num_labels, dtype=torch.int64)

    def update(self, predictions: Any, references: Any) -> None:
        """Count one label map or a batch of them; see [`~SegmentationScores.update`]."""
        maps = self._read_label_maps(predictions, references)
        if maps[0].numel() == 0:
            return
        void = self.num_labels
        distance = max(1, round(self.dilation_ratio * math.hypot(*maps[0].shape[-2:])))
        predicted, labeled = (values.where(near_contours(values, distance, void), void) for values in maps)
        shared = labeled.where(labeled == predicted, void)
        for row, values in enumerate((shared, labeled, predicted)):
            counts = torch.bincount(values.flatten(), minlength=self.num_labels + 1)
            self.counts[row] += counts[: self.num_labels].to(self.counts.device)

    def compute(self) -> dict[str, Any]:
        """
        Returns:
            `dict`: `mean_boundary_iou` (`float` from 0 to 1) and `per_category_boundary_iou` (`list[float]`; nan for
            classes that do not occur).
        """
        intersection, labeled, predicted = self.counts.double()
        iou = intersection / (labeled + predicted - intersection)
        return {"mean_boundary_iou": iou.nanmean().item(), "per_category_boundary_iou": iou.tolist()}


def near_contours(label_maps: torch.Tensor, distance: int, outside: int) -> torch.Tensor:
    """
    Find the pixels with another class, or the border of the image, within a distance. For each class, these are the
    pixels of the mask that its erosion by a square of `2 * distance + 1` pixels removes.

    Args:
        label_maps (`torch.Tensor` of shape `(..., height, width)`, integer): Classes.
        distance (`int`): Distance in pixels.
        outside (`int`): Label of pixels without a class, greater than all classes.

    Returns:
        `torch.BoolTensor` of shape `(..., height, width)`.
    """
    padded = nn.functional.pad(label_maps, [distance] * 4, value=outside)
    highest, lowest = (
        _over_windows(extreme, _over_windows(extreme, padded, 2 * distance + 1, dim=-1), 2 * distance + 1, dim=-2)
        for extreme in (torch.maximum, torch.minimum)
    )
    return highest != lowest


def _over_windows(
    extreme: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], maps: torch.Tensor, size: int, dim: int
) -> torch.Tensor:
    """Extreme of each window of `size` pixels along an axis, computed from windows of 1, 2, 4, ... pixels."""
    length = maps.shape[dim] - size + 1
    reach = 1
    while 2 * reach <= size:
        kept = maps.shape[dim] - reach
        maps = extreme(maps.narrow(dim, 0, kept), maps.narrow(dim, reach, kept))
        reach *= 2
    return extreme(maps.narrow(dim, 0, length), maps.narrow(dim, size - reach, length))
