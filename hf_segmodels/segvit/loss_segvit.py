# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Loss of Attention-to-Mask: cross-entropy of the queries, focal and dice loss of the masks (section 3.2)."""

import torch
from torch import nn


_FOCAL_ALPHA, _FOCAL_GAMMA = 0.25, 2


def present_classes(labels: torch.Tensor, num_labels: int, ignore_index: int = 255) -> torch.Tensor:
    """Find the classes in each of the label maps `(batch_size, height, width)`: `(batch_size, num_labels)`, bool."""
    labels = labels.flatten(1).long()
    # one additional class for ignored pixels
    present = torch.zeros(len(labels), num_labels + 1, dtype=torch.bool, device=labels.device)
    return present.scatter(1, labels.where(labels != ignore_index, num_labels), True)[:, :num_labels]


def count_masks(present: torch.Tensor) -> torch.Tensor:
    """
    Count the pairs of an image and a class in it, at least 1, float32. While gradients are computed, the count is the
    mean over all processes, so that their averaged gradients equal the gradients of one large batch.
    """
    num_masks = present.sum().float()
    if torch.is_grad_enabled() and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(num_masks)
        num_masks = num_masks / torch.distributed.get_world_size()
    return num_masks.clamp(min=1)


def attention_to_mask_loss(
    class_logits: torch.Tensor,
    mask_logits: torch.Tensor,
    labels: torch.Tensor,
    num_masks: torch.Tensor | None = None,
    no_object_weight: float = 0.1,
    ignore_index: int = 255,
    padded_size: tuple[int, int] | None = None,
) -> dict[str, torch.Tensor]:
    """
    Loss of one stage. The target of query `k` is class `k` and the mask of its pixels if the image contains the class,
    otherwise "no object". Ignored pixels belong to no mask.

    Args:
        class_logits (`torch.Tensor` of shape `(batch_size, num_labels, num_labels + 1)`): "No object" is the last
            class.
        mask_logits (`torch.Tensor` of shape `(batch_size, num_labels, h, w)`): Masks before the sigmoid.
        labels (`torch.Tensor` of shape `(batch_size, height, width)`, integer): Classes, or `ignore_index`.
        num_masks (`torch.Tensor` of shape `()`, *optional*): Divisor of the sums over masks. Defaults to
            [`count_masks`] of the labels.
        no_object_weight (`float`, *optional*, defaults to 0.1): Weight of queries without an object.
        ignore_index (`int`, *optional*, defaults to 255): Label of ignored pixels.
        padded_size (`tuple[int, int]`, *optional*): Height and width that the masks span, if larger than the label map
            (whole patches).

    Returns:
        `loss_ce`, the weighted mean over all queries; `loss_mask` (focal) and `loss_dice`, the sum over the masks of
        present classes divided by `num_masks`. Each is float32 and unweighted. `loss_mask` and `loss_dice` are 0 if no
        class is present.
    """
    num_labels = class_logits.shape[1]
    height, width = labels.shape[1:]
    present = present_classes(labels, num_labels, ignore_index)
    num_masks = count_masks(present) if num_masks is None else num_masks

    queries = torch.arange(num_labels, device=labels.device)
    # (batch_size, num_labels): the query's own class, or "no object"
    target = queries.where(present, num_labels)
    weights = torch.where(present, 1.0, no_object_weight)
    # (batch_size, num_labels, num_labels + 1) -> (batch_size, num_labels + 1, num_labels)
    entropies = nn.functional.cross_entropy(class_logits.float().transpose(1, 2), target, reduction="none")
    loss_ce = (entropies * weights).sum() / weights.sum().clamp(min=torch.finfo(torch.float32).tiny)

    if torch.compiler.is_compiling():
        # a graph has fixed shapes: all masks, with weight 0 for absent classes
        images, classes = torch.arange(present.numel(), device=labels.device), queries.repeat(len(present))
        images, counts = images // num_labels, present.flatten().float()
    else:
        images, classes = present.nonzero().unbind(1)
        counts = torch.ones_like(images, dtype=torch.float32)
    # (masks, 1, h, w) -> (masks, height, width)
    masks = nn.functional.interpolate(
        mask_logits[images, classes, None].float(),
        size=padded_size or (height, width),
        mode="bilinear",
        align_corners=False,
    )[:, 0, :height, :width]
    inside = (labels[images] == classes[:, None, None]).float()
    return {
        "loss_ce": loss_ce,
        "loss_mask": (_focal(masks, inside) * counts).sum() / num_masks,
        "loss_dice": (_dice(masks, inside) * counts).sum() / num_masks,
    }


def _focal(masks: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """
    Focal loss (https://huggingface.co/papers/1708.02002) of mask logits `(masks, height, width)`: mean over pixels.
    """
    entropy = nn.functional.binary_cross_entropy_with_logits(masks, inside, reduction="none")
    probability = masks.sigmoid()
    wrong = probability + inside - 2 * probability * inside  # probability of the wrong answer
    alpha = _FOCAL_ALPHA * inside + (1 - _FOCAL_ALPHA) * (1 - inside)
    return (alpha * wrong.pow(_FOCAL_GAMMA) * entropy).flatten(1).mean(dim=1)


def _dice(masks: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """One minus the dice coefficient of masks `(masks, height, width)`, smoothed by one pixel."""
    probability, inside = masks.sigmoid().flatten(1), inside.flatten(1)
    return 1 - (2 * (probability * inside).sum(dim=1) + 1) / (probability.sum(dim=1) + inside.sum(dim=1) + 1)
