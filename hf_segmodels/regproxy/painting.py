# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Painting (section 4.3): the logits of a pixel are the logits of the 3x3 tokens around it, weighted by affinity.

Neighbors are numbered row by row: `n = 3 * (dy + 1) + (dx + 1)` for the token `dy` rows below and `dx` columns to the right
of the token whose cell contains the pixel. Neighbors outside the image have logits of 0.
"""

import torch
from torch import nn


def neighbors(height: int, width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Return the 3x3 tokens around each of `(H, W)` tokens: their index `(9, H, W)`, int64, row by row, which is the nearest
    token for neighbors outside the image; and whether they are inside the image `(9, H, W)`, bool.
    """
    offset = torch.arange(-1, 2, device=device)
    rows = offset[:, None] + torch.arange(height, device=device)
    columns = offset[:, None] + torch.arange(width, device=device)
    has_row, has_column = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    index = rows.clamp(0, height - 1)[:, None, :, None] * width + columns.clamp(0, width - 1)[None, :, None, :]
    # (3, 3, H, W) -> (9, H, W)
    return index.flatten(0, 1), (has_row[:, None, :, None] & has_column[None, :, None, :]).flatten(0, 1)


def paint(token_logits: torch.Tensor, affinity: torch.Tensor) -> torch.Tensor:
    """
    Paint the logits of tokens onto their regions (equation 6).

    Args:
        token_logits (`torch.Tensor` of shape `(batch_size, H * W, num_labels)`): Logits of each token.
        affinity (`torch.Tensor` of shape `(batch_size, 9, h, w, H, W)`): Affinity of the pixels `(h, w)` of each cell
            `(H, W)` to the 3x3 tokens around it.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_labels, H * h, W * w)` in channels-last memory format.
    """
    is_differentiated = torch.is_grad_enabled() and (token_logits.requires_grad or affinity.requires_grad)
    if torch.compiler.is_compiling() or is_differentiated or token_logits.device.type not in ("cpu", "cuda"):
        return _paint_by_products(token_logits, affinity)
    return _paint_by_sums(token_logits, affinity)


def _paint_by_sums(token_logits: torch.Tensor, affinity: torch.Tensor) -> torch.Tensor:
    """Gather tokens in place and write the result once: the least memory traffic, but not traceable or differentiable here."""
    batch_size, _, cell_height, cell_width, height, width = affinity.shape
    index, is_inside = neighbors(height, width, affinity.device)
    first_token = torch.arange(batch_size, device=index.device).view(-1, 1, 1, 1, 1, 1) * (height * width)
    # (batch_size, 9, h, w, H, W) -> (batch_size, H, h, W, w, 9), nine tokens for each pixel
    index = (index[None, :, None, None] + first_token).to(torch.int32).permute(0, 4, 2, 5, 3, 1)
    index = index.expand(-1, -1, cell_height, -1, cell_width, -1).reshape(-1, 9)
    weights = (affinity * is_inside[None, :, None, None]).to(token_logits.dtype)
    weights = weights.permute(0, 4, 2, 5, 3, 1).reshape(-1, 9)
    painted = nn.functional.embedding_bag(
        index, token_logits.flatten(0, 1), per_sample_weights=weights.contiguous(), mode="sum"
    )
    # (batch_size * H * h * W * w, K) -> (batch_size, H * h, W * w, K) -> (batch_size, K, H * h, W * w)
    return painted.view(batch_size, height * cell_height, width * cell_width, -1).permute(0, 3, 1, 2)


def _paint_by_products(token_logits: torch.Tensor, affinity: torch.Tensor) -> torch.Tensor:
    """One matrix product for each token: basic operations for compilation, export and gradients."""
    cell_height, cell_width, height, width = affinity.shape[2:]
    # (batch_size, H * W, K) -> (batch_size, H + 2, W + 2, K)
    padded = nn.functional.pad(token_logits.unflatten(1, (height, width)), (0, 0, 1, 1, 1, 1))
    around = [padded[:, top : top + height, left : left + width] for top in range(3) for left in range(3)]
    # (batch_size, 9, h, w, H, W) -> (batch_size, H, W, h * w, 9)
    weights = affinity.to(token_logits.dtype).permute(0, 4, 5, 2, 3, 1).flatten(3, 4)
    # (batch_size, H, W, h * w, 9) @ (batch_size, H, W, 9, K) -> (batch_size, H, W, h, w, K)
    painted = (weights @ torch.stack(around, dim=3)).unflatten(3, (cell_height, cell_width))
    # -> (batch_size, H, h, W, w, K) -> (batch_size, H * h, W * w, K) -> (batch_size, K, H * h, W * w)
    painted = painted.transpose(2, 3).flatten(3, 4).flatten(1, 2).contiguous()
    return painted.permute(0, 3, 1, 2)
