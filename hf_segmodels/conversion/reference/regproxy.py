# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""RegProxy's forward pass over the original parameter names."""

from typing import Any

import torch
import torch.nn.functional as F

from .common import Weights, conv, conv_norm, linear, norm, resize
from .vit import vit_features


@torch.no_grad()
def regproxy_forward(
    weights: Weights,
    pixel_values: torch.Tensor,
    *,
    token_head_depth: int,
    cell_size: tuple[int, int],
    eps: float,
    batch_norm_eps: float,
    **encoder: Any,
) -> torch.Tensor:
    """
    The released RegProxy in eval mode.

    Args:
        token_head_depth (`int`): Layers before the affinity head.
        cell_size (`tuple[int, int]`): Predictions for each token, down and across.
        eps, batch_norm_eps (`float`): Epsilon of layer norms and batch norms.
        weights, pixel_values, encoder: See [`vit_features`].

    Returns:
        Logits `(batch_size, num_labels, height, width)` at the size of the input.
    """
    features = vit_features(weights, pixel_values, eps=eps, prefix="backbone.", only_by_count=True, **encoder)
    early, late = features[token_head_depth], features[-1]
    for name in ("depthwise_conv", "pointwise_conv"):
        name = f"decode_head.affinity_head.0.{name}"
        early = conv_norm(weights, f"{name}.conv", f"{name}.bn", early, eps=batch_norm_eps).relu()
    # (batch_size, 9 * h * w, H, W) -> (batch_size, 9, h, w, H, W)
    scores = conv(weights, "decode_head.affinity_head.1.conv", early).unflatten(1, (9, *cell_size))
    tokens = norm(weights, "backbone.ln1", late.permute(0, 2, 3, 1), eps)
    # (batch_size, H, W, K) -> (batch_size, K, H, W)
    token_logits = linear(weights, "decode_head.mlp.0.0", tokens).permute(0, 3, 1, 2)

    # neighbors outside the grid have no weight
    grid = late.shape[-2:]
    exists = F.unfold(torch.ones(1, 1, *grid), 3, padding=1).view(1, 9, 1, 1, *grid) > 0
    affinities = scores.masked_fill(~exists, -torch.inf).softmax(dim=1)
    # (batch_size, K * 9, H * W) -> (batch_size, K, 9, H, W)
    neighbors = F.unfold(token_logits, 3, padding=1).unflatten(1, (-1, 9)).unflatten(3, grid)
    # (batch_size, K, H, h, W, w) -> (batch_size, K, H * h, W * w)
    painted = torch.einsum("bnyxhw,bknhw->bkhywx", affinities, neighbors).flatten(4).flatten(2, 3)
    return resize(painted, pixel_values.shape[-2:])
