# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""UN-EPT's forward pass over the original parameter names."""

import math
from typing import Any

import torch
import torch.nn.functional as F

from .common import Weights, attend, batch_norm, linear, norm, pad
from .vit import timm_hidden_states


_EPS = 1e-5  # of layer norms outside the backbone, and of batch norms


def _conv(
    weights: Weights, name: str, features: torch.Tensor, norm_name: str, stride: int = 1, dilation: int = 1
) -> torch.Tensor:
    """Convolution without bias and batch norm by its running statistics."""
    weight = weights[f"{name}.weight"]
    padding = dilation * (weight.shape[-1] // 2)
    features = F.conv2d(features, weight, weights.get(f"{name}.bias"), stride, padding, dilation)
    return batch_norm(weights, norm_name, features, _EPS)


def resnet_v1c_features(
    weights: Weights, pixel_values: torch.Tensor, strides: list[int], dilations: list[int], contract_dilation: bool
) -> list[torch.Tensor]:
    """Outputs of the stages after the first, by the names of mmsegmentation under `backbone.`"""
    features = pixel_values
    for number, stride in ((0, 2), (3, 1), (6, 1)):
        features = _conv(
            weights, f"backbone.stem.{number}", features, f"backbone.stem.{number + 1}", stride=stride
        ).relu()
    features = F.max_pool2d(features, 3, 2, padding=1)
    outputs = []
    for stage, (stage_stride, dilation) in enumerate(zip(strides, dilations, strict=True), start=1):
        block = 0
        while f"backbone.layer{stage}.{block}.conv1.weight" in weights:
            name = f"backbone.layer{stage}.{block}"
            stride = stage_stride if block == 0 else 1
            rate = dilation // 2 if block == 0 and contract_dilation and dilation > 1 else dilation
            shortcut = features
            if f"{name}.downsample.0.weight" in weights:
                shortcut = _conv(weights, f"{name}.downsample.0", features, f"{name}.downsample.1", stride=stride)
            features = _conv(weights, f"{name}.conv1", features, f"{name}.bn1").relu()
            features = _conv(weights, f"{name}.conv2", features, f"{name}.bn2", stride=stride, dilation=rate).relu()
            features = (_conv(weights, f"{name}.conv3", features, f"{name}.bn3") + shortcut).relu()
            block += 1
        outputs.append(features)
    return outputs[1:]


def _centers(height: int, width: int) -> torch.Tensor:
    """`(height * width, 2)`, x before y."""
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def _sines(height: int, width: int, channels: int) -> torch.Tensor:
    """`(height * width, channels)`"""
    index = torch.arange(channels // 2)
    period = 10000 ** (2 * (index // 2) / (channels // 2))
    y = (torch.arange(height) + 1) / (height + 1e-6) * 2 * math.pi
    x = (torch.arange(width) + 1) / (width + 1e-6) * 2 * math.pi
    tables = [torch.where(index % 2 == 0, (p / period).sin(), (p / period).cos()) for p in (y[:, None], x[:, None])]
    rows = tables[0][:, None].repeat(1, width, 1)
    columns = tables[1][None].repeat(height, 1, 1)
    return torch.cat([rows, columns], dim=2).reshape(height * width, channels)


def _sampled_attention(
    weights: Weights,
    name: str,
    queries: torch.Tensor,
    values: torch.Tensor,
    centers: torch.Tensor,
    shapes: list[tuple[int, int]],
    num_heads: int,
) -> torch.Tensor:
    batch_size, num_queries, width = queries.shape
    # (B, Q, M * L * P * 2) -> (B, Q, M, L, P, 2)
    offsets = linear(weights, f"{name}.sampling_offsets", queries)
    offsets = offsets.view(batch_size, num_queries, num_heads, len(shapes), -1, 2)
    scores = linear(weights, f"{name}.attention_weights", queries).view(batch_size, num_queries, num_heads, -1)
    attention = scores.softmax(-1).view(offsets.shape[:-1])
    values = linear(weights, f"{name}.value_proj", values)
    attended = torch.zeros(batch_size, num_heads, width // num_heads, num_queries)
    start = 0
    for level, (h, w) in enumerate(shapes):
        # (B, h * w, D) -> (B * M, D / M, h, w)
        maps = values[:, start : start + h * w].mT.reshape(batch_size * num_heads, -1, h, w)
        start += h * w
        points = centers[:, None, None] + offsets[:, :, :, level] / torch.tensor([w, h])
        # (B, Q, M, P, 2) -> (B * M, Q, P, 2)
        points = points.transpose(1, 2).flatten(0, 1) * 2 - 1
        sampled = F.grid_sample(maps, points, mode="bilinear", padding_mode="zeros", align_corners=False)
        attended += torch.einsum("bmdqp,bqmp->bmdq", sampled.unflatten(0, (batch_size, -1)), attention[:, :, :, level])
    # (B, M, D / M, Q) -> (B, Q, D)
    return linear(weights, f"{name}.output_proj", attended.flatten(1, 2).mT)


def _across_images(weights: Weights, name: str, queries: torch.Tensor, num_heads: int) -> torch.Tensor:
    """The released decoder's self-attention: each query attends to the queries at the same position of the other images."""
    qkv = F.linear(queries, weights[f"{name}.in_proj_weight"], weights[f"{name}.in_proj_bias"])
    # (B, Q, 3 * D) -> 3 x (Q, B, M, D / M)
    attended = attend(*qkv.transpose(0, 1).unflatten(2, (3, num_heads, -1)).unbind(2))
    return linear(weights, f"{name}.out_proj", attended.flatten(2).transpose(0, 1))


def _feed_forward(weights: Weights, name: str, tokens: torch.Tensor) -> torch.Tensor:
    return linear(weights, f"{name}.linear2", linear(weights, f"{name}.linear1", tokens).relu())


def _context_branch(
    weights: Weights, pyramid: list[torch.Tensor], queries: torch.Tensor, grid: tuple[int, int], num_heads: int
) -> torch.Tensor:
    shapes = [(level.shape[2], level.shape[3]) for level in pyramid]
    memory = torch.cat([level.flatten(2).mT for level in pyramid], dim=1)
    centers = torch.cat([_centers(*shape) for shape in shapes])
    levels = weights["context_branch.level_embed"]
    positions = torch.cat([_sines(*shape, memory.shape[2]) + levels[i] for i, shape in enumerate(shapes)])
    number = 0
    while f"context_branch.encoder.layers.{number}.norm1.weight" in weights:
        layer = f"context_branch.encoder.layers.{number}"
        attended = _sampled_attention(
            weights, f"{layer}.self_attn", memory + positions, memory, centers, shapes, num_heads
        )
        memory = norm(weights, f"{layer}.norm1", memory + attended, _EPS)
        memory = norm(weights, f"{layer}.norm2", memory + _feed_forward(weights, layer, memory), _EPS)
        number += 1
    number = 0
    while f"context_branch.decoder.layers.{number}.norm1.weight" in weights:
        layer = f"context_branch.decoder.layers.{number}"
        attended = _across_images(weights, f"{layer}.self_attn", queries, num_heads)
        queries = norm(weights, f"{layer}.norm2", queries + attended, _EPS)
        attended = _sampled_attention(
            weights, f"{layer}.cross_attn", queries, memory, _centers(*grid), shapes, num_heads
        )
        queries = norm(weights, f"{layer}.norm1", queries + attended, _EPS)
        queries = norm(weights, f"{layer}.norm3", queries + _feed_forward(weights, layer, queries), _EPS)
        number += 1
    return queries


@torch.no_grad()
def unept_forward(
    weights: Weights,
    pixel_values: torch.Tensor,
    *,
    query_grid: tuple[int, int],
    num_heads: int,
    patch_size: int,
    feature_layers: list[int],
    encoder: dict[str, Any],
) -> torch.Tensor:
    """
    The released UN-EPT in eval mode. For sizes that the original refuses, images are padded with zeros to whole patches
    and query embeddings are resized.

    Args:
        weights (`Weights`): Parameters by their original names.
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): Normalized images.
        query_grid (`tuple[int, int]`): Rows and columns of the query embeddings.
        num_heads (`int`): Heads of the context branch.
        patch_size (`int`): Number that heights and widths are padded to a multiple of.
        feature_layers (`list[int]`): Layers of a ViT, counted from 1, whose outputs are the levels.
        encoder (`dict[str, Any]`): Arguments of [`resnet_v1c_features`] or [`timm_hidden_states`].

    Returns:
        Coarse logits `(batch_size, num_labels, height, width)` at the size of the input.
    """
    height, width = pixel_values.shape[-2:]
    image = pad(pixel_values, patch_size)
    padded_size = tuple(image.shape[-2:])
    if "backbone.stem.0.weight" in weights:
        features = resnet_v1c_features(weights, image, **encoder)
    else:
        states = timm_hidden_states(weights, image, prefix="backbone.", **encoder)
        num_prefix_tokens = 2 if "backbone.dist_token" in weights else 1
        cells = [side // patch_size for side in padded_size]
        features = [states[layer][:, num_prefix_tokens:].mT.unflatten(2, cells) for layer in feature_layers]
    pyramid = [
        F.conv2d(maps, weights[f"layers.{i}.weight"], weights[f"layers.{i}.bias"]) for i, maps in enumerate(features)
    ]
    context = image
    for number in (1, 2, 3):
        name = f"spatial_branch.convblock{number}"
        context = _conv(weights, f"{name}.conv1", context, f"{name}.bn", stride=2)
        context = context.relu() if number < 3 else context
    grid = (context.shape[2], context.shape[3])
    embeddings = weights["query_embed.weight"]
    if grid != tuple(query_grid):
        # (Q, D) -> (1, D, rows, columns) -> (Q', D)
        table = embeddings.T.reshape(1, -1, *query_grid)
        embeddings = F.interpolate(table, size=grid, mode="bilinear", align_corners=False)[0].flatten(1).T
    queries = _context_branch(weights, pyramid, context.flatten(2).mT + embeddings, grid, num_heads)
    logits = F.conv2d(queries.mT.unflatten(2, grid), weights["cls.weight"], weights["cls.bias"])
    logits = F.interpolate(logits, size=padded_size, mode="bilinear", align_corners=False)
    return logits[..., :height, :width]
