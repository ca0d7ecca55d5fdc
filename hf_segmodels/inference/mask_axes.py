# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
The linear maps between masks on a network's grid and the label map, along one axis.

Masks become probabilities between two linear maps: from the entries of a window's grid to *prediction pixels*, where the
sigmoid is taken, and from prediction pixels to target pixels (cropping, averaging overlapping windows, resizing, flipping).
Both maps average, as in `upsampled_argmax`, but the sigmoid between them keeps them apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch

from .upsampled_argmax import pixel_supports, resize_rows, resize_weights, split_into_tiles
from .window_grid import WindowAxis


class WindowTaps(NamedTuple):
    """
    The target pixels that depend on one window, which follow each other.

    Args:
        first (`int`): The first of the pixels.
        taps (`torch.LongTensor` of shape `(num_pixels, num_taps)`): Prediction pixels that each pixel depends on.
        weights (`torch.Tensor` of shape `(num_pixels, num_taps)`): Weights of the prediction pixels; zero for surplus taps.
    """

    first: int
    taps: torch.Tensor
    weights: torch.Tensor

    @property
    def last(self) -> int:
        """The pixel after the last one."""
        return self.first + len(self.taps)

    def dense(self, first: int, last: int, num_predictions: int) -> np.ndarray:
        """Weights `(last - first, num_predictions)` of some of the pixels or of pixels next to them, float32."""
        block = torch.zeros(last - first, num_predictions)
        start, end = max(first, self.first), min(last, self.last)
        if start < end:
            own = slice(start - self.first, end - self.first)
            block[start - first : end - first].scatter_add_(1, self.taps[own].cpu(), self.weights[own].cpu())
        return block.numpy()


@dataclass(frozen=True, eq=False)
class MaskAxis:
    """
    Both maps along one axis.

    Args:
        size (`int`): Number of target pixels.
        entries (`torch.Tensor` of shape `(num_predictions, num_entries)`): From a window's entries to its prediction
            pixels.
        windows (`tuple[WindowTaps, ...]`): From the prediction pixels of each window to the target pixels; over all
            windows, the weights of a pixel sum to one.
    """

    size: int
    entries: torch.Tensor
    windows: tuple[WindowTaps, ...]

    @cached_property
    def tiles(self) -> "MaskTiles":
        return MaskTiles.from_axis(self)


class _Part(NamedTuple):
    """What a tile takes of one window; arrays as in [`MaskTiles`], without padding."""

    tile: int
    window: int
    support: np.ndarray
    entry_weights: np.ndarray
    pixel_weights: np.ndarray


