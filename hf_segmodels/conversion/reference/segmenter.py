# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Segmenter's forward pass over the original parameter names."""

import torch
import torch.nn.functional as F

from .common import Weights, linear, norm, pad
from .vit import timm_layers, timm_tokens


def _segmenter_masks(weights: Weights, patches: torch.Tensor) -> torch.Tensor:
    """Patch tokens `(batch_size, num_patches, D)` -> scores `(batch_size, num_patches, num_labels)`."""
    if "decoder.head.weight" in weights:
        return linear(weights, "decoder.head", patches)
    batch_size, num_patches, _ = patches.shape
    width = weights["decoder.cls_emb"].shape[2]
    tokens = linear(weights, "decoder.proj_dec", patches)
    tokens = torch.cat([tokens, weights["decoder.cls_emb"].expand(batch_size, -1, -1)], dim=1)
    tokens = timm_layers(weights, "decoder.", tokens, max(1, width // 64), 1e-5)[-1]
    tokens = norm(weights, "decoder.decoder_norm", tokens, 1e-5)
    patches, classes = tokens[:, :num_patches], tokens[:, num_patches:]
    patches, classes = patches @ weights["decoder.proj_patch"], classes @ weights["decoder.proj_classes"]
    patches, classes = (vectors / vectors.square().sum(-1, keepdim=True).sqrt() for vectors in (patches, classes))
    cosines = torch.einsum("bnd,bkd->bnk", patches, classes)
    return norm(weights, "decoder.mask_norm", cosines, 1e-5)


@torch.no_grad()
def segmenter_forward(
    weights: Weights, pixel_values: torch.Tensor, *, num_heads: int, patch_size: int, grid: tuple[int, int]
) -> torch.Tensor:
    """
    The released Segmenter in eval mode.

    Returns:
        Logits `(batch_size, num_labels, height, width)` at the size of the input.
    """
    height, width = pixel_values.shape[-2:]
    padded = pad(pixel_values, patch_size)
    tokens = timm_tokens(
        weights,
        padded,
        num_heads=num_heads,
        patch_size=patch_size,
        grid=grid,
        eps=1e-5,
        mode="bilinear",
        only_by_count=True,
        prefix="encoder.",
    )
    num_prefix_tokens = 2 if "encoder.dist_token" in weights else 1
    masks = _segmenter_masks(weights, tokens[:, num_prefix_tokens:])
    # (batch_size, h * w, K) -> (batch_size, K, h, w) -> (batch_size, K, padded height, padded width)
    masks = masks.mT.reshape(*masks.mT.shape[:2], *(size // patch_size for size in padded.shape[-2:]))
    logits = F.interpolate(masks, size=padded.shape[-2:], mode="bilinear", align_corners=False)
    return logits[..., :height, :width]
