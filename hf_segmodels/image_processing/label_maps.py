# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Label maps: conversion from PIL, numpy and torch (any integer type, palettes) to int64, and checks."""

import numpy as np
import PIL.Image
import torch


# PIL modes with one integer per pixel that is a class id ("P" holds palette indices).
_INDEX_MODES = ("1", "L", "P", "I")


def label_map_to_tensor(
    label_map: "PIL.Image.Image | np.ndarray | torch.Tensor", name: str = "label map"
) -> torch.Tensor:
    """
    Convert one label map to a new int64 tensor. The input is not changed.

    Args:
        label_map (`PIL.Image.Image`, `np.ndarray` or `torch.Tensor`):
            PIL image of mode "L", "P" (the indices count, not the colors), "1", "I" or "I;16", or an array of integers
            of shape `(height, width)`, `(1, height, width)` or `(height, width, 1)`.
        name (`str`, *optional*, defaults to `"label map"`): Name of the label map in error messages.

    Returns:
        `torch.Tensor` of shape `(height, width)`, int64.

    Raises:
        ValueError: if the label map holds colors or floats, or does not have one of these shapes.
        TypeError: if the label map is not an image or array.
    """
    if isinstance(label_map, PIL.Image.Image):
        if label_map.mode.split(";")[0] not in _INDEX_MODES:
            raise ValueError(
                f"{name} is a PIL image of mode {label_map.mode!r}; class ids need one integer per pixel (mode 'L', "
                "'P' or 'I;16'). Convert the colors to class ids first."
            )
        label_map = np.asarray(label_map)
    if not isinstance(label_map, (np.ndarray, torch.Tensor)):
        raise TypeError(
            f"{name} is of type {type(label_map).__name__}; pass a PIL image, a numpy array or a torch tensor "
            "(`PIL.Image.open` for files, `np.array` for nested lists)."
        )
    label_map = drop_channel(label_map)
    if label_map.ndim != 2:
        raise ValueError(
            f"{name} has shape {tuple(label_map.shape)}; expected (height, width) with one class id per pixel. Convert "
            "one-hot maps with `argmax`, and colors to class ids."
        )
    if isinstance(label_map, np.ndarray):
        if label_map.dtype.kind not in "biu":
            raise ValueError(f"{name} has dtype {label_map.dtype}; class ids are integers (`.astype(np.int64)`).")
        # int64 before any arithmetic (0 - 1 is 255 in uint8), native byte order, and a copy
        return torch.from_numpy(label_map.astype(np.int64, order="C"))
    if label_map.is_floating_point() or label_map.is_complex():
        raise ValueError(f"{name} has dtype {label_map.dtype}; class ids are integers (`.long()`).")
    return label_map.detach().to("cpu", torch.int64, copy=True)


def drop_channel(label_map: np.ndarray | torch.Tensor) -> np.ndarray | torch.Tensor:
    """`(1, height, width)` or `(height, width, 1)` -> `(height, width)`; other shapes are returned unchanged."""
    if label_map.ndim != 3 or 1 not in (label_map.shape[0], label_map.shape[-1]):
        return label_map
    return label_map[0] if label_map.shape[0] == 1 else label_map[..., 0]


def reduce_labels(labels: torch.Tensor, ignore_index: int = 255) -> torch.Tensor:
    """
    Shift class ids down by one for data sets whose 0 means "unlabeled": 0 becomes `ignore_index`, k becomes k - 1,
    `ignore_index` stays. Return a new tensor.
    """
    ignored = (labels == 0) | (labels == ignore_index)
    return (labels - 1).masked_fill_(ignored, ignore_index)


def check_label_map(labels: torch.Tensor, num_labels: int, ignore_index: int = 255, name: str = "label map") -> None:
    """
    Check that each pixel of a label map is a class or ignored.

    Args:
        labels (`torch.Tensor` of shape `(height, width)`, int64): Class ids, after [`reduce_labels`] if it applies.
        num_labels (`int`): Number of classes.
        ignore_index (`int`, *optional*, defaults to 255): Label of ignored pixels.
        name (`str`, *optional*, defaults to `"label map"`): Name of the label map in the error message.

    Raises:
        ValueError: if a label is neither a class nor `ignore_index`.
    """
    outside = ((labels < 0) | (labels >= num_labels)) & (labels != ignore_index)
    if not outside.any():
        return
    y, x = outside.nonzero()[0].tolist()
    values = labels[outside].unique().tolist()
    shown = ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")
    raise ValueError(
        f"{name} holds labels outside the {num_labels} classes (0 to {num_labels - 1}; {ignore_index} is ignored): "
        f"{shown}; the first one, {labels[y, x]}, at y={y}, x={x}. If 0 means 'unlabeled' and classes start at 1, set "
        "`do_reduce_labels=True` (unless they are already reduced). For void pixels, set `ignore_index` to their value "
        "or change their value to `ignore_index`. If these are classes, increase `num_labels`."
    )


def check_labels(labels: torch.Tensor, num_labels: int, ignore_index: int = 255) -> None:
    """
    Check that each pixel of a batch of label maps is a class or ignored.

    Args:
        labels (`torch.Tensor` of shape `(batch_size, height, width)`, integer): Classes, or `ignore_index`.
        num_labels (`int`): Number of classes.
        ignore_index (`int`, *optional*, defaults to 255): Label of ignored pixels.

    Raises:
        ValueError: if `labels` are not a batch of integer label maps, or if a label is neither a class nor
            `ignore_index`.
    """
    if labels.ndim != 3 or labels.is_floating_point():
        raise ValueError(
            f"Expected integer `labels` of shape (batch_size, height, width), got {tuple(labels.shape)} of "
            f"{labels.dtype}. Convert one-hot label maps with `argmax` and float label maps with `.long()`."
        )
    for index, label_map in enumerate(labels):
        check_label_map(label_map, num_labels, ignore_index, name=f"labels[{index}]")


def label_histograms(
    regions: torch.Tensor, labels: torch.Tensor, num_regions: int, num_labels: int, ignore_index: int = 255
) -> torch.Tensor:
    """
    Count the pixels of each class in each region.

    Args:
        regions (`torch.Tensor` of shape `(batch_size, height, width)`, int64): The region of each pixel, from 0. Pixels
            with a negative value belong to no region.
        labels (`torch.Tensor` of shape `(batch_size, height, width)`, integer): Classes, or `ignore_index`.
        num_regions (`int`): Number N of regions.
        num_labels (`int`): Number K of classes.
        ignore_index (`int`, *optional*, defaults to 255): Label of ignored pixels.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_regions, num_labels)`, float32.
    """
    is_valid = (labels != ignore_index) & (regions >= 0)
    # a bin for each pair of region and class, and one more for ignored pixels
    num_bins = num_regions * num_labels
    bins = torch.where(is_valid, regions * num_labels + labels.long(), num_bins).flatten(1)
    ones = torch.ones_like(bins, dtype=torch.float32)
    counts = ones.new_zeros(bins.shape[0], num_bins + 1).scatter_add(1, bins, ones)
    # (batch_size, N * K + 1) -> (batch_size, N, K)
    return counts[:, :-1].unflatten(1, (num_regions, num_labels))