@dataclass(frozen=True, eq=False)
class MaskTiles:
    """
    A [`MaskAxis`] split into tiles of neighboring pixels, and the tiles into *parts*, one for each window that a tile
    depends on. Parts of a tile follow each other. In parts with fewer entries than others, the last entry is repeated with
    weight 0.

    Args:
        size (`int`): Pixels per tile.
        position (`torch.LongTensor` of shape `(num_pixels,)`): Index of each pixel in the concatenated tiles.
        first_part, num_parts (`torch.LongTensor` of shape `(num_tiles,)`): First part, and number of parts, of a tile.
        tile, window (`torch.LongTensor` of shape `(num_parts,)`): Tile and window of a part.
        support (`torch.LongTensor` of shape `(num_parts, num_support)`): The entries that the part depends on, among the
            concatenated entries of all windows.
        entry_weights (`torch.Tensor` of shape `(num_parts, num_predictions, num_support)`): From these entries to the
            prediction pixels that the part depends on.
        pixel_weights (`torch.Tensor` of shape `(num_parts, size, num_predictions)`): From these prediction pixels to the
            tile's pixels.
        is_direct (`bool`): Whether each pixel is one prediction pixel of one window: `pixel_weights` are identities.
    """

    size: int
    position: torch.Tensor
    first_part: torch.Tensor
    num_parts: torch.Tensor
    tile: torch.Tensor
    window: torch.Tensor
    support: torch.Tensor
    entry_weights: torch.Tensor
    pixel_weights: torch.Tensor
    is_direct: bool

    @property
    def number(self) -> int:
        return len(self.first_part)

    @classmethod
    def from_axis(cls, axis: MaskAxis) -> "MaskTiles":
        entries = axis.entries.cpu().numpy()
        num_predictions, num_entries = entries.shape
        # (size, num_windows * num_entries): from the concatenated entries of all windows to the pixels
        matrix = np.zeros((axis.size, len(axis.windows) * num_entries), dtype=np.float32)
        for number, window in enumerate(axis.windows):
            own = matrix[window.first : window.last, number * num_entries : (number + 1) * num_entries]
            own[:] = window.dense(window.first, window.last, num_predictions) @ entries
        starts, _ = split_into_tiles(pixel_supports(matrix))

        parts = []
        for tile, (start, end) in enumerate(zip(starts, [*starts[1:], axis.size], strict=True)):
            for number, window in enumerate(axis.windows):
                if window.first >= end or window.last <= start:
                    continue
                block = window.dense(start, end, num_predictions)
                used = np.flatnonzero(block.any(axis=0))
                support = np.flatnonzero(entries[used].any(axis=0))
                weights = entries[np.ix_(used, support)]
                parts.append(_Part(tile, number, number * num_entries + support, weights, block[:, used]))
        return cls._from_parts(parts, np.diff([*starts, axis.size]), axis.entries.device)

    @classmethod
    def _from_parts(cls, parts: Sequence[_Part], lengths: np.ndarray, device: torch.device) -> "MaskTiles":
        """Pads the parts of tiles of the given lengths to arrays."""
        size, number = int(lengths.max()), len(lengths)
        num_predictions, num_support = (max(part.entry_weights.shape[axis] for part in parts) for axis in (0, 1))
        support = np.zeros((len(parts), num_support), dtype=np.int64)
        entry_weights = np.zeros((len(parts), num_predictions, num_support), dtype=np.float32)
        pixel_weights = np.zeros((len(parts), size, num_predictions), dtype=np.float32)
        for index, part in enumerate(parts):
            support[index] = np.pad(part.support, (0, num_support - len(part.support)), mode="edge")
            entry_weights[index, : part.entry_weights.shape[0], : part.entry_weights.shape[1]] = part.entry_weights
            pixel_weights[index, : part.pixel_weights.shape[0], : part.pixel_weights.shape[1]] = part.pixel_weights
        tile = np.array([part.tile for part in parts])
        num_parts = np.bincount(tile, minlength=number)
        is_pixel = np.arange(size) < lengths[tile][:, None]
        is_direct = num_predictions == size and bool((pixel_weights == np.eye(size) * is_pixel[..., None]).all())
        starts = lengths.cumsum() - lengths
        arrays = {
            "position": np.arange(lengths.sum()) + np.repeat(np.arange(number) * size - starts, lengths),
            "first_part": num_parts.cumsum() - num_parts,
            "num_parts": num_parts,
            "tile": tile,
            "window": np.array([part.window for part in parts]),
            "support": support,
            "entry_weights": entry_weights,
            "pixel_weights": pixel_weights,
        }
        tensors = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        return cls(size=size, is_direct=is_direct, **tensors)


@lru_cache(maxsize=32)
@torch.inference_mode(False)
@torch.no_grad()
def mask_axis(axis: WindowAxis, prediction_size: int | None, target_size: int, device: torch.device) -> MaskAxis:
    """
    The maps from the grids of windows to target pixels.

    Args:
        axis ([`WindowAxis`]): The windows along the axis.
        prediction_size (`int`, *optional*): Prediction pixels per window, which are then resized to the pixels that the
            window covers; defaults to `axis.padded_size`.
        target_size (`int`): Number of target pixels.
        device (`torch.device`): Device of the maps.
    """
    prediction_size = axis.padded_size if prediction_size is None else prediction_size
    # (window_size, prediction_size)
    one_window = resize_weights(prediction_size, axis.padded_size, torch.device("cpu")).matrix[: axis.window_size]
    num_windows = torch.zeros(axis.image_size, 1)
    for start in axis.starts:
        num_windows[start : start + axis.window_size] += 1
    windows = []
    for start in axis.starts:
        # (image_size, prediction_size)
        weights = torch.zeros(axis.image_size, prediction_size)
        own = slice(start, start + axis.window_size)
        weights[own] = one_window / num_windows[own]
        weights = weights[: axis.kept_size]
        if target_size != axis.kept_size:
            weights = resize_rows(weights, target_size)
        weights = weights.flip(0) if axis.is_flipped else weights
        used = weights.any(dim=1).nonzero()[:, 0].tolist()
        # a small target may have no pixel in a window
        first, last = (used[0], used[-1] + 1) if used else (0, 0)
        num_taps = max(1, int((weights != 0).sum(dim=1).max()))
        largest, taps = weights[first:last].topk(num_taps, dim=1)
        windows.append(WindowTaps(first, taps.to(device), largest.to(device)))
    return MaskAxis(target_size, resize_weights(axis.num_entries, prediction_size, device).matrix, tuple(windows))
