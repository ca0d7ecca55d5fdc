# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""UN-EPT's forward pass over the original parameter names."""

import math
from typing import Any

import torch
import torch.nn.functional as F

from .common import Weights, conv, conv_norm, feed_forward, linear, multihead_attention, norm, numbered, pad, resize
from .vit import vit_features


def resnet_v1c_features(
    weights: Weights, pixel_values: torch.Tensor, strides: list[int], dilations: list[int], contract_dilation: bool
) -> list[torch.Tensor]:
    """Outputs of the stages after the first, by the names of mmsegmentation under `backbone.`"""
    features = pixel_values
    for number, stride in ((0, 2), (3, 1), (6, 1)):
        names = f"backbone.stem.{number}", f"backbone.stem.{number + 1}"
        features = conv_norm(weights, *names, features, stride=stride).relu()
    features = F.max_pool2d(features, 3, 2, padding=1)
    outputs = []
    for stage, (stage_stride, dilation) in enumerate(zip(strides, dilations, strict=True), start=1):
        for block, name in enumerate(numbered(weights, f"backbone.layer{stage}")):
            stride = stage_stride if block == 0 else 1
            rate = dilation // 2 if block == 0 and contract_dilation and dilation > 1 else dilation
            shortcut = features
            if f"{name}.downsample.0.weight" in weights:
                shortcut = conv_norm(weights, f"{name}.downsample.0", f"{name}.downsample.1", features, stride)
            features = conv_norm(weights, f"{name}.conv1", f"{name}.bn1", features).relu()
            features = conv_norm(weights, f"{name}.conv2", f"{name}.bn2", features, stride, rate).relu()
            features = (conv_norm(weights, f"{name}.conv3", f"{name}.bn3", features) + shortcut).relu()
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
    rows, columns = (torch.where(index % 2 == 0, p.sin(), p.cos()) for p in (y[:, None] / period, x[:, None] / period))
    tables = rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)
    return torch.cat(tables, dim=2).flatten(0, 1)


def _attend_sampled(
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
    for level, part in enumerate(values.split([h * w for h, w in shapes], dim=1)):
        h, w = shapes[level]
        # (B, h * w, D) -> (B * M, D / M, h, w)
        maps = part.mT.reshape(batch_size * num_heads, -1, h, w)
        points = centers[:, None, None] + offsets[:, :, :, level] / torch.tensor([w, h])
        # (B, Q, M, P, 2) -> (B * M, Q, P, 2)
        points = points.transpose(1, 2).flatten(0, 1) * 2 - 1
        sampled = F.grid_sample(maps, points, mode="bilinear", padding_mode="zeros", align_corners=False)
        attended += torch.einsum("bmdqp,bqmp->bmdq", sampled.unflatten(0, (batch_size, -1)), attention[:, :, :, level])
    # (B, M, D / M, Q) -> (B, Q, D)
    return linear(weights, f"{name}.output_proj", attended.flatten(1, 2).mT)


def _context_branch(
    weights: Weights, pyramid: list[torch.Tensor], queries: torch.Tensor, grid: tuple[int, int], num_heads: int
) -> torch.Tensor:
    shapes = [(level.shape[2], level.shape[3]) for level in pyramid]
    memory = torch.cat([level.flatten(2).mT for level in pyramid], dim=1)
    centers = torch.cat([_centers(*shape) for shape in shapes])
    levels = weights["context_branch.level_embed"]
    positions = torch.cat([_sines(*shape, memory.shape[2]) + levels[i] for i, shape in enumerate(shapes)])
    for layer in numbered(weights, "context_branch.encoder.layers"):
        attended = _attend_sampled(
            weights, f"{layer}.self_attn", memory + positions, memory, centers, shapes, num_heads
        )
        memory = norm(weights, f"{layer}.norm1", memory + attended)
        memory = norm(weights, f"{layer}.norm2", memory + feed_forward(weights, layer, memory))
    for layer in numbered(weights, "context_branch.decoder.layers"):
        # each query attends to the queries at the same position of the other images
        across = queries.transpose(0, 1)
        attended = multihead_attention(weights, f"{layer}.self_attn", across, across, num_heads).transpose(0, 1)
        queries = norm(weights, f"{layer}.norm2", queries + attended)
        attended = _attend_sampled(weights, f"{layer}.cross_attn", queries, memory, _centers(*grid), shapes, num_heads)
        queries = norm(weights, f"{layer}.norm1", queries + attended)
        queries = norm(weights, f"{layer}.norm3", queries + feed_forward(weights, layer, queries))
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
        query_grid (`tuple[int, int]`): Rows and columns of the query embeddings.
        num_heads (`int`): Heads of the context branch.
        patch_size (`int`): Number that heights and widths are padded to a multiple of.
        feature_layers (`list[int]`): Layers of a ViT, counted from 1, whose outputs are the levels.
        encoder (`dict[str, Any]`): Arguments of [`resnet_v1c_features`] or [`vit_features`].
        weights, pixel_values: See [`vit_features`].

    Returns:
        Coarse logits `(batch_size, num_labels, height, width)` at the size of the input.
    """
    height, width = pixel_values.shape[-2:]
    image = pad(pixel_values, patch_size)
    if "backbone.stem.0.weight" in weights:
        features = resnet_v1c_features(weights, image, **encoder)
    else:
        states = vit_features(weights, image, prefix="backbone.", **encoder)
        features = [states[layer] for layer in feature_layers]
    pyramid = [conv(weights, f"layers.{i}", maps) for i, maps in enumerate(features)]
    context = image
    for number in (1, 2, 3):
        name = f"spatial_branch.convblock{number}"
        context = conv_norm(weights, f"{name}.conv1", f"{name}.bn", context, stride=2)
        context = context.relu() if number < 3 else context
    grid = (context.shape[2], context.shape[3])
    embeddings = weights["query_embed.weight"]
    if grid != tuple(query_grid):
        # (Q, D) -> (1, D, rows, columns) -> (Q', D)
        embeddings = resize(embeddings.T.reshape(1, -1, *query_grid), grid)[0].flatten(1).T
    queries = _context_branch(weights, pyramid, context.flatten(2).mT + embeddings, grid, num_heads)
    logits = resize(conv(weights, "cls", queries.mT.unflatten(2, grid)), image.shape[-2:])
    return logits[..., :height, :width]
