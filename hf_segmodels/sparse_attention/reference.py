# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Reference implementation in torch, through `grid_sample`; kernels are tested against it."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers.utils.generic import maybe_autocast


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
