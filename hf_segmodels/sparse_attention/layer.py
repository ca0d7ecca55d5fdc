# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Sparse attention as a layer: projections, sampled points, and the initialization of Deformable DETR."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from transformers import initialization as init

from .kernels import LAYER_NAME
from .operation import sparse_attention


def reference_points(height: int, width: int, device: torch.device | None = None) -> torch.Tensor:
    """
    Return the centers of the cells of a grid, row by row, as `(x, y)`. The borders of the grid are at 0 and 1.

    Returns:
        `torch.Tensor` of shape `(height * width, 2)`, float32.
    """
    y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
    x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
    # (height, width, 2) -> (height * width, 2)
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1).flatten(0, 1)


class SamplingOffsets(nn.Linear):
    """
    Projection of a query to the offsets of its points in cells, `(num_heads, num_levels, num_points, 2)` flattened.

    The initial offsets are those of Deformable DETR and do not depend on the query: head m has the direction 2 pi m / M, and
    its point n has a distance of n cells along the axis with the larger distance.
    """

    def __init__(self, hidden_size: int, num_heads: int, num_levels: int, num_points: int):
        self.shape = num_heads, num_levels, num_points
        super().__init__(hidden_size, num_heads * num_levels * num_points * 2)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        num_heads, _, num_points = self.shape
        angles = torch.arange(num_heads, dtype=torch.float32) * (2 * math.pi / num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        distances = torch.arange(1, num_points + 1, dtype=torch.float32)
        # (M, 1, 1, 2) * (P, 1) -> (M, L, P, 2)
        offsets = (directions[:, None, None] * distances[:, None]).expand(*self.shape, 2)
        init.zeros_(self.weight)
        init.copy_(self.bias, offsets.flatten())


class SamplingWeights(nn.Linear):
    """Projection of a query to the scores of its points, `(num_heads, num_levels, num_points)` flattened, equal at first."""

    def __init__(self, hidden_size: int, num_heads: int, num_levels: int, num_points: int):
        super().__init__(hidden_size, num_heads * num_levels * num_points)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        init.zeros_(self.weight)
        init.zeros_(self.bias)


class SparseSampling(nn.Module):
    """Layer without parameters around [`sparse_attention`], which `kernels.kernelize` can replace."""

    # set here as `kernels.use_kernel_forward_from_hub` does, without importing `kernels`
    kernel_layer_name = LAYER_NAME

    def forward(
        self,
        value: torch.Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        sampling_locations: torch.Tensor,
        attention_weights: torch.Tensor,
    ) -> torch.Tensor:
        return sparse_attention(value, spatial_shapes, sampling_locations, attention_weights)


class SparseAttention(nn.Module):
    """
    Multi-head attention to sampled points of a pyramid (UN-EPT, equations 3 and 4). Each query predicts the offsets of its
    points from its reference point, in cells of each level, and the weights of the points. [`SamplingOffsets`] and
    [`SamplingWeights`] have their own initialization, the other projections Xavier initialization.

    Args:
        hidden_size (`int`): Channels of queries and values; a multiple of `num_heads`.
        num_heads (`int`, *optional*, defaults to 8): Number M of heads.
        num_levels (`int`, *optional*, defaults to 3): Number L of levels of the pyramid.
        num_points (`int`, *optional*, defaults to 16): Number N of points that each head samples on each level.

    Raises:
        ValueError: if `hidden_size` is not a multiple of `num_heads`.
    """

    def __init__(self, hidden_size: int, num_heads: int = 8, num_levels: int = 3, num_points: int = 16):
        super().__init__()
        if hidden_size % num_heads != 0:
            raise ValueError(f"`hidden_size` ({hidden_size}) must be a multiple of `num_heads` ({num_heads}).")
        self.num_heads = num_heads
        self.num_levels = num_levels
        self.num_points = num_points
        self.value_proj = nn.Linear(hidden_size, hidden_size)
        self.sampling_offsets = SamplingOffsets(hidden_size, num_heads, num_levels, num_points)
        self.attention_weights = SamplingWeights(hidden_size, num_heads, num_levels, num_points)
        self.sampling = SparseSampling()
        self.o_proj = nn.Linear(hidden_size, hidden_size)
        for projection in (self.value_proj, self.o_proj):
            init.xavier_uniform_(projection.weight)
            init.zeros_(projection.bias)

    def sample(
        self, queries: torch.Tensor, reference_points: torch.Tensor, spatial_shapes: Sequence[tuple[int, int]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Compute the sampling locations and attention weights of each query.

        Args:
            queries (`torch.Tensor` of shape `(batch_size, num_queries, hidden_size)`): Queries.
            reference_points (`torch.Tensor` of shape `(num_queries, 2)`): Positions of the queries as `(x, y)` in
                [0, 1].
            spatial_shapes (`list[tuple[int, int]]`): `(height, width)` of each level.

        Returns:
            Sampling locations `(batch_size, num_queries, num_heads, num_levels, num_points, 2)` as `(x, y)`, at least
            float32, and attention weights `(batch_size, num_queries, num_heads, num_levels, num_points)`.
        """
        heads, levels, points = self.num_heads, self.num_levels, self.num_points
        # (B, Q, M * L * P) -> (B, Q, M, L * P) -> (B, Q, M, L, P)
        weights = self.attention_weights(queries).unflatten(-1, (heads, levels * points)).softmax(-1)
        weights = weights.unflatten(-1, (levels, points))
        # (B, Q, M * L * P * 2) -> (B, Q, M, L, P, 2)
        offsets = self.sampling_offsets(queries).unflatten(-1, (heads, levels, points, 2))
        offsets = offsets.to(torch.promote_types(offsets.dtype, torch.float32))
        # cells along x and y, (L, 1, 2); not built from a list of sizes, which an exported graph would keep as constants
        sides = [side for height, width in spatial_shapes for side in (width, height)]
        cells = torch.stack([torch.full((), side, dtype=offsets.dtype, device=offsets.device) for side in sides])
        cells = cells.view(levels, 1, 2)
        return reference_points[:, None, None, None] + offsets / cells, weights

    def forward(
        self,
        queries: torch.Tensor,
        values: torch.Tensor,
        reference_points: torch.Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
    ) -> torch.Tensor:
        """
        Args:
            values (`torch.Tensor` of shape `(batch_size, num_values, hidden_size)`): Levels, each flattened row by row,
                concatenated.
            queries, reference_points, spatial_shapes: See [`~SparseAttention.sample`].

        Returns:
            `torch.Tensor` of shape `(batch_size, num_queries, hidden_size)`.
        """
        locations, weights = self.sample(queries, reference_points, spatial_shapes)
        # (B, S, D) -> (B, S, M, D / M)
        values = self.value_proj(values).unflatten(-1, (self.num_heads, -1))
        return self.o_proj(self.sampling(values, spatial_shapes, locations, weights))
