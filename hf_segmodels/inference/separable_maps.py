# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Everything between a network's patch-level scores and the final label map, as matrices.

Bilinear resizing, cropping, averaging overlapping windows and flipping are linear, act on rows and columns separately,
and average: `scores[k] = rows @ grid[k] @ columns.T`, where the entries of `rows` and `columns` are not negative and
each of their rows sums to one. So they compose to one pair of small matrices, and full-resolution scores need never be
held where labels are all that is wanted.
"""

from dataclasses import dataclass

import torch
from torch import nn


def resize_weights(in_size: int, out_size: int, device: torch.device | str | None = None) -> torch.Tensor:
    """
    The matrix of bilinear resizing along one axis, as `torch.nn.functional.interpolate` does it with
    `align_corners=False`.

    Returns:
        `torch.Tensor` of shape `(out_size, in_size)`, float32; rows sum to one.
    """
    identity = torch.eye(in_size, device=device)[None]
    # (1, in_size, in_size) -> (in_size, out_size) -> (out_size, in_size)
    return nn.functional.interpolate(identity, size=out_size, mode="linear", align_corners=False)[0].T.contiguous()


def window_weights(
    starts: list[int], window: int, size: int, grid: int, covered: int, device: torch.device | str | None = None
) -> torch.Tensor:
    """
    The matrix that averages overlapping windows along one axis.

    Args:
        starts (`list[int]`): First pixel of each window.
        window (`int`): Pixels per window.
        size (`int`): Pixels of the image; the windows cover all of them.
        grid (`int`): Patch-level scores per window.
        covered (`int`): Pixels that these cover (`window` and what was padded to whole patches).

    Returns:
        `torch.Tensor` of shape `(size, len(starts) * grid)`, float32; rows sum to one.
    """
    one_window = resize_weights(grid, covered, device)[:window]
    weights = torch.zeros(size, len(starts) * grid, device=device)
    count = torch.zeros(size, 1, device=device)
    for number, start in enumerate(starts):
        weights[start : start + window, number * grid : (number + 1) * grid] = one_window
        count[start : start + window] += 1
    return weights / count


@dataclass
class SeparableScores:
    """
    Scores of one image, not yet evaluated at full resolution.

    Args:
        grid (`torch.Tensor` of shape `(num_labels, grid_height, grid_width)`): Patch-level scores.
        rows (`torch.Tensor` of shape `(height, grid_height)`): Weights of the grid's rows for each row of pixels.
        columns (`torch.Tensor` of shape `(width, grid_width)`): The same for columns.
    """

    grid: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor

    def evaluate(self, top: int = 0, bottom: int | None = None) -> torch.Tensor:
        """The scores `(num_labels, bottom - top, width)` of a band of rows, by default of all rows."""
        rows = self.rows[top:bottom]
        used = (rows != 0).any(dim=0).nonzero()[:, 0]
        # (rows, used) @ (num_labels, used, grid_width) @ (grid_width, width) -> (num_labels, rows, width)
        return rows[:, used] @ self.grid[:, used] @ self.columns.T
