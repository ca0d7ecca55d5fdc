# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Refined scores of windows, merged and resized in bands of rows."""

from dataclasses import dataclass
from functools import cached_property

import torch

from ..inference.upsampled_argmax import resize_weights
from ..inference.window_grid import WindowAxis
from .boundary_refinement import refinement_offsets, resize_boundary_maps


# floats of a band of rows that is evaluated at a time
_BAND = 1 << 22


@dataclass(frozen=True, eq=False)
class RefinedScores:
    """
    [`LazyScores`] that are refined along each window's predicted boundaries, which is not a linear function of its grid.

    Args:
        logits (`torch.Tensor` of shape `(window rows, window columns, num_labels, grid_height, grid_width)`): Coarse scores
            of the windows.
        boundary_logits (`torch.Tensor` of shape `(window rows, window columns, 2, h, w)`): Boundary logits of the windows.
        direction_logits (`torch.Tensor` of shape `(window rows, window columns, 8, h, w)`): Direction logits of the windows.
        rows, columns ([`WindowAxis`]): The windows along rows and columns.
        target_size (`tuple[int, int]`): Target `(height, width)`.
    """

    logits: torch.Tensor
    boundary_logits: torch.Tensor
    direction_logits: torch.Tensor
    rows: WindowAxis
    columns: WindowAxis
    target_size: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.logits.shape[2], *self.target_size

    @cached_property
    def steps(self) -> torch.Tensor:
        """[`refinement_offsets`] of each window, `(window rows, window columns, height, width, 2)`, int8."""
        size = self.rows.padded_size, self.columns.padded_size
        # one window at a time: the resized maps are larger than the steps
        steps = [
            refinement_offsets(*resize_boundary_maps(boundary[None], direction[None], size)).to(torch.int8)
            for boundary, direction in zip(
                self.boundary_logits.flatten(0, 1), self.direction_logits.flatten(0, 1), strict=True
            )
        ]
        return torch.cat(steps).unflatten(0, self.logits.shape[:2])

    def evaluate(self, top: int = 0, bottom: int | None = None) -> torch.Tensor:
        height, width = self.target_size
        device = self.logits.device
        with torch.autocast(device.type, enabled=False):
            if height == self.rows.kept_size:
                band = self._merge(top, height if bottom is None else min(bottom, height))
            else:
                weights = resize_weights(self.rows.kept_size, height, device).matrix[top:bottom]
                used = (weights != 0).any(dim=0).nonzero()[:, 0]
                first, last = int(used[0]), int(used[-1]) + 1
                # (rows, used) @ (num_labels, used, kept width)
                band = weights[:, first:last] @ self._merge(first, last)
            if width != self.columns.kept_size:
                band = band @ resize_weights(self.columns.kept_size, width, device).matrix.T
            return band.flip(-1) if self.columns.is_flipped else band

    @torch.no_grad()
    def argmax(self) -> torch.Tensor:
        num_labels, height, width = self.shape
        band = max(1, _BAND // (num_labels * max(width, self.columns.image_size)))
        return torch.cat([self.evaluate(top, top + band).argmax(dim=0) for top in range(0, height, band)])

    def _merge(self, first: int, last: int) -> torch.Tensor:
        """Averaged scores `(num_labels, last - first, kept width)` of rows of the image, before resizing."""
        total = self.logits.new_zeros(self.shape[0], last - first, self.columns.image_size)
        count = total.new_zeros(last - first, self.columns.image_size)
        for row, top in enumerate(self.rows.starts):
            begin, end = max(first - top, 0), min(last - top, self.rows.window_size)
            if begin >= end:
                continue
            inside = slice(top + begin - first, top + end - first)
            for column, left in enumerate(self.columns.starts):
                across = slice(left, left + self.columns.window_size)
                total[:, inside, across] += self._refine(row, column, begin, end)
                count[inside, across] += 1
        return (total / count)[..., : self.columns.kept_size]

    def _refine(self, row: int, column: int, begin: int, end: int) -> torch.Tensor:
        """Refined scores `(num_labels, end - begin, window width)` of some rows of a window."""
        height, width = self.rows.padded_size, self.columns.padded_size
        grid = self.logits[row, column]
        # steps lead one pixel away at most
        low, high = max(begin - 1, 0), min(end + 1, height)
        weights = resize_weights(grid.shape[1], height, grid.device).matrix[low:high]
        used = (weights != 0).any(dim=0)
        # (rows, used) @ (num_labels, used, grid width) @ (grid width, width) -> (num_labels, rows, width)
        coarse = weights[:, used] @ grid[:, used] @ resize_weights(grid.shape[2], width, grid.device).matrix.T
        steps = self.steps[row, column, begin:end, : self.columns.window_size].long()
        y = torch.arange(begin, end, device=grid.device)[:, None] + steps[..., 0]
        x = torch.arange(self.columns.window_size, device=grid.device) + steps[..., 1]
        source = (y.clamp(0, height - 1) - low) * width + x.clamp(0, width - 1)
        return coarse.flatten(1)[:, source.flatten()].unflatten(1, source.shape)
