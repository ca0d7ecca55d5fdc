# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Attention-to-Mask decoder of SegViT, with the query-based up-sampling of the Shrunk variant."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..plain_vit.embeddings import resize_position_embeddings
from ..plain_vit.modeling_plain_vit import eager_attention_forward
from .configuration_segvit import SegViTConfig


def resize_maps(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Resize maps `(batch_size, num_maps, h, w)` bilinearly to `size`, with half-pixel centers."""
    return nn.functional.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


class SegViTXavierLinear(nn.Linear):
    """Projection to queries, keys or values, initialized as in the attention of torch, where the three are one matrix."""


class SegViTAttention(nn.Module):
    """Multi-head attention from queries to features, which can also return the similarity that becomes masks."""

    def __init__(self, config: SegViTConfig, linear_class: type[nn.Linear] = SegViTXavierLinear):
        super().__init__()
        self.config = config
        self.num_attention_heads = config.decoder_num_attention_heads
        self.head_dim = config.decoder_hidden_size // config.decoder_num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.decoder_dropout_prob
        self.is_causal = False

        self.q_proj = linear_class(config.decoder_hidden_size, config.decoder_hidden_size)
        self.k_proj = linear_class(config.decoder_hidden_size, config.decoder_hidden_size)
        self.v_proj = linear_class(config.decoder_hidden_size, config.decoder_hidden_size)
        self.o_proj = nn.Linear(config.decoder_hidden_size, config.decoder_hidden_size)

    def forward(
        self, queries: torch.Tensor, features: torch.Tensor, output_similarity: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Attend from queries `(batch_size, num_queries, d)` to features `(batch_size, num_patches, d)`. If requested, also return
        the similarity `(batch_size, num_queries, num_patches)`: scaled products before the softmax, mean over heads.
        """
        # (batch_size, length, d) -> (batch_size, num_heads, length, head_dim)
        query, key, value = (
            projection(states).unflatten(2, (-1, self.head_dim)).transpose(1, 2)
            for projection, states in ((self.q_proj, queries), (self.k_proj, features), (self.v_proj, features))
        )
        similarity = None
        if output_similarity:
            products = torch.matmul(query, key.transpose(2, 3)) * self.scaling
            similarity = products.mean(dim=1)
            attention_weights = nn.functional.dropout(
                products.softmax(dim=-1), p=self.attention_dropout, training=self.training
            )
            # (batch_size, num_heads, num_queries, head_dim) -> (batch_size, num_queries, num_heads, head_dim)
            attention_output = torch.matmul(attention_weights, value).transpose(1, 2)
        else:
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
        return self.o_proj(attention_output.flatten(2)), similarity


class SegViTDecoderLayer(GradientCheckpointingLayer):
    """Post-norm transformer decoder layer: queries attend to each other, then to the features (figure 2)."""

    def __init__(self, config: SegViTConfig, is_upsampling: bool = False):
        super().__init__()
        hidden_size, eps = config.decoder_hidden_size, config.decoder_layer_norm_eps
        intermediate_size = config.decoder_intermediate_size or 4 * hidden_size
        self.self_attention = SegViTAttention(config)
        self.self_attention_norm = nn.LayerNorm(hidden_size, eps=eps)
        self.cross_attention = SegViTAttention(config, SegViTXavierLinear if is_upsampling else nn.Linear)
        self.cross_attention_norm = nn.LayerNorm(hidden_size, eps=eps)
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.activation = nn.ReLU()
        self.fc2 = nn.Linear(intermediate_size, hidden_size)
        self.mlp_norm = nn.LayerNorm(hidden_size, eps=eps)
        self.dropout = nn.Dropout(config.decoder_dropout_prob)

    def forward(
        self, queries: torch.Tensor, features: torch.Tensor, output_similarity: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attended, _ = self.self_attention(queries, queries)
        queries = self.self_attention_norm(queries + self.dropout(attended))
        attended, similarity = self.cross_attention(queries, features, output_similarity)
        queries = self.cross_attention_norm(queries + self.dropout(attended))
        hidden_states = self.fc2(self.dropout(self.activation(self.fc1(queries))))
        return self.mlp_norm(queries + self.dropout(hidden_states)), similarity


class SegViTStage(nn.Module):
    """Transformer layers in which queries attend to one feature map, projected to `decoder_hidden_size`."""

    def __init__(self, config: SegViTConfig, in_channels: int | None, is_upsampling: bool = False):
        super().__init__()
        hidden_size = config.decoder_hidden_size
        self.projection, self.norm = nn.Identity(), nn.Identity()
        if in_channels is not None:
            self.projection = nn.Linear(in_channels, hidden_size)
            self.norm = nn.LayerNorm(hidden_size, eps=config.decoder_layer_norm_eps)
        self.layers = nn.ModuleList(
            SegViTDecoderLayer(config, is_upsampling) for _ in range(config.decoder_num_hidden_layers)
        )

    def forward(
        self, queries: torch.Tensor, features: torch.Tensor, mask_layers: Sequence[int] = ()
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        """
        Attend from queries `(batch_size, num_queries, d)` to a feature map `(batch_size, num_channels, h, w)`. Return the
        queries after the last layer; and the queries and the similarity `(batch_size, num_queries, h, w)` of each of the
        layers with the indices `mask_layers`.
        """
        grid = features.shape[-2:]
        # (batch_size, num_channels, h, w) -> (batch_size, h * w, d)
        features = self.norm(self.projection(features.flatten(2).transpose(1, 2)))
        outputs = []
        for index, layer in enumerate(self.layers):
            queries, similarity = layer(queries, features, index in mask_layers)
            if similarity is not None:
                # (batch_size, num_queries, h * w) -> (batch_size, num_queries, h, w)
                outputs.append((queries, similarity.unflatten(2, grid)))
        return queries, outputs


class SegViTQueryUpsampling(nn.Module):
    """
    Query-based up-sampling (section 3.3, "QU"): learned queries, one for each output patch, attend to the features of the
    shallow and of the down-sampled deep layer.
    """

    def __init__(self, config: SegViTConfig, in_channels: Sequence[int]):
        super().__init__()
        self.grid = config.upsampling_grid
        self.follows_image = config.prediction_size is None
        self.queries = nn.Parameter(torch.zeros(self.grid[0] * self.grid[1], config.decoder_hidden_size))
        self.stages = nn.ModuleList(SegViTStage(config, channels, is_upsampling=True) for channels in in_channels)

    def interpolate_queries(self, height: int, width: int) -> tuple[torch.Tensor, tuple[int, int]]:
        """Return queries `(rows * columns, d)` and their grid: `(height, width)`, or the stored grid if it is fixed."""
        if not self.follows_image:
            return self.queries, self.grid
        queries = resize_position_embeddings(self.queries[None], 0, self.grid, (height, width), mode="bilinear")
        return queries[0], (height, width)

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return features `(batch_size, d, rows, columns)` from feature maps, the shallowest first."""
        queries, grid = self.interpolate_queries(*feature_maps[0].shape[-2:])
        # `repeat`, not `expand`: the operation counter of torch cannot follow views of parameters
        queries = queries.repeat(feature_maps[0].shape[0], 1, 1)
        for stage, features in zip(self.stages, feature_maps, strict=True):
            queries, _ = stage(queries, features)
        # (batch_size, rows * columns, d) -> (batch_size, d, rows, columns)
        return queries.transpose(1, 2).unflatten(2, grid)


class SegViTDecoder(nn.Module):
    """
    Attention-to-Mask decoder (section 3.2): one query for each class attends to the patches, stage by stage, and the
    similarity of query and patches is the mask of the class.
    """

    def __init__(self, config: SegViTConfig, in_channels: Sequence[int]):
        super().__init__()
        is_shrunk = config.decoder_type == "shrunk"
        self.query_upsampling = SegViTQueryUpsampling(config, in_channels) if is_shrunk else None
        # the stages decode the deepest feature map first
        stage_channels = [None] if is_shrunk else list(in_channels)[::-1]
        self.stages = nn.ModuleList(SegViTStage(config, channels) for channels in stage_channels)
        self.class_queries = nn.Parameter(torch.zeros(config.num_labels, config.decoder_hidden_size))
        self.classifier = nn.Linear(config.decoder_hidden_size, config.num_labels + 1)
        self.use_auxiliary_loss = config.use_auxiliary_loss

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """
        Decode feature maps `(batch_size, num_channels, h, w)`, the shallowest first, to class logits `(batch_size, num_labels,
        num_labels + 1)` and mask logits `(batch_size, num_labels, h, w)` of each supervised stage, or layer of the only stage.
        The last ones are the prediction.
        """
        queries = self.class_queries.repeat(feature_maps[0].shape[0], 1, 1)
        last_layer = len(self.stages[0].layers) - 1
        if self.query_upsampling is not None:
            mask_layers = range(last_layer + 1) if self.use_auxiliary_loss else (last_layer,)
            _, outputs = self.stages[0](queries, self.query_upsampling(feature_maps), mask_layers)
        else:
            outputs, total = [], 0.0
            for stage, features in zip(self.stages, reversed(feature_maps), strict=True):
                queries, ((stage_queries, similarity),) = stage(queries, features, (last_layer,))
                # masks add up on the grid of the shallowest feature map
                total = total + resize_maps(similarity, feature_maps[0].shape[-2:])
                outputs.append((stage_queries, total))
            outputs = outputs if self.use_auxiliary_loss else outputs[-1:]
        return [self.classifier(stage_queries) for stage_queries, _ in outputs], [masks for _, masks in outputs]
