# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Context branch of UN-EPT: sparse attention over a feature pyramid, decoded by dynamic context queries."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..plain_vit.embeddings import resize_position_embeddings
from ..plain_vit.modeling_plain_vit import PlainViTAttention, PlainViTMLP
from ..sparse_attention import SparseAttention, reference_points
from .configuration_unept import UNEPTConfig


def sine_position_embeddings(
    height: int, width: int, hidden_size: int, device: torch.device | None = None
) -> torch.Tensor:
    """
    Return sines and cosines `(height * width, hidden_size)`, float32, of the row (first half of the channels) and column
    (second half) of each cell. Rows range from 1 / height of a turn to a full turn, columns likewise; frequencies decrease to
    1 / 10000.
    """
    num_frequencies = hidden_size // 4
    exponents = torch.arange(num_frequencies, dtype=torch.float32, device=device) / num_frequencies

    def embed(size: int) -> torch.Tensor:
        positions = torch.arange(1, size + 1, dtype=torch.float32, device=device) / (size + 1e-6) * (2 * math.pi)
        angles = positions[:, None] / 10000**exponents
        # (size, frequencies, 2) -> (size, hidden_size / 2), alternating sine and cosine
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)

    rows = embed(height)[:, None].expand(height, width, -1)
    columns = embed(width).expand(height, width, -1)
    # (height, width, hidden_size) -> (height * width, hidden_size)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


def build_sparse_attention(config: UNEPTConfig, num_levels: int) -> SparseAttention:
    """Build sparse attention with the sizes of the configuration."""
    return SparseAttention(config.hidden_size, config.num_attention_heads, num_levels, config.num_points)


class UNEPTEncoderLayer(GradientCheckpointingLayer):
    """Encoder layer: features of the pyramid attend to sampled points of all levels (section 3.1.2)."""

    def __init__(self, config: UNEPTConfig, num_levels: int):
        super().__init__()
        self.attention = build_sparse_attention(config, num_levels)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = PlainViTMLP(config, nn.ReLU())
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: torch.Tensor,
        points: torch.Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
    ) -> torch.Tensor:
        attended = self.attention(hidden_states + position_embeddings, hidden_states, points, spatial_shapes)
        hidden_states = self.attention_norm(hidden_states + self.dropout(attended))
        return self.feed_forward_norm(hidden_states + self.feed_forward(hidden_states))


class UNEPTDecoderLayer(GradientCheckpointingLayer):
    """Decoder layer: queries attend to each other, then to sampled points of the encoded pyramid (equation 5)."""

    def __init__(self, config: UNEPTConfig, num_levels: int):
        super().__init__()
        self.self_attention_type = config.decoder_self_attention
        is_sparse = self.self_attention_type == "sparse"
        self.self_attention = build_sparse_attention(config, 1) if is_sparse else PlainViTAttention(config)
        self.self_attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.cross_attention = build_sparse_attention(config, num_levels)
        self.cross_attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = PlainViTMLP(config, nn.ReLU())
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def attend_to_queries(
        self, queries: torch.Tensor, points: torch.Tensor, query_shape: tuple[int, int]
    ) -> torch.Tensor:
        """Return the self-attention of queries `(batch_size, num_queries, D)`, of the type `decoder_self_attention`."""
        if self.self_attention_type == "sparse":
            return self.self_attention(queries, queries, points, [query_shape])
        if self.self_attention_type == "dense":
            return self.self_attention(queries)[0]
        # The released code passes a tensor with the batch axis first to a layer that expects the sequence axis first.
        # (batch_size, num_queries, D) -> (num_queries, batch_size, D) -> (batch_size, num_queries, D)
        return self.self_attention(queries.transpose(0, 1))[0].transpose(0, 1)

    def forward(
        self,
        queries: torch.Tensor,
        memory: torch.Tensor,
        points: torch.Tensor,
        query_shape: tuple[int, int],
        spatial_shapes: Sequence[tuple[int, int]],
    ) -> torch.Tensor:
        attended = self.attend_to_queries(queries, points, query_shape)
        queries = self.self_attention_norm(queries + self.dropout(attended))
        attended = self.cross_attention(queries, memory, points, spatial_shapes)
        queries = self.cross_attention_norm(queries + self.dropout(attended))
        return self.feed_forward_norm(queries + self.feed_forward(queries))


class UNEPTEncoder(nn.Module):
    """Encoder of a pyramid of feature maps with the same number of channels (section 3.1.2)."""

    def __init__(self, config: UNEPTConfig, num_levels: int):
        super().__init__()
        self.level_embeddings = nn.Parameter(torch.zeros(num_levels, config.hidden_size))
        self.layers = nn.ModuleList(
            [UNEPTEncoderLayer(config, num_levels) for _ in range(config.encoder_num_hidden_layers)]
        )

    def forward(self, pyramid: Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[tuple[int, int]]]:
        """Encode levels `(batch_size, hidden_size, h, w)` to `(batch_size, sum of h * w, hidden_size)` and `(h, w)` of each."""
        # (B, D, h, w) -> (B, h * w, D), then the levels are concatenated
        hidden_states = torch.cat([level.flatten(2).transpose(1, 2) for level in pyramid], dim=1)
        device, dtype, hidden_size = hidden_states.device, hidden_states.dtype, hidden_states.shape[-1]
        spatial_shapes = [(level.shape[-2], level.shape[-1]) for level in pyramid]
        positions = [
            sine_position_embeddings(*shape, hidden_size, device).to(dtype) + level_embedding
            for shape, level_embedding in zip(spatial_shapes, self.level_embeddings, strict=True)
        ]
        position_embeddings = torch.cat(positions)
        points = torch.cat([reference_points(*shape, device) for shape in spatial_shapes])
        for layer in self.layers:
            hidden_states = layer(hidden_states, position_embeddings, points, spatial_shapes)
        return hidden_states, spatial_shapes


class UNEPTDecoder(nn.Module):
    """Decoder of dynamic context queries (section 3.2): features of the spatial branch plus learned embeddings."""

    def __init__(self, config: UNEPTConfig, num_levels: int):
        super().__init__()
        self.query_grid = config.query_grid
        self.query_embeddings = nn.Parameter(torch.zeros(math.prod(config.query_grid), config.hidden_size))
        self.layers = nn.ModuleList(
            [UNEPTDecoderLayer(config, num_levels) for _ in range(config.decoder_num_hidden_layers)]
        )

    def interpolate_query_embeddings(self, height: int, width: int) -> torch.Tensor:
        """Return query embeddings `(height * width, hidden_size)` for a grid of queries."""
        size = (height, width)
        return resize_position_embeddings(self.query_embeddings[None], 0, self.query_grid, size, mode="bilinear")[0]

    def forward(
        self, context: torch.Tensor, memory: torch.Tensor, spatial_shapes: Sequence[tuple[int, int]]
    ) -> torch.Tensor:
        """
        Decode spatial features `(batch_size, hidden_size, height / 8, width / 8)` to features of the same shape, given the
        output of the encoder.
        """
        height, width = context.shape[-2:]
        # (B, D, h, w) -> (B, h * w, D). The gradient of `flatten(2).transpose(1, 2)` for a single image would have strides
        # that batch norm on CPUs mistakes for another layout.
        queries = context.permute(0, 2, 3, 1).flatten(1, 2) + self.interpolate_query_embeddings(height, width)
        points = reference_points(height, width, queries.device)
        for layer in self.layers:
            queries = layer(queries, memory, points, (height, width), spatial_shapes)
        # (B, h * w, D) -> (B, D, h, w)
        return queries.transpose(1, 2).unflatten(2, (height, width))
