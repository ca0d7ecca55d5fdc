# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Segmenter's forward pass over the original parameter names."""

from typing import Any

import torch
import torch.nn.functional as F

from .common import Weights, linear, norm, pad, resize
from .vit import transformer_layers, vit_features


def _segmenter_masks(weights: Weights, patches: torch.Tensor) -> torch.Tensor:
    """Patch tokens `(batch_size, num_patches, D)` -> scores `(batch_size, num_patches, num_labels)`."""
    if "decoder.head.weight" in weights:
        return linear(weights, "decoder.head", patches)
    batch_size, num_patches, _ = patches.shape
    embeddings = weights["decoder.cls_emb"].expand(batch_size, -1, -1)
    tokens = torch.cat([linear(weights, "decoder.proj_dec", patches), embeddings], dim=1)
    tokens = transformer_layers(weights, "decoder.", tokens, max(1, embeddings.shape[2] // 64), 1e-5)[-1]
    tokens = norm(weights, "decoder.decoder_norm", tokens)
    patches = F.normalize(tokens[:, :num_patches] @ weights["decoder.proj_patch"], dim=-1)
    classes = F.normalize(tokens[:, num_patches:] @ weights["decoder.proj_classes"], dim=-1)
    return norm(weights, "decoder.mask_norm", patches @ classes.mT)


@torch.no_grad()
def segmenter_forward(weights: Weights, pixel_values: torch.Tensor, *, patch_size: int, **encoder: Any) -> torch.Tensor:
    """
    The released Segmenter in eval mode.

    Args:
        weights, pixel_values, patch_size, encoder: See [`vit_features`].

    Returns:
        Logits `(batch_size, num_labels, height, width)` at the size of the input.
    """
    height, width = pixel_values.shape[-2:]
    padded = pad(pixel_values, patch_size)
    features = vit_features(
        weights,
        padded,
        patch_size=patch_size,
        eps=1e-5,
        mode="bilinear",
        only_by_count=True,
        prefix="encoder.",
        **encoder,
    )[-1]
    masks = _segmenter_masks(weights, norm(weights, "encoder.norm", features.flatten(2).mT))
    # (batch_size, h * w, K) -> (batch_size, K, h, w) -> (batch_size, K, padded height, padded width)
    logits = resize(masks.mT.unflatten(2, features.shape[-2:]), padded.shape[-2:])
    return logits[..., :height, :width]
