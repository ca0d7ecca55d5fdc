# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Refinement of scores along predicted boundaries (section 3.2)."""

from collections.abc import Sequence

import torch
from torch import nn


# Offsets (down, right) of the eight directions. Direction i is centered at -180 + 45 i degrees.
DIRECTION_OFFSETS = ((0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1))


def resize_boundary_maps(
    boundary_logits: torch.Tensor, direction_logits: torch.Tensor, size: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Resize maps `(batch_size, 2, h, w)` and `(batch_size, 8, h, w)` to `size` with aligned corners, in float32."""
    boundaries, directions = (
        nn.functional.interpolate(logits.float(), size=size, mode="bilinear", align_corners=True)
        for logits in (boundary_logits, direction_logits)
    )
    return boundaries, directions


def refinement_offsets(boundary_logits: torch.Tensor, direction_logits: torch.Tensor) -> torch.Tensor:
    """
    Offset from each pixel to the pixel whose scores it takes: one pixel toward the interior where a boundary is
    predicted, otherwise none. As in the released code, a boundary is predicted where the raw logit exceeds 0.5. The logits
    have full resolution; see [`resize_boundary_maps`].

    Returns:
        `torch.Tensor` of shape `(batch_size, height, width, 2)`, int64: offsets downwards and to the right.
    """
    offsets = torch.tensor(DIRECTION_OFFSETS, device=boundary_logits.device)[direction_logits.argmax(dim=1)]
    return offsets * (boundary_logits[:, 1] > 0.5).unsqueeze(-1)


def gather_at_offsets(scores: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """
    Give each pixel the scores `(batch_size, num_labels, height, width)` of the pixel at its offset (see
    [`refinement_offsets`]). Offsets across the border are clamped to it.
    """
    height, width = scores.shape[-2:]
    rows = torch.arange(height, device=scores.device)[:, None] + offsets[..., 0]
    columns = torch.arange(width, device=scores.device) + offsets[..., 1]
    # (batch_size, height, width) -> (batch_size, 1, height * width)
    source = (rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)).flatten(1)[:, None]
    gathered = scores.flatten(2).gather(2, source.expand(-1, scores.shape[1], -1))
    return gathered.unflatten(2, (height, width))


def refine(scores: torch.Tensor, boundary_logits: torch.Tensor, direction_logits: torch.Tensor) -> torch.Tensor:
    """
    Replace the scores of boundary pixels by those of their neighbor in the predicted direction. The boundary and
    direction logits get no gradient.

    Args:
        scores (`torch.Tensor` of shape `(batch_size, num_labels, height, width)`): Scores at full resolution.
        boundary_logits (`torch.Tensor` of shape `(batch_size, 2, h, w)`): Boundary logits at any resolution.
        direction_logits (`torch.Tensor` of shape `(batch_size, 8, h, w)`): Direction logits at any resolution.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_labels, height, width)`.
    """
    boundaries, directions = resize_boundary_maps(boundary_logits, direction_logits, scores.shape[-2:])
    return gather_at_offsets(scores, refinement_offsets(boundaries, directions))
