# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Sparse attention as a function: checks of the arguments, selection of the implementation, and the reference in torch."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers.utils.generic import maybe_autocast

from .kernels import load_kernel


Implementation = Callable[[torch.Tensor, Sequence[tuple[int, int]], torch.Tensor, torch.Tensor], torch.Tensor]


def select_implementation(value: torch.Tensor) -> Implementation:
    """
    Select the implementation for the device of `value`: a compiled kernel if one is available (see
    [`hf_segmodels.sparse_attention.kernels`]), otherwise the reference. Implementations take the checked arguments of
    [`sparse_attention`], which may be non-contiguous and of mixed dtypes under autocast. They are differentiable in the three
    tensors; kernels support first derivatives only.
    """
    device_type = value.device.type
    return _kernels[device_type] if _takes_kernel(device_type) else sparse_attention_reference


# by type of device; torch.compile can read a function from a dictionary, but cannot use it as a constant
_kernels: dict[str, Implementation] = {}


# torch.compile must run this function instead of tracing it: some versions of torch trace `is_exporting()` as true
@torch.compiler.assume_constant_result
def _takes_kernel(device_type: str) -> bool:
    # an exported graph must also run without a kernel
    if torch.compiler.is_exporting() or torch.jit.is_tracing():
        return False
    kernel = load_kernel()
    if kernel is None or not kernel.supports(device_type):
        return False
    _kernels[device_type] = kernel.sparse_attention
    return True


def sparse_attention(
    value: torch.Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
) -> torch.Tensor:
    """
    Compute, for each query and head, the weighted sum of values sampled bilinearly from the levels of a pyramid.

    Args:
        value (`torch.Tensor` of shape `(batch_size, num_values, num_heads, head_dim)`):
            Levels, each flattened row by row, concatenated.
        spatial_shapes (`list[tuple[int, int]]`):
            `(height, width)` of each level; the areas add up to `num_values`.
        sampling_locations (`torch.Tensor` of shape `(batch_size, num_queries, num_heads, num_levels, num_points, 2)`):
            Points as `(x, y)`, where 0 is the left or upper border of the level, 1 the right or lower border, and the center
            of the first cell is at half a cell. Values outside the level are 0. Points must be finite and at least float32:
            half precision is too coarse for the cells of a large level.
        attention_weights (`torch.Tensor` of shape `(batch_size, num_queries, num_heads, num_levels, num_points)`):
            Weight of each point, usually a softmax over all points of all levels.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_queries, num_heads * head_dim)`, in the dtype of `value`.

    Raises:
        ValueError: if shapes do not fit together, tensors are on different devices, or locations have half precision.
    """
    if isinstance(spatial_shapes, torch.Tensor):
        spatial_shapes = spatial_shapes.tolist()
    if not torch.compiler.is_compiling():
        _check(value, spatial_shapes, sampling_locations, attention_weights)
    return select_implementation(value)(value, spatial_shapes, sampling_locations, attention_weights)


def _check(
    value: torch.Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
) -> None:
    if value.ndim != 4 or sampling_locations.ndim != 6 or sampling_locations.shape[-1] != 2:
        raise ValueError(
            "Expected `value` of shape (batch_size, num_values, num_heads, head_dim) and `sampling_locations` of shape "
            f"(batch_size, num_queries, num_heads, num_levels, num_points, 2), got {tuple(value.shape)} and "
            f"{tuple(sampling_locations.shape)}."
        )
    batch_size, num_values, num_heads, _ = value.shape
    if (sampling_locations.shape[0], sampling_locations.shape[2]) != (batch_size, num_heads):
        raise ValueError(
            f"`value` {tuple(value.shape)} and `sampling_locations` {tuple(sampling_locations.shape)} must have the "
            "same batch size (first axis) and number of heads (third axis)."
        )
    if attention_weights.shape != sampling_locations.shape[:-1]:
        raise ValueError(
            f"`attention_weights` {tuple(attention_weights.shape)} must have the shape of `sampling_locations` without "
            f"its last axis, {tuple(sampling_locations.shape[:-1])}."
        )
    if any(len(shape) != 2 or min(shape) < 1 for shape in spatial_shapes):
        raise ValueError(f"`spatial_shapes` must hold (height, width) of at least one cell, got {spatial_shapes}.")
    areas = [height * width for height, width in spatial_shapes]
    if len(areas) != sampling_locations.shape[3]:
        raise ValueError(
            f"`spatial_shapes` has {len(areas)} levels, `sampling_locations` {sampling_locations.shape[3]}: give one "
            "(height, width) for each level."
        )
    if sum(areas) != num_values:
        raise ValueError(
            f"The levels {[tuple(shape) for shape in spatial_shapes]} have {' + '.join(map(str, areas))} = {sum(areas)} "
            f"cells, `value` has {num_values}: flatten the levels and concatenate all of them."
        )
    if sampling_locations.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"`sampling_locations` must be float32 or float64, got {sampling_locations.dtype}, which is too coarse for the "
            "cells of a level: compute locations in float32, also under autocast."
        )
    if len({tensor.device for tensor in (value, sampling_locations, attention_weights)}) != 1:
        raise ValueError(
            f"`value`, `sampling_locations` and `attention_weights` are on {value.device}, {sampling_locations.device} "
            f"and {attention_weights.device}: move them to one device."
        )


def sparse_attention_reference(
    value: torch.Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
) -> torch.Tensor:
    """
    Reference implementation of [`sparse_attention`], which checks the arguments. It runs on all devices and dtypes, compiles
    and exports.

    Half precision is computed in float32: bfloat16 would move points by a third of a cell on a level of 64 x 64, and round
    the sum after each point.
    """
    batch_size, num_queries, num_heads = sampling_locations.shape[:3]
    head_dim = value.shape[-1]
    dtype = torch.promote_types(value.dtype, torch.float32)
    with maybe_autocast(value.device.type, enabled=False):
        # (B, Q, M, L, P, 2) in [0, 1] -> in [-1, 1], L x (B * M, Q, P, 2)
        grids = (2 * sampling_locations.to(dtype) - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)
        # (B, Q, M, L, P) -> L x (B * M, 1, Q, P)
        weights = attention_weights.to(dtype).permute(3, 0, 2, 1, 4).flatten(1, 2)[:, :, None]
        levels = value.to(dtype).split([height * width for height, width in spatial_shapes], dim=1)

        output = value.new_zeros(batch_size * num_heads, head_dim, num_queries, dtype=dtype)
        for level, (height, width), grid, weight in zip(levels, spatial_shapes, grids, weights, strict=True):
            # (B, h * w, M, D) -> (B * M, D, h, w)
            feature_map = level.permute(0, 2, 3, 1).reshape(batch_size * num_heads, head_dim, height, width)
            sampled = nn.functional.grid_sample(feature_map, grid, align_corners=False)
            # (B * M, D, Q, P) * (B * M, 1, Q, P) -> (B * M, D, Q)
            output = output + (sampled * weight).sum(-1)
    # (B * M, D, Q) -> (B, Q, M * D)
    return output.view(batch_size, num_heads * head_dim, num_queries).transpose(1, 2).to(value.dtype)
