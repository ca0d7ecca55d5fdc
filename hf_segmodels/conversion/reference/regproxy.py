# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""RegProxy's forward pass over the original parameter names."""

from typing import Any

import torch
import torch.nn.functional as F

from .common import Weights, batch_norm, linear, norm
from .vit import mmseg_tokens


def _conv_norm(weights: Weights, name: str, features: torch.Tensor, eps: float) -> torch.Tensor:
    weight = weights[f"{name}.conv.weight"]
    features = F.conv2d(features, weight, padding=weight.shape[-1] // 2, groups=features.shape[1] // weight.shape[1])
    return batch_norm(weights, f"{name}.bn", features, eps).relu()


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
        weights, pixel_values, encoder: See [`mmseg_tokens`].

    Returns:
        Logits `(batch_size, num_labels, height, width)` at the size of the input.
    """
    features = mmseg_tokens(weights, pixel_values, eps=eps, **encoder)
    early, late = features[token_head_depth], features[-1]
    (rows, columns), (cell_height, cell_width) = late.shape[-2:], cell_size
    for part in ("depthwise_conv", "pointwise_conv"):
        early = _conv_norm(weights, f"decode_head.affinity_head.0.{part}", early, batch_norm_eps)
    predictor = "decode_head.affinity_head.1.conv"
    scores = F.conv2d(early, weights[f"{predictor}.weight"], weights[f"{predictor}.bias"])
    scores = _unpack(scores, cell_size)
    tokens = norm(weights, "backbone.ln1", late.permute(0, 2, 3, 1), eps)
    # (batch_size, H, W, K) -> (batch_size, K, H, W)
    token_logits = linear(weights, "decode_head.mlp.0.0", tokens).permute(0, 3, 1, 2)

    # each pixel is in the token `(row, column)`; neighbors outside the grid have no weight
    row = torch.arange(rows * cell_height)[:, None] // cell_height
    column = torch.arange(columns * cell_width)[None] // cell_width
    total, weight_sum = torch.zeros(()), torch.zeros(())
    largest = scores.amax(dim=1, keepdim=True)
    for number, score in enumerate(scores.unbind(1)):
        y, x = row + number // 3 - 1, column + number % 3 - 1
        exists = (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
        weight = (score[:, None] - largest).exp() * exists
        total = total + weight * token_logits[:, :, y.clamp(0, rows - 1), x.clamp(0, columns - 1)]
        weight_sum = weight_sum + weight
    painted = total / weight_sum
    return F.interpolate(painted, size=pixel_values.shape[-2:], mode="bilinear", align_corners=False)


def _unpack(scores: torch.Tensor, cell_size: tuple[int, int]) -> torch.Tensor:
    """`(batch_size, 9 * h * w, H, W)` -> `(batch_size, 9, H * h, W * w)`"""
    rows, columns = (side * cell for side, cell in zip(scores.shape[-2:], cell_size, strict=True))
    # (batch_size, 9, h, w, H, W) -> (batch_size, 9, H, h, W, w)
    cells = scores.unflatten(1, (9, *cell_size)).permute(0, 1, 4, 2, 5, 3)
    return cells.reshape(len(scores), 9, rows, columns)
