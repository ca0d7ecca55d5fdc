# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""SegViT's forward pass over the original parameter names."""

import math
from typing import Any

import torch

from .common import Weights, attend, feed_forward, linear, multihead_attention, norm, numbered, pad, resize
from .vit import vit_features


def _mask_attention(
    weights: Weights, name: str, query: torch.Tensor, memory: torch.Tensor, heads: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The attention whose scores `(batch_size, num_queries, num_patches)` are masks."""
    query, key, value = (
        linear(weights, f"{name}.{part}", tokens).unflatten(2, (heads, -1))
        for part, tokens in (("q", query), ("k", memory), ("v", memory))
    )
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
    return linear(weights, f"{name}.proj", attend(query, key, value).flatten(2)), scores.mean(dim=1)


def _segvit_stage(
    weights: Weights, name: str, query: torch.Tensor, memory: torch.Tensor, heads: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Queries after all layers of a stage, and the masks of the last layer if its attention has any."""
    masks = None
    for layer in numbered(weights, f"{name}.layers"):
        attended = multihead_attention(weights, f"{layer}.self_attn", query, query, heads)
        query = norm(weights, f"{layer}.norm1", query + attended)
        if f"{layer}.multihead_attn.q.weight" in weights:
            attended, masks = _mask_attention(weights, f"{layer}.multihead_attn", query, memory, heads)
        else:
            attended = multihead_attention(weights, f"{layer}.multihead_attn", query, memory, heads)
        query = norm(weights, f"{layer}.norm2", query + attended)
        query = norm(weights, f"{layer}.norm3", query + feed_forward(weights, layer, query))
    return query, masks


@torch.no_grad()
def segvit_forward(
    weights: Weights,
    pixel_values: torch.Tensor,
    *,
    feature_layers: list[int],
    decoder_heads: int,
    image_size: int,
    patch_size: int,
    halving_layer: int | None,
    **encoder: Any,
) -> torch.Tensor:
    """
    The released SegViT in eval mode. The original takes squares only; here height and width may differ.

    Args:
        feature_layers (`list[int]`): Layers, counted from 1, whose outputs the decoder attends to.
        decoder_heads (`int`): Heads of the decoder's attention.
        image_size (`int`): Side at which masks become probabilities: the training crop.
        halving_layer (`int`, *optional*): Index of the layer that down-samples.
        weights, pixel_values, patch_size, encoder: See [`vit_features`].

    Returns:
        Scores `(batch_size, num_labels, height, width)` at the size of the input.
    """
    padded = pad(pixel_values, patch_size * (1 if halving_layer is None else 2))
    features = vit_features(
        weights, padded, patch_size=patch_size, halving_layer=halving_layer, prefix="backbone.", **encoder
    )
    head = "decode_head"

    def lateral(stage: int, layer: int) -> torch.Tensor:
        tokens = features[layer].flatten(2).mT
        return norm(weights, f"{head}.proj_norm_{stage}", linear(weights, f"{head}.input_proj_{stage}", tokens))

    query = weights[f"{head}.q.weight"].expand(len(pixel_values), -1, -1)
    grid = tuple(features[feature_layers[0]].shape[-2:])
    masks: Any = 0.0
    if f"{head}.atm.q.weight" in weights:
        side = math.isqrt(query.shape[1])
        grid = (side, side)
        for stage, layer in enumerate(feature_layers, start=1):
            query, _ = _segvit_stage(weights, f"{head}.decoder_{stage}", query, lateral(stage, layer), decoder_heads)
        head = f"{head}.atm"
        classes = weights[f"{head}.q.weight"].expand(len(pixel_values), -1, -1)
        query, masks = _segvit_stage(weights, f"{head}.decoder_1", classes, query, decoder_heads)
    else:
        for stage, layer in enumerate(reversed(feature_layers), start=1):
            memory = lateral(stage, layer)
            query, scores = _segvit_stage(weights, f"{head}.decoder_{stage}", query, memory, decoder_heads)
            masks = masks + scores
    # (batch_size, num_queries, h * w) -> (batch_size, num_queries, image_size, image_size)
    masks = resize(masks.unflatten(2, grid), (image_size, image_size))
    probabilities = linear(weights, f"{head}.class_embed", query).softmax(dim=-1)[..., :-1]
    scores = torch.einsum("bqc,bqhw->bchw", probabilities, masks.sigmoid())
    return resize(scores, pixel_values.shape[-2:])
