# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Mean IoU by the size of objects (Segmenter, Table 4)."""

from collections.abc import Sequence
from typing import Any

import torch

from .class_counts import ClassCounts


GROUPS = ("small", "medium", "large")


class ObjectSizes(ClassCounts):
    """
    Size of each class in the images that contain it, to report mean IoU for small, medium and large classes.

    In each row of Segmenter's Table 4, the mean IoU is the average of the columns for small, medium and large, which
    are thirds of ADE20K's 150 classes. The paper does not specify how classes are ordered. Here, the order is that of
    the mean fraction of the image that is labeled with the class, over images where the class occurs.

    Args:
        num_labels, ignore_index: See [`ConfusionMatrix`].
    """

    def __init__(self, num_labels: int, ignore_index: int = 255):
        super().__init__(num_labels, ignore_index)
        # sum of fractions of images, number of images
        self.counts = torch.zeros(2, num_labels, dtype=torch.float64)

    def update(self, predictions: Any, references: Any) -> None:
        """Count one label map or a batch of them; see [`~SegmentationScores.update`]."""
        _, labels = self._read_label_maps(predictions, references)
        if labels.numel() == 0:
            return
        # (..., height, width) -> (images, pixels)
        labels = labels.flatten(-2).reshape(-1, labels.shape[-2] * labels.shape[-1])
        num_images, num_pixels = labels.shape
        bins = self.num_labels + 1
        indices = labels.long() + bins * torch.arange(num_images, device=labels.device)[:, None]
        # (images * bins,) -> (images, num_labels)
        counts = torch.bincount(indices.flatten(), minlength=num_images * bins).view(-1, bins)[:, :-1].cpu()
        self.counts[0] += (counts.double() / num_pixels).sum(dim=0)
        self.counts[1] += (counts > 0).sum(dim=0)

    def compute(self, per_category_iou: Sequence[float]) -> dict[str, Any]:
        """
        Args:
            per_category_iou (`Sequence[float]` of length `num_labels`): See [`ConfusionMatrix`].

        Returns:
            `dict`: `mean_iou_small`, `mean_iou_medium` and `mean_iou_large` (`float` from 0 to 1) of the thirds of the
            classes that occur in the labels (a remainder goes to the small classes; nan for a group without classes),
            and `per_category_size` (`list[float]`: fraction of the image; nan for classes that do not occur).
        """
        shares, images = self.counts
        sizes = shares / images
        # a stable sort: classes of equal size have the same order on every machine
        order = sizes.nan_to_num(torch.inf).argsort(stable=True)[: int((images > 0).sum())]
        iou = torch.tensor(per_category_iou, dtype=torch.float64)
        scores = {
            f"mean_iou_{name}": iou[classes].nanmean().item()
            for name, classes in zip(GROUPS, order.tensor_split(len(GROUPS)), strict=True)
        }
        return {**scores, "per_category_size": sizes.tolist()}
