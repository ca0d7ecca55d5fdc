# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Building blocks of the originals' forward passes, as plain functions over the original parameter names.

No code is shared with the models: agreement with a converted model shows that both its weights and its code are right.
Written from the papers and from the released code.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F


Weights = Mapping[str, torch.Tensor]


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Three `(batch_size, num_tokens, num_heads, head_dim)` -> the same shape."""
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(dim=-1), value)


def norm(weights: Weights, name: str, tokens: torch.Tensor, eps: float) -> torch.Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def linear(weights: Weights, name: str, tokens: torch.Tensor) -> torch.Tensor:
    return F.linear(tokens, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def batch_norm(weights: Weights, name: str, features: torch.Tensor, eps: float) -> torch.Tensor:
    """Batch norm by its running statistics."""
    mean, variance, scale, shift = (
        weights[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (features - mean) / (variance + eps).sqrt() * scale + shift


def add_positions(
    patches: torch.Tensor,
    prefix: list[torch.Tensor],
    table: torch.Tensor,
    table_grid: tuple[int, int],
    mode: str,
    only_by_count: bool = False,
) -> torch.Tensor:
    """
    Patches `(batch_size, D, h, w)` and prefix tokens `(1, 1, D)` -> tokens with position embeddings
    `(batch_size, len(prefix) + h * w, D)`. The table is resized if the grids differ, or, with `only_by_count`, if the
    numbers of patches differ.
    """
    batch_size, width, *grid = patches.shape
    fits = math.prod(grid) == math.prod(table_grid) if only_by_count else tuple(grid) == tuple(table_grid)
    if not fits:
        # (1, num_patches, D) -> (1, D, rows, columns) -> (1, D, h, w) -> (1, h * w, D)
        resized = table[:, len(prefix) :].reshape(1, *table_grid, width).permute(0, 3, 1, 2)
        resized = F.interpolate(resized, size=grid, mode=mode, align_corners=False)
        table = torch.cat([table[:, : len(prefix)], resized.permute(0, 2, 3, 1).reshape(1, -1, width)], dim=1)
    tokens = [token.expand(batch_size, 1, width) for token in prefix]
    # (batch_size, D, h, w) -> (batch_size, h * w, D)
    return torch.cat([*tokens, patches.permute(0, 2, 3, 1).reshape(batch_size, -1, width)], dim=1) + table


def pad(image: torch.Tensor, multiple: int) -> torch.Tensor:
    """Zeros at the bottom and right up to multiples of `multiple`."""
    height, width = (math.ceil(size / multiple) * multiple for size in image.shape[-2:])
    padded = image.new_zeros(*image.shape[:2], height, width)
    padded[..., : image.shape[2], : image.shape[3]] = image
    return padded
