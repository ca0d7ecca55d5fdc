# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Refined scores of windows, merged and resized without holding more than a band of rows at full resolution."""

from functools import cached_property

import torch

from ..inference.separable_maps import Windows, resize_map
from .boundary_refinement import DIRECTION_OFFSETS, refinement_offsets, resize_boundary_maps


# floats of a band of rows that is evaluated at a time
_BAND = 1 << 22
_NUM_MAPS = 2 + len(DIRECTION_OFFSETS)


class RefinedScores:
    """
    Scores of one image, as [`SeparableScores`], but refined along each window's predicted boundaries, which is no linear
    function of its grid.

    Args:
        grids (`torch.Tensor` of shape `(rows of windows, columns of windows, num_labels + 2 + 8, grid_height, grid_width)`):
            Coarse scores, boundary and direction logits of each window.
        rows, columns ([`Windows`]): Where the windows lie along either axis.
        target_size (`tuple[int, int]`): `(height, width)` wanted.
        is_flipped (`bool`): Whether the image was mirrored.
    """

    def __init__(
        self, grids: torch.Tensor, rows: Windows, columns: Windows, target_size: tuple[int, int], is_flipped: bool
    ):
        self.grids, self.rows, self.columns = grids, rows, columns
        self.target_size, self.is_flipped = target_size, is_flipped

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(num_labels, height, width)`"""
        return self.grids.shape[2] - _NUM_MAPS, *self.target_size

    @cached_property
    def steps(self) -> torch.Tensor:
        """For each window [`refinement_offsets`], `(rows, columns, height, width, 2)`, int8."""
        size = self.rows.covered, self.columns.covered
        maps = self.grids[:, :, -_NUM_MAPS:]
        steps = [
            refinement_offsets(*resize_boundary_maps(window[:2][None], window[2:][None], size)).to(torch.int8)
            for window in maps.flatten(0, 1)
        ]
        return torch.cat(steps).unflatten(0, maps.shape[:2])

    def evaluate(self, top: int = 0, bottom: int | None = None) -> torch.Tensor:
        """The scores `(num_labels, bottom - top, width)`, float32, of a band of rows, by default of all rows."""
        height, width = self.target_size
        device = self.grids.device
        with torch.autocast(device.type, enabled=False):
            if height == self.rows.kept_size:
                band = self._merge(top, height if bottom is None else min(bottom, height))
            else:
                weights = resize_map(self.rows.kept_size, height, device).weights[top:bottom]
                used = (weights != 0).any(dim=0).nonzero()[:, 0]
                first, last = int(used[0]), int(used[-1]) + 1
                # (rows, used) @ (num_labels, used, kept width)
                band = weights[:, first:last] @ self._merge(first, last)
            if width != self.columns.kept_size:
                band = band @ resize_map(self.columns.kept_size, width, device).weights.T
            return band.flip(-1) if self.is_flipped else band

    @torch.no_grad()
    def argmax(self) -> torch.Tensor:
        """The label map `(height, width)`, int64: `evaluate().argmax(0)` in bands of rows."""
        num_labels, height, width = self.shape
        band = max(1, _BAND // (num_labels * max(width, self.columns.image_size)))
        return torch.cat([self.evaluate(top, top + band).argmax(dim=0) for top in range(0, height, band)])

    def _merge(self, first: int, last: int) -> torch.Tensor:
        """Averaged scores `(num_labels, last - first, kept width)` of rows of the image, before resizing."""
        num_labels = self.shape[0]
        total = self.grids.new_zeros(num_labels, last - first, self.columns.image_size, dtype=torch.float32)
        count = total.new_zeros(last - first, self.columns.image_size)
        for row, top in enumerate(self.rows.starts):
            begin, end = max(first - top, 0), min(last - top, self.rows.size)
            if begin >= end:
                continue
            inside = slice(top + begin - first, top + end - first)
            for column, left in enumerate(self.columns.starts):
                across = slice(left, left + self.columns.size)
                total[:, inside, across] += self._refine(row, column, begin, end)
                count[inside, across] += 1
        return (total / count)[..., : self.columns.kept_size]

    def _refine(self, row: int, column: int, begin: int, end: int) -> torch.Tensor:
        """Refined scores `(num_labels, end - begin, window width)` of some rows of a window."""
        height, width = self.rows.covered, self.columns.covered
        grid = self.grids[row, column, :-_NUM_MAPS].float()
        # steps lead one pixel away at most
        low, high = max(begin - 1, 0), min(end + 1, height)
        weights = resize_map(grid.shape[1], height, grid.device).weights[low:high]
        used = (weights != 0).any(dim=0)
        # (rows, used) @ (num_labels, used, grid width) @ (grid width, width) -> (num_labels, rows, width)
        coarse = weights[:, used] @ grid[:, used] @ resize_map(grid.shape[2], width, grid.device).weights.T
        steps = self.steps[row, column, begin:end, : self.columns.size].long()
        y = torch.arange(begin, end, device=grid.device)[:, None] + steps[..., 0]
        x = torch.arange(self.columns.size, device=grid.device) + steps[..., 1]
        source = (y.clamp(0, height - 1) - low) * width + x.clamp(0, width - 1)
        return coarse.flatten(1)[:, source.flatten()].unflatten(1, source.shape)


__all__ = ["RefinedScores"]
