# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
What lies between masks on a network's grid and the final label map, along one axis.

Masks become probabilities between two linear maps: from the entries of a window's grid to *prediction pixels*, where the
sigmoid is taken, and from these to the pixels wanted (cropping, averaging overlapping windows, resizing, flipping). Both
average, as in `separable_maps`, but they cannot be one.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch

from .separable_maps import Windows, cut_tiles, resize_map, resize_rows


class WindowPixels(NamedTuple):
    """
    Where the prediction pixels of one window go.

    Args:
        first (`int`): First pixel that depends on the window.
        taps (`torch.LongTensor` of shape `(num_pixels, num_taps)`): Prediction pixels that each of the pixels from
            `first` depends on.
        weights (`torch.Tensor` of shape `(num_pixels, num_taps)`): How much; zero for taps that are too many.
    """

    first: int
    taps: torch.Tensor
    weights: torch.Tensor

    @property
    def last(self) -> int:
        """The pixel behind the last one."""
        return self.first + len(self.taps)


@dataclass(frozen=True, eq=False)
class MaskAxis:
    """
    Both maps along one axis.

    Args:
        size (`int`): Number of pixels wanted.
        entries (`torch.Tensor` of shape `(num_predictions, num_entries)`): From a window's entries to its prediction
            pixels.
        windows (`tuple[WindowPixels, ...]`): From the prediction pixels of each window to the pixels wanted; over all
            windows, the weights of a pixel sum to one.
    """

    size: int
    entries: torch.Tensor
    windows: tuple[WindowPixels, ...]

    @cached_property
    def tiles(self) -> "MaskTiles":
        return MaskTiles.cut(self)


