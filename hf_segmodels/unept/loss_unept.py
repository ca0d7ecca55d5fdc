# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""UN-EPT's loss (section 3.2, equation 7): coarse and refined scores, boundaries, directions."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

from ..losses.semantic_cross_entropy import semantic_cross_entropy
from .boundaries import boundary_labels, direction_labels, refinement_steps, resize_boundary_maps


# Target of pixels that do not count in the boundary and direction losses.
_IGNORED = -1


class UNEPTLosses(NamedTuple):
    """The four terms, unweighted, each of shape `()`."""

    coarse: torch.Tensor
    refined: torch.Tensor
    boundary: torch.Tensor
    direction: torch.Tensor


def balanced_cross_entropy(
    logits: torch.Tensor,
    targets: torch.Tensor,
    padded_size: Sequence[int] | None = None,
    align_corners: bool = True,
) -> torch.Tensor:
    """
    Cross-entropy whose class weights are 1 less the class's share of the counted pixels, as a weighted mean. Where no
    pixel counts, or all are of one class (whose weight is 0), it is 0 with a gradient, not nan.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_classes, h, w)`): Scores before softmax, at any resolution.
        targets (`torch.LongTensor` of shape `(batch_size, height, width)`): Classes, or -1 for pixels left out.
        padded_size, align_corners (*optional*): See [`semantic_cross_entropy`].

    Returns:
        `torch.Tensor` of shape `()`, float32.
    """
    num_classes = logits.shape[1]
    is_counted = targets != _IGNORED
    # `bincount` would give a size that depends on the values, and has no deterministic form on GPUs
    classes = torch.arange(num_classes, device=targets.device)[:, None]
    counts = (targets.flatten() == classes).sum(dim=1).float()
    weights = 1 - counts / is_counted.sum().clamp(min=1)
    return semantic_cross_entropy(
        logits, targets, _IGNORED, padded_size=padded_size, weight=weights, align_corners=align_corners
    )


def unept_losses(
    logits: torch.Tensor,
    refined_logits: torch.Tensor | None,
    boundary_logits: torch.Tensor,
    direction_logits: torch.Tensor,
    labels: torch.Tensor,
    distance_maps: torch.Tensor,
    angle_maps: torch.Tensor,
    boundary_distance: int = 5,
    ignore_index: int = 255,
    semantic_reduction: Literal["pixel_mean", "valid_mean"] = "pixel_mean",
    ignore_unlabeled_boundaries: bool = False,
    padded_size: Sequence[int] | None = None,
) -> UNEPTLosses:
    """
    The loss's terms; the defaults are those of the released code. Directions are supervised where the model *predicts* a
    boundary. Scores may be of any resolution; none of them is held at that of the labels.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_labels, h, w)`): Coarse scores.
        refined_logits (`torch.Tensor` of shape `(batch_size, num_labels, height, width)`, *optional*):
            Refined scores. Without them the coarse ones are refined here, which takes less memory than [`refine`].
        boundary_logits (`torch.Tensor` of shape `(batch_size, 2, h, w)`): No boundary, boundary.
        direction_logits (`torch.Tensor` of shape `(batch_size, 8, h, w)`): Scores of the directions.
        labels (`torch.Tensor` of shape `(batch_size, height, width)`, integer): Classes, or `ignore_index`.
        distance_maps, angle_maps (`torch.Tensor` of shape `(batch_size, height, width)`): See [`boundary_targets`].
        boundary_distance (`int`, *optional*, defaults to 5): Distance up to which a pixel is boundary.
        ignore_index (`int`, *optional*, defaults to 255): Label of pixels that do not count.
        semantic_reduction (`str`, *optional*, defaults to `"pixel_mean"`): See [`semantic_cross_entropy`].
        ignore_unlabeled_boundaries (`bool`, *optional*, defaults to `False`):
            Whether ignored pixels do not count in the boundary and direction terms either.
        padded_size (`tuple[int, int]`, *optional*): Height and width that the scores cover, where more than the labels'.

    Returns:
        [`UNEPTLosses`].
    """
    height, width = labels.shape[1:]
    padded_size = (height, width) if padded_size is None else padded_size
    with torch.no_grad():
        boundaries, directions = resize_boundary_maps(boundary_logits, direction_logits, padded_size)
    boundary_targets = boundary_labels(distance_maps, boundary_distance)
    direction_targets = direction_labels(angle_maps)
    is_predicted = boundaries.softmax(dim=1)[:, 1, :height, :width] > 0.5
    direction_targets = direction_targets.masked_fill(~is_predicted, _IGNORED)
    if ignore_unlabeled_boundaries:
        is_ignored = labels == ignore_index
        boundary_targets = boundary_targets.masked_fill(is_ignored, _IGNORED)
        direction_targets = direction_targets.masked_fill(is_ignored, _IGNORED)

    steps = None
    if refined_logits is None:
        refined_logits, steps = logits, refinement_steps(boundaries, directions)
    coarse, refined = (
        semantic_cross_entropy(
            scores, labels, ignore_index, semantic_reduction, padded_size=padded_size, steps=scores_from
        )
        for scores, scores_from in ((logits, None), (refined_logits, steps))
    )
    return UNEPTLosses(
        coarse=coarse,
        refined=refined,
        boundary=balanced_cross_entropy(boundary_logits, boundary_targets, padded_size),
        direction=balanced_cross_entropy(direction_logits, direction_targets, padded_size),
    )


__all__ = ["UNEPTLosses", "balanced_cross_entropy", "unept_losses"]
