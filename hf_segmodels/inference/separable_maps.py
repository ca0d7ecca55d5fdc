# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Everything between a network's patch-level scores and the final label map, as matrices.

Bilinear resizing, cropping, averaging overlapping windows and flipping are linear, act on rows and columns separately,
and average: `scores[k] = rows @ grid[k] @ columns.T`, where the entries of `rows` and `columns` are not negative and
each of their rows sums to one. So they compose to one pair of small matrices, and full-resolution scores need never be
held where labels are all that is wanted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import nn


# A tile grows to `_MAX_TILE` pixels while no more grid entries support it than support a single pixel, so that tiles
# follow the cells of the grid; and to `_MIN_TILE` in any case, so that small factors do not end in tiny tiles.
_MIN_TILE, _MAX_TILE = 8, 16


@dataclass(frozen=True, eq=False)
class AxisMap:
    """
    A linear map from grid entries to pixels along one axis.

    Args:
        weights (`torch.Tensor` of shape `(num_pixels, num_entries)`): Not negative; rows sum to one, and few of their
            entries are not zero.
    """

    weights: torch.Tensor

    @property
    def size(self) -> int:
        """Number of pixels."""
        return self.weights.shape[0]

    @cached_property
    def tiles(self) -> "AxisTiles":
        return AxisTiles.cut(self.weights)


@dataclass(frozen=True, eq=False)
class AxisTiles:
    """
    An [`AxisMap`] cut into tiles of neighboring pixels.

    Args:
        support (`torch.LongTensor` of shape `(num_tiles, num_support)`): The grid entries that a tile's pixels depend
            on; where it has fewer, the last one again.
        weights (`torch.Tensor` of shape `(num_tiles, tile_size, num_support)`): Their weights for each pixel; zero for
            repeated entries, and for the pixels that a shorter tile lacks.
        position (`torch.LongTensor` of shape `(num_pixels,)`): Index of each pixel in the tiles laid end to end.
    """

    support: torch.Tensor
    weights: torch.Tensor
    position: torch.Tensor

    @property
    def number(self) -> int:
        return self.weights.shape[0]

    @property
    def size(self) -> int:
        return self.weights.shape[1]

    @classmethod
    def cut(cls, weights: torch.Tensor) -> "AxisTiles":
        """Cuts a map `(num_pixels, num_entries)`."""
        values = weights.cpu().numpy()
        num_pixels = len(values)
        pixels, entries = values.nonzero()
        supports = [set(part.tolist()) for part in np.split(entries, np.searchsorted(pixels, range(1, num_pixels)))]
        starts, joints = cut_tiles(supports)
        lengths = np.diff([*starts, num_pixels])
        num_support = max(map(len, joints))
        tile_support = np.zeros((len(starts), num_support), dtype=np.int64)
        tile_weights = np.zeros((len(starts), lengths.max(), num_support), dtype=values.dtype)
        position = np.arange(num_pixels) + np.repeat(np.arange(len(starts)) * lengths.max() - starts, lengths)
        for tile, (start, length, joint) in enumerate(zip(starts, lengths, joints, strict=True)):
            # descending: a matrix product that adds its terms in this order rounds as `interpolate` does on CPUs
            order = sorted(joint, reverse=True)
            tile_support[tile] = order + order[-1:] * (num_support - len(order))
            tile_weights[tile, :length, : len(order)] = values[start : start + length, order]
        return cls(*(torch.from_numpy(array).to(weights.device) for array in (tile_support, tile_weights, position)))


def cut_tiles(supports: Sequence[set[int]]) -> tuple[list[int], list[set[int]]]:
    """First pixel of each tile, and the entries that its pixels depend on, from those of each pixel."""
    smallest = max(map(len, supports))
    starts, joints = [0], [supports[0]]
    for pixel, support in enumerate(supports):
        length, joint = pixel - starts[-1], joints[-1] | support
        if length >= _MAX_TILE or (length >= _MIN_TILE and len(joint) > smallest):
            starts.append(pixel)
            joints.append(support)
        else:
            joints[-1] = joint
    return starts, joints


def resize_rows(weights: torch.Tensor, num_pixels: int, align_corners: bool = False) -> torch.Tensor:
    """Bilinear resizing after a map: `(pixels, entries)` -> `(num_pixels, entries)`."""
    size = (num_pixels, weights.shape[1])
    resized = nn.functional.interpolate(weights[None, None], size=size, mode="bilinear", align_corners=align_corners)
    return resized[0, 0]


# `inference_mode(False)`: what the caches keep may later take part in autograd


@lru_cache(maxsize=32)
@torch.inference_mode(False)
@torch.no_grad()
def resize_map(num_entries: int, num_pixels: int, device: torch.device) -> AxisMap:
    """Bilinear resizing along one axis, as `interpolate` does it with `align_corners=False`."""
    return AxisMap(resize_rows(torch.eye(num_entries), num_pixels).to(device))


class Windows(NamedTuple):
    """
    Overlapping windows along one axis.

    Args:
        starts (`tuple[int, ...]`): First pixel of each window.
        size (`int`): Pixels per window.
        num_entries (`int`): Grid entries per window.
        covered (`int`): Pixels that these cover: `size`, or more where it was padded to whole patches.
        image_size (`int`): Pixels of the image; the windows cover all of them.
        kept_size (`int`): Those that are left after padding is cut off.
    """

    starts: tuple[int, ...]
    size: int
    num_entries: int
    covered: int
    image_size: int
    kept_size: int


@lru_cache(maxsize=32)
@torch.inference_mode(False)
@torch.no_grad()
def window_map(windows: Windows, target_size: int, is_flipped: bool, device: torch.device) -> AxisMap:
    """
    From the grids of windows, laid end to end, to the pixels wanted: averages the windows where they overlap, resizes
    to `target_size` and mirrors back.
    """
    one_window = resize_rows(torch.eye(windows.num_entries), windows.covered)[: windows.size]
    # (num_windows, image_size, num_entries)
    weights = torch.zeros(len(windows.starts), windows.image_size, windows.num_entries)
    for window, start in zip(weights, windows.starts, strict=True):
        window[start : start + windows.size] = one_window
    # (num_windows, image_size, num_entries) -> (image_size, num_windows * num_entries)
    weights = weights.transpose(0, 1).flatten(1)
    weights = (weights / weights.sum(dim=1, keepdim=True))[: windows.kept_size]
    if target_size != windows.kept_size:
        weights = resize_rows(weights, target_size)
    return AxisMap((weights.flip(0) if is_flipped else weights).to(device))
