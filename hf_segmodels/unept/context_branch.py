# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Context branch of UN-EPT: sparse attention over a feature pyramid, decoded by dynamic context queries."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..plain_vit.embeddings import resize_position_embeddings
from ..plain_vit.modeling_plain_vit import eager_attention_forward
from ..sparse_attention import SparseAttention, reference_points
from .configuration_unept import UNEPTConfig


def sine_position_embeddings(
    height: int, width: int, hidden_size: int, device: torch.device | None = None
) -> torch.Tensor:
    """
    Return sines and cosines of the row (first half of the channels) and column (second half) of each cell. Rows range from
    1 / height of a turn to a full turn, columns likewise; frequencies decrease to 1 / 10000.

    Returns:
        `torch.Tensor` of shape `(height * width, hidden_size)`, float32.
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


class UNEPTSelfAttention(nn.Module):
    """
    Dot-product attention with one fused projection to queries, keys and values. `"dense"` attends over the queries of an
    image, `"across_batch"` over the images of the batch, separately for each query position: the released code passes a
    tensor with the batch axis first to a layer that expects the sequence axis first.
    """

    def __init__(self, config: UNEPTConfig):
        super().__init__()
        self.config = config
        self.over_images = config.decoder_self_attention == "across_batch"
        self.num_attention_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.over_images:
            # (batch_size, num_queries, D) -> (num_queries, batch_size, D)
            hidden_states = hidden_states.transpose(0, 1)
        qkv = self.qkv(hidden_states).unflatten(2, (3, self.num_attention_heads, self.head_dim))
        # (sequences, length, 3, num_heads, head_dim) -> 3 x (sequences, num_heads, length, head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attention_output, _ = attention_interface(
            self,
            query,
            key,
            value,
            attention_mask=None,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
        )
        # (sequences, length, num_heads, head_dim) -> (sequences, length, D)
        attention_output = self.o_proj(attention_output.flatten(2))
        return attention_output.transpose(0, 1) if self.over_images else attention_output


class UNEPTFeedForward(nn.Module):
    """Two linear layers, each followed by dropout, with a ReLU in between."""

    def __init__(self, config: UNEPTConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.fc2(self.dropout(self.fc1(hidden_states).relu())))


def build_sparse_attention(config: UNEPTConfig, num_levels: int) -> SparseAttention:
    """Build sparse attention with the sizes of the configuration."""
    return SparseAttention(config.hidden_size, config.num_attention_heads, num_levels, config.num_points)


class UNEPTEncoderLayer(GradientCheckpointingLayer):
    """Encoder layer: features of the pyramid attend to sampled points of all levels (section 3.1.2)."""

    def __init__(self, config: UNEPTConfig, num_levels: int):
        super().__init__()
        self.attention = build_sparse_attention(config, num_levels)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = UNEPTFeedForward(config)
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
        self.is_sparse = config.decoder_self_attention == "sparse"
        self.self_attention = build_sparse_attention(config, 1) if self.is_sparse else UNEPTSelfAttention(config)
        self.self_attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.cross_attention = build_sparse_attention(config, num_levels)
        self.cross_attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = UNEPTFeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        queries: torch.Tensor,
        memory: torch.Tensor,
        points: torch.Tensor,
        query_shape: tuple[int, int],
        spatial_shapes: Sequence[tuple[int, int]],
    ) -> torch.Tensor:
        if self.is_sparse:
            attended = self.self_attention(queries, queries, points, [query_shape])
        else:
            attended = self.self_attention(queries)
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
        """
        Args:
            pyramid (`list[torch.Tensor]`, each of shape `(batch_size, hidden_size, h, w)`): Levels.

        Returns:
            `torch.Tensor` of shape `(batch_size, sum of h * w, hidden_size)`, and the `(h, w)` of each level.
        """
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
        Args:
            context (`torch.Tensor` of shape `(batch_size, hidden_size, height / 8, width / 8)`): Spatial features.
            memory (`torch.Tensor` of shape `(batch_size, sum of h * w, hidden_size)`): The encoded pyramid.
            spatial_shapes (`list[tuple[int, int]]`): `(h, w)` of each level of the pyramid.

        Returns:
            `torch.Tensor` of the shape of `context`.
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
