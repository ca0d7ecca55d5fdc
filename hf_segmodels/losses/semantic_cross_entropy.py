# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Cross-entropy of upsampled scores."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from ._upsampled_cross_entropy import LossOptions, check_targets, loss_dtype, upsampled_cross_entropy


# On CPUs, torch computes the softmax of fewer classes than this one number at a time if the classes are contiguous.
# Up to this number of upsampled scores (64 MiB in float32), the dense formula is two to four times as fast then.
_FEW_CLASSES, _MAX_DENSE_SCORES = 16, 1 << 24


def _dense_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, options: LossOptions) -> torch.Tensor:
    """Return the sum of the pixels' losses, of shape `()`: the reference formula, without `options.pixel_offsets`."""
    labels, dtype, weight = labels.long(), loss_dtype(logits), options.weight
    check_targets(labels.where(labels != options.ignore_index, 0), logits.shape[1], options.ignore_index)
    with torch.autocast(logits.device.type, enabled=False):
        scores = nn.functional.interpolate(
            logits.to(dtype), size=options.padded_size, mode="bilinear", align_corners=options.align_corners
        )
        return nn.functional.cross_entropy(
            scores[..., : labels.shape[1], : labels.shape[2]],
            labels,
            None if weight is None else weight.to(dtype),
            ignore_index=options.ignore_index,
            reduction="sum",
            label_smoothing=options.label_smoothing,
        )


def semantic_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    ignore_index: int = 255,
    reduction: Literal["valid_mean", "pixel_mean"] = "valid_mean",
    *,
    padded_size: Sequence[int] | None = None,
    weight: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    align_corners: bool = False,
    pixel_offsets: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Pixel-wise cross-entropy of bilinearly upsampled scores: `cross_entropy(interpolate(logits, padded_size)[...,
    :height, :width], labels)`.

    Only a few rows of the upsampled scores are held at a time (on a CPU, up to 16 million scores of fewer than 16
    classes are held, which is faster). The gradient is computed together with the value, in float32 (float64 for
    float64 scores), under autocast too. Upsampling uses matrix products, whose precision on GPUs follows
    `torch.set_float32_matmul_precision`.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_labels, grid_height, grid_width)`): Scores before softmax, at
            any resolution.
        labels (`torch.Tensor` of shape `(batch_size, height, width)`, integer): Classes, or `ignore_index`.
        ignore_index (`int`, *optional*, defaults to 255): Label of ignored pixels.
        reduction (`"valid_mean"` or `"pixel_mean"`, *optional*, defaults to `"valid_mean"`): `"valid_mean"` is the mean
            over pixels that are not ignored (Segmenter's released code). `"pixel_mean"` is the mean over all pixels,
            with a loss of 0 for ignored ones (mmsegmentation). If all pixels are ignored, both are 0 with a gradient,
            not nan.
        padded_size (`tuple[int, int]`, *optional*): Height and width that the scores span, if larger than the label map
            (whole patches). The label map is the top left part. Defaults to the size of the label map.
        weight (`torch.Tensor` of shape `(num_labels,)`, *optional*): Weights of the classes. `"valid_mean"` divides by
            the sum of the pixels' weights, as `cross_entropy` does.
        label_smoothing (`float`, *optional*, defaults to 0.0): Fraction of the target that is spread over all classes.
        align_corners (`bool`, *optional*, defaults to `False`): See `torch.nn.functional.interpolate`.
        pixel_offsets (`torch.LongTensor` of shape `(batch_size, *padded_size, 2)`, *optional*): Vertical and horizontal
            offset, -1, 0 or 1 each, from each pixel to the pixel whose scores it takes (UN-EPT's refinement). Offsets
            across the border are clamped to it. They get no gradient.

    Returns:
        `torch.Tensor` of shape `()`, float32 (float64 for float64 scores).

    Raises:
        ValueError: if the shapes do not match, or if `reduction` or `label_smoothing` is not valid.
        IndexError: if a label is neither a class nor `ignore_index` (on CUDA devices, an assertion).
        RuntimeError: in `backward`, if second derivatives are requested of scores that were not held.
    """
    if logits.ndim != 4 or labels.ndim != 3 or logits.shape[0] != labels.shape[0]:
        raise ValueError(
            "Expected logits of shape (batch_size, num_labels, height, width) and labels of shape (batch_size, height, "
            f"width), got {tuple(logits.shape)} and {tuple(labels.shape)}."
        )
    if reduction not in ("valid_mean", "pixel_mean"):
        raise ValueError(f"`reduction` is {reduction!r}; it must be 'valid_mean' or 'pixel_mean'.")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"`label_smoothing` must be from 0 to 1, got {label_smoothing}.")
    batch_size, num_labels = logits.shape[:2]
    if weight is not None and tuple(weight.shape) != (num_labels,):
        raise ValueError(f"`weight` {tuple(weight.shape)} must hold one number for each of {num_labels} classes.")
    height, width = labels.shape[1:]
    padded_height, padded_width = (height, width) if padded_size is None else padded_size
    if padded_height < height or padded_width < width:
        raise ValueError(
            f"`padded_size` ({padded_height}, {padded_width}) must be at least the size of the label map, ({height}, "
            f"{width})."
        )
    offsets_shape = (batch_size, padded_height, padded_width, 2)
    if pixel_offsets is not None and tuple(pixel_offsets.shape) != offsets_shape:
        raise ValueError(
            f"`pixel_offsets` {tuple(pixel_offsets.shape)} must have the shape (batch_size, *padded_size, 2), here "
            f"{offsets_shape}."
        )

    options = LossOptions(
        weight, pixel_offsets, (padded_height, padded_width), ignore_index, label_smoothing, align_corners
    )
    num_scores = batch_size * num_labels * padded_height * padded_width
    is_small = logits.device.type == "cpu" and num_labels < _FEW_CLASSES and num_scores <= _MAX_DENSE_SCORES
    if is_small and pixel_offsets is None and not torch.compiler.is_compiling():
        total = _dense_cross_entropy(logits, labels, options)
    else:
        with_gradient = logits.requires_grad and torch.is_grad_enabled()
        total, _ = upsampled_cross_entropy(logits, labels, with_gradient, *options)

    if reduction == "pixel_mean":
        return total / max(labels.numel(), 1)
    is_valid = labels != ignore_index
    if weight is None:
        return total / is_valid.sum().clamp(min=1)
    sum_of_weights = weight.to(total.dtype)[labels.long().where(is_valid, 0)].where(is_valid, 0).sum()
    # 0 with a gradient where the sum of weights is 0
    return torch.where(sum_of_weights > 0, total / torch.where(sum_of_weights > 0, sum_of_weights, 1), total * 0)
