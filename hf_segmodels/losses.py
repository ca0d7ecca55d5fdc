# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""What the four methods' losses share: the pixel-wise cross-entropy and the check of label maps."""

from typing import Literal

import torch
from torch import nn

from .label_maps import check_label_map


def check_labels(labels: torch.Tensor, num_labels: int, ignore_index: int = 255) -> None:
    """
    Checks that a batch of label maps holds classes and ignored pixels only.

    Args:
        labels (`torch.Tensor` of shape `(batch_size, height, width)`, integer):
            Class of each pixel, or `ignore_index`.
        num_labels (`int`): Number of classes.
        ignore_index (`int`, *optional*, defaults to 255): Label of pixels that do not count.

    Raises:
        ValueError: if a label is neither; says which values, and where the first one is.
    """
    if labels.ndim != 3 or labels.is_floating_point():
        raise ValueError(
            f"Expected integer `labels` of shape (batch_size, height, width), got {tuple(labels.shape)} of "
            f"{labels.dtype}. One-hot or float label maps have to become class indices (`argmax`, `.long()`)."
        )
    for index, label_map in enumerate(labels):
        check_label_map(label_map, num_labels, ignore_index, name=f"labels[{index}]")


def semantic_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    ignore_index: int = 255,
    reduction: Literal["valid_mean", "pixel_mean"] = "valid_mean",
) -> torch.Tensor:
    """
    Pixel-wise cross-entropy. `"valid_mean"` is the mean over pixels that are not ignored (Segmenter's released code),
    `"pixel_mean"` over all pixels, ignored ones counting as zero (mmsegmentation's). A batch without any valid pixel
    gives 0 with a gradient, not nan.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_labels, height, width)`): Scores before softmax.
        labels (`torch.Tensor` of shape `(batch_size, height, width)`, integer): Classes, or `ignore_index`.

    Returns:
        `torch.Tensor` of shape `()`, float32.
    """
    labels = labels.long()
    total = nn.functional.cross_entropy(logits.float(), labels, ignore_index=ignore_index, reduction="sum")
    count = (labels != ignore_index).sum() if reduction == "valid_mean" else labels.numel()
    return total / (count.clamp(min=1) if torch.is_tensor(count) else max(count, 1))
