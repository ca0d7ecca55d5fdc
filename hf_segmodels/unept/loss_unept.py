# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""UN-EPT's loss (section 3.2, equation 7): coarse and refined scores, boundaries, directions."""

from typing import Literal, NamedTuple

import torch
from torch import nn

from ..losses import semantic_cross_entropy
from .boundaries import boundary_labels, direction_labels


# Target of pixels that do not count in the boundary and direction losses.
_IGNORED = -1


class UNEPTLosses(NamedTuple):
    """The four terms, unweighted, each of shape `()`."""

    coarse: torch.Tensor
    refined: torch.Tensor
    boundary: torch.Tensor
    direction: torch.Tensor


def balanced_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """
    Cross-entropy whose class weights are 1 less the class's share of the counted pixels, as a weighted mean. Where no
    pixel counts, or all are of one class (whose weight is 0), it is 0 with a gradient, not nan.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_classes, height, width)`): Scores before softmax.
        targets (`torch.LongTensor` of shape `(batch_size, height, width)`): Classes, or -1 for pixels left out.

    Returns:
        `torch.Tensor` of shape `()`, float32.
    """
    num_classes = logits.shape[1]
    is_counted = targets != _IGNORED
    # `bincount` would give a size that depends on the values, and has no deterministic form on GPUs
    classes = torch.arange(num_classes, device=targets.device)[:, None]
    counts = (targets.flatten() == classes).sum(dim=1).float()
    weights = 1 - counts / is_counted.sum().clamp(min=1)
    losses = nn.functional.cross_entropy(
        logits.float(), targets, weight=weights, ignore_index=_IGNORED, reduction="sum"
    )
    # a class's pixels times its weight; 0 only where the sum above is 0
    total = (counts * weights).sum()
    return losses / torch.where(total > 0, total, 1.0)


def unept_losses(
    logits: torch.Tensor,
    refined_logits: torch.Tensor,
    boundary_logits: torch.Tensor,
    direction_logits: torch.Tensor,
    labels: torch.Tensor,
    distance_maps: torch.Tensor,
    angle_maps: torch.Tensor,
    boundary_distance: int = 5,
    ignore_index: int = 255,
    semantic_reduction: Literal["pixel_mean", "valid_mean"] = "pixel_mean",
    ignore_unlabelled_boundaries: bool = False,
) -> UNEPTLosses:
    """
    The loss's terms; the defaults are those of the released code. Directions are supervised where the model *predicts* a
    boundary.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_labels, height, width)`): Coarse scores.
        refined_logits (`torch.Tensor` of the same shape): Refined scores.
        boundary_logits (`torch.Tensor` of shape `(batch_size, 2, height, width)`): No boundary, boundary.
        direction_logits (`torch.Tensor` of shape `(batch_size, 8, height, width)`): Scores of the directions.
        labels (`torch.Tensor` of shape `(batch_size, height, width)`, integer): Classes, or `ignore_index`.
        distance_maps, angle_maps (`torch.Tensor` of shape `(batch_size, height, width)`): See [`boundary_targets`].
        boundary_distance (`int`, *optional*, defaults to 5): Distance up to which a pixel is boundary.
        ignore_index (`int`, *optional*, defaults to 255): Label of pixels that do not count.
        semantic_reduction (`str`, *optional*, defaults to `"pixel_mean"`): See [`semantic_cross_entropy`].
        ignore_unlabelled_boundaries (`bool`, *optional*, defaults to `False`):
            Whether ignored pixels do not count in the boundary and direction terms either.

    Returns:
        [`UNEPTLosses`].
    """
    boundary_targets = boundary_labels(distance_maps, boundary_distance)
    direction_targets = direction_labels(angle_maps)
    is_predicted = boundary_logits.detach().float().softmax(dim=1)[:, 1] > 0.5
    direction_targets = direction_targets.masked_fill(~is_predicted, _IGNORED)
    if ignore_unlabelled_boundaries:
        is_ignored = labels == ignore_index
        boundary_targets = boundary_targets.masked_fill(is_ignored, _IGNORED)
        direction_targets = direction_targets.masked_fill(is_ignored, _IGNORED)
    return UNEPTLosses(
        coarse=semantic_cross_entropy(logits, labels, ignore_index, semantic_reduction),
        refined=semantic_cross_entropy(refined_logits, labels, ignore_index, semantic_reduction),
        boundary=balanced_cross_entropy(boundary_logits, boundary_targets),
        direction=balanced_cross_entropy(direction_logits, direction_targets),
    )


__all__ = ["UNEPTLosses", "balanced_cross_entropy", "unept_losses"]