@dataclass(frozen=True, eq=False)
class MaskTiles:
    """
    A [`MaskAxis`] cut into tiles of neighboring pixels, and these into *parts*, one for each window that a tile depends
    on. Parts of a tile follow each other. Where a part has fewer entries than another, the last one is repeated with
    weight 0.

    Args:
        size (`int`): Pixels per tile.
        position (`torch.LongTensor` of shape `(num_pixels,)`): Index of each pixel in the tiles laid end to end.
        first_part, num_parts (`torch.LongTensor` of shape `(num_tiles,)`): Which parts are a tile's.
        tile, window (`torch.LongTensor` of shape `(num_parts,)`): Whose part it is, and of which window.
        support (`torch.LongTensor` of shape `(num_parts, num_support)`): The entries that the part depends on, among
            those of all windows laid end to end.
        entry_weights (`torch.Tensor` of shape `(num_parts, num_predictions, num_support)`): From these entries to the
            prediction pixels that the part depends on.
        pixel_weights (`torch.Tensor` of shape `(num_parts, size, num_predictions)`): From these to the tile's pixels.
        least_share, largest_share (`torch.Tensor` of shape `(num_parts,)`): Bounds of the part's weight in the tile's
            pixels.
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
    least_share: torch.Tensor
    largest_share: torch.Tensor
    is_direct: bool

    @property
    def number(self) -> int:
        return len(self.first_part)

    @classmethod
    def cut(cls, axis: MaskAxis) -> "MaskTiles":
        entries = axis.entries.cpu().numpy()
        num_entries = entries.shape[1]
        taps = [(window.first, window.taps.cpu().numpy(), window.weights.cpu().numpy()) for window in axis.windows]
        entries_of = [set(np.flatnonzero(weights).tolist()) for weights in entries]
        supports: list[set[int]] = [set() for _ in range(axis.size)]
        for number, (first, indices, weights) in enumerate(taps):
            for pixel, (row, row_weights) in enumerate(zip(indices, weights, strict=True), start=first):
                for tap in row[row_weights != 0]:
                    supports[pixel] |= {number * num_entries + entry for entry in entries_of[tap]}
        starts, _ = cut_tiles(supports)
        ends = [*starts[1:], axis.size]

        parts = []
        for tile, (start, end) in enumerate(zip(starts, ends, strict=True)):
            for number, (first, indices, weights) in enumerate(taps):
                low, high = max(start, first), min(end, first + len(indices))
                if low >= high:
                    continue
                # (pixels of the tile, prediction pixels of the window)
                block = np.zeros((end - start, len(entries)), dtype=weights.dtype)
                here = slice(low - first, high - first)
                pixels = np.arange(low - start, high - start)[:, None].repeat(indices.shape[1], 1)
                np.add.at(block, (pixels, indices[here]), weights[here])
                used = np.flatnonzero(block.any(axis=0))
                support = np.flatnonzero(entries[used].any(axis=0))
                parts.append((tile, number, support, entries[np.ix_(used, support)], block[:, used]))
        return cls._from_parts(parts, starts, axis, num_entries)

    @classmethod
    def _from_parts(cls, parts: list, starts: list[int], axis: MaskAxis, num_entries: int) -> "MaskTiles":
        lengths = np.diff([*starts, axis.size])
        size, number = int(lengths.max()), len(starts)
        num_support = max(len(support) for _, _, support, _, _ in parts)
        num_predictions = max(block.shape[1] for *_, block in parts)
        supports = np.zeros((len(parts), num_support), dtype=np.int64)
        entry_weights = np.zeros((len(parts), num_predictions, num_support), dtype=np.float32)
        pixel_weights = np.zeros((len(parts), size, num_predictions), dtype=np.float32)
        shares = np.zeros((2, len(parts)), dtype=np.float32)
        for index, (_, window, support, weights, block) in enumerate(parts):
            supports[index] = window * num_entries + np.pad(support, (0, num_support - len(support)), mode="edge")
            entry_weights[index, : weights.shape[0], : weights.shape[1]] = weights
            pixel_weights[index, : block.shape[0], : block.shape[1]] = block
            share = block.sum(axis=1)
            shares[:, index] = share.min(), share.max()
        tile = np.array([part[0] for part in parts])
        num_parts = np.bincount(tile, minlength=number)
        identities = np.arange(size)[None, :, None] == np.arange(num_predictions)[None, None]
        identities = identities & (np.arange(size)[None, :, None] < lengths[tile][:, None, None])
        is_direct = num_predictions == size and bool((pixel_weights == identities).all())

        def tensor(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(array).to(axis.entries.device)

        return cls(
            size=size,
            position=tensor(np.arange(axis.size) + np.repeat(np.arange(number) * size - starts, lengths)),
            first_part=tensor(num_parts.cumsum() - num_parts),
            num_parts=tensor(num_parts),
            tile=tensor(tile),
            window=tensor(np.array([part[1] for part in parts])),
            support=tensor(supports),
            entry_weights=tensor(entry_weights),
            pixel_weights=tensor(pixel_weights),
            least_share=tensor(shares[0]),
            largest_share=tensor(shares[1]),
            is_direct=is_direct,
        )


@lru_cache(maxsize=32)
@torch.inference_mode(False)
@torch.no_grad()
def mask_axis(
    windows: Windows, prediction_size: int | None, target_size: int, is_flipped: bool, device: torch.device
) -> MaskAxis:
    """
    From the grids of windows to the pixels wanted.

    Args:
        windows ([`Windows`]): The windows along this axis.
        prediction_size (`int`, *optional*): Prediction pixels of each window, which are then resized to the pixels that it
            covers; the latter themselves when not given.
        target_size (`int`): Pixels wanted.
        is_flipped (`bool`): Whether they are to be mirrored back.
    """
    prediction_size = windows.covered if prediction_size is None else prediction_size
    # (size, prediction_size)
    one_window = resize_map(prediction_size, windows.covered, torch.device("cpu")).weights[: windows.size]
    starts = torch.tensor(windows.starts)
    image = torch.arange(windows.image_size)[:, None]
    num_windows = ((image >= starts) & (image < starts + windows.size)).sum(dim=1)
    pixels = []
    for start in windows.starts:
        # (image_size, prediction_size)
        weights = torch.zeros(windows.image_size, prediction_size)
        covered = slice(start, start + windows.size)
        weights[covered] = one_window / num_windows[covered, None]
        weights = weights[: windows.kept_size]
        if target_size != windows.kept_size:
            weights = resize_rows(weights, target_size)
        weights = weights.flip(0) if is_flipped else weights
        used = weights.any(dim=1).nonzero()[:, 0].tolist()
        if not used:
            pixels.append(WindowPixels(0, torch.zeros(0, 1, dtype=torch.long), torch.zeros(0, 1)))
            continue
        weights = weights[used[0] : used[-1] + 1]
        num_taps = int((weights != 0).sum(dim=1).max())
        largest, taps = weights.topk(num_taps, dim=1)
        pixels.append(WindowPixels(used[0], taps, largest))
    return MaskAxis(
        size=target_size,
        entries=resize_map(windows.num_entries, prediction_size, device).weights,
        windows=tuple(WindowPixels(first, taps.to(device), weights.to(device)) for first, taps, weights in pixels),
    )
