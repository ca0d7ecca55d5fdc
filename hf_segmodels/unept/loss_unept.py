# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Loss of UN-EPT (section 3.2, equation 7): coarse and refined scores, boundaries, directions."""

from collections.abc import Sequence
from typing import Literal

import torch

from ..losses.semantic_cross_entropy import semantic_cross_entropy
from .boundary_refinement import refinement_offsets, resize_boundary_maps
from .boundary_targets import boundary_labels, direction_labels


# Target of pixels that are ignored by the boundary and direction losses.
_IGNORED = -1


def balanced_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, padded_size: Sequence[int] | None = None
) -> torch.Tensor:
    """
    Weighted mean of the cross-entropy, in which the weight of a class is 1 minus its frequency among the pixels that
    are not ignored. If all pixels are ignored, or all are of one class (of weight 0), it is 0 with a gradient, not nan.
    `logits` `(batch_size, num_classes, h, w)` have any resolution; `targets` `(batch_size, height, width)` are -1 at ignored
    pixels. The result is float32.
    """
    num_classes = logits.shape[1]
    is_valid = targets != _IGNORED
    # `bincount` returns a size that depends on the values, and is not deterministic on GPUs
    classes = torch.arange(num_classes, device=targets.device)[:, None]
    counts = (targets.flatten() == classes).sum(dim=1).float()
    weights = 1 - counts / is_valid.sum().clamp(min=1)
    return semantic_cross_entropy(
        logits, targets, _IGNORED, padded_size=padded_size, weight=weights, align_corners=True
    )


def unept_losses(
    *,
    logits: torch.Tensor,
    boundary_logits: torch.Tensor,
    direction_logits: torch.Tensor,
    labels: torch.Tensor,
    distance_maps: torch.Tensor,
    angle_maps: torch.Tensor,
    refined_logits: torch.Tensor | None = None,
    boundary_distance: int = 5,
    ignore_index: int = 255,
    semantic_reduction: Literal["pixel_mean", "valid_mean"] = "pixel_mean",
    ignore_unlabeled_boundaries: bool = False,
    padded_size: Sequence[int] | None = None,
) -> dict[str, torch.Tensor]:
    """
    Compute the terms of the loss, by default as the released code. The direction loss covers pixels where the model
    *predicts* a boundary. All scores may be of any resolution, and none are held at the resolution of the labels.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_labels, h, w)`): Coarse scores.
        boundary_logits (`torch.Tensor` of shape `(batch_size, 2, h, w)`): Scores of "no boundary" and "boundary".
        direction_logits (`torch.Tensor` of shape `(batch_size, 8, h, w)`): Scores of the directions.
        labels (`torch.Tensor` of shape `(batch_size, height, width)`, integer): Classes, or `ignore_index`.
        distance_maps, angle_maps (`torch.Tensor` of shape `(batch_size, height, width)`):
            See [`compute_boundary_targets`].
        refined_logits (`torch.Tensor` of shape `(batch_size, num_labels, height, width)`, *optional*):
            Refined scores. By default, `logits` are refined inside the loss, which takes less memory than [`refine`].
        boundary_distance, ignore_index, semantic_reduction, ignore_unlabeled_boundaries: See [`UNEPTConfig`].
        padded_size (`tuple[int, int]`, *optional*): Height and width that the scores span, if larger than the labels.

    Returns:
        `loss_coarse`, `loss_refined`, `loss_boundary` and `loss_direction`, unweighted, each of shape `()`.
    """
    height, width = labels.shape[1:]
    padded_size = (height, width) if padded_size is None else padded_size
    with torch.no_grad():
        boundaries, directions = resize_boundary_maps(boundary_logits, direction_logits, padded_size)
    boundary_targets = boundary_labels(distance_maps, boundary_distance)
    is_predicted = boundaries.softmax(dim=1)[:, 1, :height, :width] > 0.5
    direction_targets = direction_labels(angle_maps).masked_fill(~is_predicted, _IGNORED)
    if ignore_unlabeled_boundaries:
        is_ignored = labels == ignore_index
        boundary_targets = boundary_targets.masked_fill(is_ignored, _IGNORED)
        direction_targets = direction_targets.masked_fill(is_ignored, _IGNORED)

    offsets = None
    if refined_logits is None:
        refined_logits, offsets = logits, refinement_offsets(boundaries, directions)
    coarse, refined = (
        semantic_cross_entropy(
            scores, labels, ignore_index, semantic_reduction, padded_size=padded_size, pixel_offsets=pixel_offsets
        )
        for scores, pixel_offsets in ((logits, None), (refined_logits, offsets))
    )
    return {
        "loss_coarse": coarse,
        "loss_refined": refined,
        "loss_boundary": balanced_cross_entropy(boundary_logits, boundary_targets, padded_size),
        "loss_direction": balanced_cross_entropy(direction_logits, direction_targets, padded_size),
    }
