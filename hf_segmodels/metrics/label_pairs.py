# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Conversion and checks of predictions and labels: tensors, arrays or lists of any integer type."""

from typing import Any

import torch


# Torch cannot compare or add these types.
_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


def read_pair(predictions: Any, references: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Convert predictions and labels to integer tensors of one shape on one device, without copying such tensors.

    Raises:
        ValueError: if the values are not integers, or if the shapes differ.
    """
    tensors = []
    for name, values in (("Predictions", predictions), ("Labels", references)):
        tensor = torch.as_tensor(values)
        if tensor.is_floating_point() or tensor.is_complex():
            raise ValueError(f"{name} are of {tensor.dtype}; classes are integers (`argmax` of scores, `.long()`).")
        tensors.append(tensor.long() if tensor.dtype in _UNSIGNED or tensor.dtype == torch.bool else tensor)
    prediction, reference = tensors
    if prediction.shape != reference.shape:
        raise ValueError(
            f"Predictions of shape {tuple(prediction.shape)} do not match labels of shape "
            f"{tuple(reference.shape)}: resize them to the labels' size, for example with `target_sizes`."
        )
    return prediction.to(reference.device), reference


def check_classes(predictions: torch.Tensor, references: torch.Tensor, num_labels: int, ignore_index: int) -> None:
    """
    Check predictions and labels of pixels that are not ignored.

    Raises:
        ValueError: if a value is not a class.
    """
    for name, values in (("Predictions", predictions), ("Labels", references)):
        if values.numel() == 0:
            continue
        lowest, highest = (bound.item() for bound in values.aminmax())
        if lowest < 0 or highest >= num_labels:
            raise ValueError(
                f"{name} hold values from {lowest} to {highest}, outside the "
                f"{num_labels} classes. Check `num_labels`, whether label 0 must be reduced "
                f"(`do_reduce_labels`), and whether void labels must become {ignore_index}."
            )


def read_label_maps(
    predictions: Any, references: Any, num_labels: int, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Check predictions and labels of images, and return them as [`mark_ignored`] does.

    Args:
        predictions (integer tensor or array of shape `(..., height, width)`): Predicted classes.
        references (integer tensor or array of that shape): Labels: classes, or `ignore_index`.

    Raises:
        ValueError: if the shapes differ or have fewer than two dimensions, or if a value is not a class.
    """
    predictions, references = read_pair(predictions, references)
    if references.ndim < 2:
        raise ValueError(f"Expected label maps of shape (..., height, width), got {tuple(references.shape)}.")
    return mark_ignored(predictions, references, num_labels, ignore_index)


def mark_ignored(
    predictions: torch.Tensor, references: torch.Tensor, num_labels: int, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Check predictions and labels, and return them in the smallest dtype, with `num_labels` in both for ignored pixels.

    Raises:
        ValueError: if a value is not a class.
    """
    is_ignored = references == ignore_index
    predictions, references = (values.masked_fill(is_ignored, 0) for values in (predictions, references))
    check_classes(predictions, references, num_labels, ignore_index)
    dtype = next(kind for kind in (torch.uint8, torch.int16, torch.int32) if num_labels <= torch.iinfo(kind).max)
    marked = [values.to(dtype).masked_fill_(is_ignored, num_labels) for values in (predictions, references)]
    return marked[0], marked[1]
