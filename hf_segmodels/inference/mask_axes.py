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

from .upsampled_argmax import Tiles, resize_rows, resize_weights, split_into_tiles
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


@dataclass(frozen=True, eq=False)
class MaskTiles(Tiles):
    """
    A [`MaskAxis`] split into tiles, and the tiles into *parts*, one for each window that a tile depends on. Parts of a
    tile follow each other. In parts with fewer entries than others, the last entry is repeated with weight 0.

    Args:
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

    first_part: torch.Tensor
    num_parts: torch.Tensor
    tile: torch.Tensor
    window: torch.Tensor
    support: torch.Tensor
    entry_weights: torch.Tensor
    pixel_weights: torch.Tensor
    is_direct: bool

    @classmethod
    def from_axis(cls, axis: MaskAxis) -> "MaskTiles":
        entries = axis.entries.cpu().numpy()
        num_predictions, num_entries = entries.shape
        # (size, num_windows * num_entries): from the concatenated entries of all windows to the pixels
        matrix = np.zeros((axis.size, len(axis.windows) * num_entries), dtype=np.float32)
        for number, window in enumerate(axis.windows):
            own = matrix[window.first : window.last, number * num_entries : (number + 1) * num_entries]
            own[:] = window.dense(window.first, window.last, num_predictions) @ entries
        lengths, position, _ = split_into_tiles(matrix)
        ends, size = lengths.cumsum(), int(lengths.max())

        tiles, windows, supports, entry_weights, pixel_weights = [], [], [], [], []
        for tile, (start, end) in enumerate(zip((ends - lengths).tolist(), ends.tolist(), strict=True)):
            for number, window in enumerate(axis.windows):
                if window.first >= end or window.last <= start:
                    continue
                block = window.dense(start, end, num_predictions)
                used = np.flatnonzero(block.any(axis=0))
                support = np.flatnonzero(entries[used].any(axis=0))
                tiles.append(tile)
                windows.append(number)
                supports.append(number * num_entries + support)
                entry_weights.append(entries[np.ix_(used, support)])
                pixel_weights.append(block[:, used])

        most_support = max(map(len, supports))
        padded_weights = _stack_padded(pixel_weights)
        is_pixel = np.arange(size) < lengths[tiles][:, None]
        is_direct = padded_weights.shape[2] == size and (padded_weights == np.eye(size) * is_pixel[..., None]).all()
        num_parts = np.bincount(tiles)
        arrays = {
            "position": position,
            "first_part": num_parts.cumsum() - num_parts,
            "num_parts": num_parts,
            "tile": np.array(tiles),
            "window": np.array(windows),
            "support": np.stack([np.pad(each, (0, most_support - len(each)), mode="edge") for each in supports]),
            "entry_weights": _stack_padded(entry_weights),
            "pixel_weights": padded_weights,
        }
        tensors = {name: torch.from_numpy(array).to(axis.entries.device) for name, array in arrays.items()}
        return cls(number=len(lengths), size=size, is_direct=bool(is_direct), **tensors)


def _stack_padded(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Stack matrices, padded with zeros to the largest shape."""
    padded = np.zeros((len(blocks), *np.max([block.shape for block in blocks], axis=0)), dtype=np.float32)
    for target, block in zip(padded, blocks, strict=True):
        target[: block.shape[0], : block.shape[1]] = block
    return padded


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
