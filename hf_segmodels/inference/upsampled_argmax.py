# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Label maps from patch-level scores without full-resolution scores.

Bilinear resizing, cropping, averaging overlapping windows and flipping are linear, act on rows and columns separately,
and average. So the scores of class `k` are `rows @ grid[k] @ columns.T` with two small matrices ([`AxisWeights`]) of
non-negative entries whose rows sum to one.

Each score of a pixel is then an average of the few grid entries that support the pixel. So in a tile of pixels, a class can
win only if its largest supporting entry reaches a lower bound of the best score. One class is left in most tiles, whose
pixels need no further work, and a few classes in the others, where only these are evaluated. Nothing is approximated: the
labels are those of upsampling every class.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial, reduce

import numpy as np
import torch
from torch import nn

from .window_grid import WindowAxis, tile_windows


# Scores evaluated at a time: as many as the caches of a CPU hold, or enough to fill a GPU.
_CHUNK_ON_CPU, _CHUNK = 1 << 20, 1 << 25
# Minimum number of classes evaluated: torch computes smaller matrix products in a way that rounds differently.
_MIN_SLOTS = 8
# Maximum number of a tile's entries whose best classes are averaged for a bound: where fine grids overlap there are hundreds.
_MAX_WINNERS = 36
# A tile grows to `_MAX_TILE` pixels while no more grid entries support it than support a single pixel, so that tiles
# follow the cells of the grid. It grows to `_MIN_TILE` pixels in any case, so that small factors do not give tiny tiles.
_MIN_TILE, _MAX_TILE = 8, 16


# Weights along an axis


@dataclass(frozen=True, eq=False)
class AxisWeights:
    """
    A linear map from grid entries to pixels along one axis.

    Args:
        matrix (`torch.Tensor` of shape `(num_pixels, num_entries)`): Non-negative weights with few non-zero entries per
            row, which sum to one.
    """

    matrix: torch.Tensor

    @property
    def size(self) -> int:
        """Number of pixels."""
        return self.matrix.shape[0]

    @cached_property
    def tiles(self) -> "AxisTiles":
        return AxisTiles.from_matrix(self.matrix)


@dataclass(frozen=True, eq=False)
class Tiles:
    """
    Tiles of neighboring pixels along one axis.

    Args:
        number (`int`): Number of tiles.
        size (`int`): Pixels per tile.
        position (`torch.LongTensor` of shape `(num_pixels,)`): Index of each pixel in the concatenated tiles.
    """

    number: int
    size: int
    position: torch.Tensor


@dataclass(frozen=True, eq=False)
class AxisTiles(Tiles):
    """
    [`AxisWeights`] split into tiles.

    Args:
        support (`torch.LongTensor` of shape `(num_tiles, num_support)`): The grid entries that a tile's pixels depend
            on; the last one is repeated in tiles with fewer entries.
        weights (`torch.Tensor` of shape `(num_tiles, tile_size, num_support)`): Their weights for each pixel; zero for
            repeated entries, and for the missing pixels of shorter tiles.
    """

    support: torch.Tensor
    weights: torch.Tensor

    @classmethod
    def from_matrix(cls, matrix: torch.Tensor) -> "AxisTiles":
        """Split a matrix `(num_pixels, num_entries)`."""
        values = matrix.cpu().numpy()
        lengths, position, tile_supports = split_into_tiles(values)
        num_support = max(map(len, tile_supports))
        tile_support = np.zeros((len(lengths), num_support), dtype=np.int64)
        tile_weights = np.zeros((len(lengths), lengths.max(), num_support), dtype=values.dtype)
        for tile, (rows, support) in enumerate(
            zip(np.split(values, lengths.cumsum()[:-1]), tile_supports, strict=True)
        ):
            # descending: a matrix product that adds its terms in this order rounds as `interpolate` does on CPUs
            order = sorted(support, reverse=True)
            tile_support[tile] = order + order[-1:] * (num_support - len(order))
            tile_weights[tile, : len(rows), : len(order)] = rows[:, order]
        tensors = (torch.from_numpy(array).to(matrix.device) for array in (position, tile_support, tile_weights))
        return cls(len(lengths), int(lengths.max()), *tensors)


def split_into_tiles(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[set[int]]]:
    """
    Split the pixels of a matrix `(num_pixels, num_entries)` into tiles.

    Returns:
        Number of pixels of each tile, index of each pixel in the concatenated tiles, and the entries that the pixels of
        each tile depend on.
    """
    pixels, entries = matrix.nonzero()
    supports = [set(part.tolist()) for part in np.split(entries, np.searchsorted(pixels, range(1, len(matrix))))]
    smallest = max(map(len, supports))
    starts, tile_supports = [0], [supports[0]]
    for pixel, support in enumerate(supports):
        length, union = pixel - starts[-1], tile_supports[-1] | support
        if length >= _MAX_TILE or (length >= _MIN_TILE and len(union) > smallest):
            starts.append(pixel)
            tile_supports.append(support)
        else:
            tile_supports[-1] = union
    lengths = np.diff([*starts, len(matrix)])
    offsets = np.arange(len(starts)) * lengths.max() - starts
    return lengths, np.arange(len(matrix)) + np.repeat(offsets, lengths), tile_supports


def resize_rows(matrix: torch.Tensor, num_pixels: int, align_corners: bool = False) -> torch.Tensor:
    """Bilinear resizing of the rows of a matrix: `(pixels, entries)` -> `(num_pixels, entries)`."""
    size = (num_pixels, matrix.shape[1])
    resized = nn.functional.interpolate(matrix[None, None], size=size, mode="bilinear", align_corners=align_corners)
    return resized[0, 0]


# `inference_mode(False)`: cached tensors may take part in autograd later


@lru_cache(maxsize=32)
@torch.inference_mode(False)
@torch.no_grad()
def resize_weights(num_entries: int, num_pixels: int, device: torch.device) -> AxisWeights:
    """Bilinear resizing along one axis, as by `interpolate` with `align_corners=False`."""
    return AxisWeights(resize_rows(torch.eye(num_entries), num_pixels).to(device))


@lru_cache(maxsize=32)
@torch.inference_mode(False)
@torch.no_grad()
def window_weights(axis: WindowAxis, target_size: int, device: torch.device) -> AxisWeights:
    """
    From the concatenated grids of windows to target pixels: average the windows where they overlap, resize to
    `target_size` and mirror back.
    """
    one_window = resize_rows(torch.eye(axis.num_entries), axis.padded_size)[: axis.window_size]
    # (num_windows, image_size, num_entries)
    matrix = torch.zeros(len(axis.starts), axis.image_size, axis.num_entries)
    for window, start in zip(matrix, axis.starts, strict=True):
        window[start : start + axis.window_size] = one_window
    # (num_windows, image_size, num_entries) -> (image_size, num_windows * num_entries)
    matrix = matrix.transpose(0, 1).flatten(1)
    matrix = (matrix / matrix.sum(dim=1, keepdim=True))[: axis.kept_size]
    if target_size != axis.kept_size:
        matrix = resize_rows(matrix, target_size)
    return AxisWeights((matrix.flip(0) if axis.is_flipped else matrix).to(device))


# Scores and their labels


@dataclass(frozen=True, eq=False)
class UpsampledScores:
    """
    [`LazyScores`] that are `rows @ grid[k] @ columns.T` for each class `k`.

    Args:
        grid (`torch.Tensor` of shape `(num_labels, grid_height, grid_width)`): Patch-level scores.
        rows ([`AxisWeights`] of `height` pixels from `grid_height` entries): Weights of the grid's rows.
        columns ([`AxisWeights`] of `width` pixels from `grid_width` entries): Weights of the grid's columns.
    """

    grid: torch.Tensor
    rows: AxisWeights
    columns: AxisWeights

    @classmethod
    def from_windows(
        cls, grids: torch.Tensor, axes: tuple[WindowAxis, WindowAxis], target_sizes: Sequence[tuple[int, int]]
    ) -> list["UpsampledScores"]:
        """
        Average the logits of overlapping windows.

        Args:
            grids (`torch.Tensor` of shape `(batch_size, window rows, window columns, num_labels, grid_height,
                grid_width)`): Logits of the windows.
            axes (pair of [`WindowAxis`]): The windows along rows and columns.
            target_sizes (`list[tuple[int, int]]`): Target `(height, width)` of each image.
        """
        return [
            cls(grid, *(window_weights(axis, size, grid.device) for axis, size in zip(axes, target_size, strict=True)))
            for grid, target_size in zip(tile_windows(grids), target_sizes, strict=True)
        ]

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.grid.shape[0], self.rows.size, self.columns.size

    def evaluate(self, top: int = 0, bottom: int | None = None) -> torch.Tensor:
        rows = self.rows.matrix[top:bottom]
        used = (rows != 0).any(dim=0).nonzero()[:, 0]
        with torch.autocast(self.grid.device.type, enabled=False):
            # (rows, used) @ (num_labels, used, grid_width) @ (grid_width, width) -> (num_labels, rows, width)
            return rows[:, used] @ finite(self.grid[:, used]) @ self.columns.matrix.T

    @torch.no_grad()
    def argmax(self) -> torch.Tensor:
        """
        The label map `(height, width)`, int64: `evaluate().argmax(0)` without full-resolution scores.

        Equal scores give the lower class. Either class may win where scores differ by rounding only; for float32 logits
        resized to 128 pixels and more on x86 CPUs, scores are rounded as by `interpolate`. `-inf` never wins, `inf`
        counts as a large number, and NaN wins in the tiles (16 x 16 pixels at most) that it supports, as in
        `torch.argmax`.
        """
        with torch.autocast(self.grid.device.type, enabled=False):
            # (K, h, w) -> (h, w, K)
            grid = finite(self.grid.permute(1, 2, 0)).contiguous()
            rows, columns = self.rows.tiles, self.columns.tiles
            evaluate = partial(_evaluate, grid, rows, columns)
            has_nan = bool(grid.isnan().any())
            return label_tiles(_can_win(grid, rows, columns), rows, columns, evaluate, _MIN_SLOTS, has_nan)


def finite(grid: torch.Tensor) -> torch.Tensor:
    """Convert to float32, with infinities replaced by large numbers, whose averages are finite."""
    largest = torch.finfo(torch.float32).max / 2
    return grid.float().clamp(-largest, largest)


def upsample_argmax(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """
    Labels of bilinearly resized logits: `interpolate(logits, size, mode="bilinear", align_corners=False).argmax(1)` many
    times faster and in a fraction of the memory. Half precision is computed in float32. See
    [`~UpsampledScores.argmax`] for ties and for scores that are not finite.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_labels, grid_height, grid_width)`): Patch-level scores.
        size (`tuple[int, int]`): Target height and width.

    Returns:
        `torch.Tensor` of shape `(batch_size, height, width)`, int64.

    Raises:
        ValueError: if `logits` does not have four dimensions, or if `logits` or `size` is empty.
    """
    height, width = (int(side) for side in size)
    if logits.ndim != 4 or 0 in logits.shape[1:] or height < 1 or width < 1:
        raise ValueError(
            "Expected logits of shape (batch_size, num_labels, height, width) with at least one label and pixel, and a "
            f"size of at least (1, 1); got {tuple(logits.shape)} and {tuple(size)}."
        )
    if tuple(logits.shape[-2:]) == (height, width):
        return logits.argmax(dim=1)
    rows = resize_weights(logits.shape[-2], height, logits.device)
    columns = resize_weights(logits.shape[-1], width, logits.device)
    labels = torch.empty(logits.shape[0], height, width, dtype=torch.long, device=logits.device)
    for index, grid in enumerate(logits):
        labels[index] = UpsampledScores(grid, rows, columns).argmax()
    return labels


def label_tiles(
    can_win: torch.Tensor,
    rows: Tiles,
    columns: Tiles,
    evaluate: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    min_slots: int = 1,
    has_nan: bool = False,
    extra_floats: int = 0,
) -> torch.Tensor:
    """
    Label map from the classes that can win in each tile. Tiles in which only one class can win are not evaluated.

    Args:
        can_win (`torch.BoolTensor` of shape `(tiles, num_labels)`): Which classes may be the label of a pixel of a tile;
            at least one per tile. Tiles are in row-major order.
        rows, columns ([`Tiles`]): The tiles along both axes.
        evaluate: Maps indices of tiles `(tiles,)` and candidate classes `(tiles, slots)` to scores `(n, slots, pixels)`
            with `n * pixels` pixels, those of the first tile first.
        min_slots (`int`, *optional*, defaults to 1): Minimum number of classes evaluated.
        has_nan (`bool`, *optional*, defaults to `False`): Whether scores can be NaN.
        extra_floats (`int`, *optional*, defaults to 0): Floats per pixel that `evaluate` holds in addition to the scores.

    Returns:
        `torch.Tensor` of shape `(height, width)`, int64.
    """
    # The classes of tile t are `classes[first[t] : first[t] + num_classes[t]]`, in ascending order.
    device = can_win.device
    num_classes = can_win.sum(1)
    classes = can_win.nonzero()[:, 1]
    first = num_classes.cumsum(0) - num_classes
    num_pixels = rows.size * columns.size
    labels = classes[first, None].repeat(1, num_pixels)

    chunk = _CHUNK_ON_CPU if device.type == "cpu" else _CHUNK
    # tiles with similar numbers of classes together, without those that have a single class
    descending, order = num_classes.sort(descending=True)
    slots_of = descending[descending > 1].tolist()
    start = 0
    while start < len(slots_of):
        slots = max(slots_of[start], min_slots)
        end = min(start + max(1, chunk // ((slots + extra_floats) * num_pixels)), len(slots_of))
        tiles = order[start:end]
        # Tiles with fewer classes than slots repeat their last class, which cannot win over its first occurrence.
        slot = torch.arange(slots, device=device).minimum(num_classes[tiles, None] - 1)
        candidates = classes[first[tiles, None] + slot]
        scores = evaluate(tiles, candidates)
        winners = _argmax(scores, has_nan).view(end - start, num_pixels)
        labels[tiles] = candidates.gather(1, winners)
        start = end

    # (tiles, pixels) -> (tile rows, tile height, tile columns, tile width) -> (height, width)
    labels = labels.view(rows.number, columns.number, rows.size, columns.size).transpose(1, 2)
    labels = labels.reshape(rows.number * rows.size, columns.number * columns.size)
    # `gather` is twice as fast along rows as `index_select`
    labels = labels.index_select(0, rows.position)
    return labels.gather(1, columns.position.expand(len(labels), -1))


def bounds(
    grid: torch.Tensor, row_support: torch.Tensor, column_support: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Largest and smallest entry of a grid `(h, w, K)` among the rows and columns `(tiles, num_support)` that each tile
    depends on: two tensors `(tile rows, tile columns, K)`.
    """
    highest, lowest = (
        reduce(
            combine,
            (
                reduce(combine, (grid.index_select(0, index) for index in row_support.unbind(1))).index_select(1, index)
                for index in column_support.unbind(1)
            ),
        )
        for combine in (torch.maximum, torch.minimum)
    )
    return highest, lowest


def _can_win(grid: torch.Tensor, rows: AxisTiles, columns: AxisTiles) -> torch.Tensor:
    """Which classes may be the label of a pixel of a tile: `(h, w, K)` -> `(tiles, K)`, bool."""
    width = grid.shape[1]
    # (h, w, K) -> (tile rows, tile columns, K) -> (tiles, K)
    highest, lowest = (bound.flatten(0, 1) for bound in bounds(grid, rows.support, columns.support))
    # the rounding error of an average is relative to its largest entry
    margin = torch.maximum(highest.abs(), lowest.abs()) * (16 * torch.finfo(grid.dtype).eps)
    bound = (lowest - margin).amax(dim=1)

    # (tile rows, 1, support rows, 1) + (tile columns, 1, support columns) -> (tiles, support)
    entries = (rows.support[:, None, :, None] * width + columns.support[:, None, :]).flatten(2).flatten(0, 1)
    winners = grid.argmax(dim=2).flatten()
    chunk = (_CHUNK_ON_CPU if grid.device.type == "cpu" else _CHUNK) // (_MAX_WINNERS * entries.shape[1])
    average = torch.cat([_lowest_average(grid, winners, part) for part in entries.split(max(1, chunk))])
    bound = torch.maximum(bound, average - margin.amax(dim=1))

    # not `>=`: NaN can always win
    return ~(highest + margin < bound[:, None])


def _lowest_average(grid: torch.Tensor, winners: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
    """
    Lower bounds `(tiles,)` of the best score in tiles, from an average of classes: the best score is never below it.

    Where classes meet, each class is low at the other's entries and gives a low bound of its own. The average of the classes
    that win at some entry is low nowhere. `winners (h * w,)` are the best classes of the entries of the grid `(h, w, K)`,
    `entries (tiles, support)` those that the tiles depend on.
    """
    step = -(-entries.shape[1] // _MAX_WINNERS)
    winner = winners[entries[:, ::step]]
    # each class counts once
    weight = (winner[:, :, None] == winner[:, None]).sum(dim=2).reciprocal()
    weight = weight / weight.sum(dim=1, keepdim=True)
    # (tiles, winners, support)
    values = grid.flatten()[entries[:, None] * grid.shape[2] + winner[:, :, None]]
    return (weight[:, :, None] * values).sum(dim=1).amin(dim=1)


def _evaluate(
    grid: torch.Tensor, rows: AxisTiles, columns: AxisTiles, tiles: torch.Tensor, classes: torch.Tensor
) -> torch.Tensor:
    """Scores `(tiles * tile height, slots, tile width)` of the `classes` `(tiles, slots)` in some `tiles`."""
    width, num_classes = grid.shape[1:]
    tile_row, tile_column = tiles // columns.number, tiles % columns.number
    # (tiles, support rows, slots, support columns)
    entries = rows.support[tile_row][:, :, None, None] * width + columns.support[tile_column][:, None, None]
    values = grid.flatten()[entries * num_classes + classes[:, None, :, None]]
    # along rows: (tiles, support rows * slots, support columns) @ (tiles, support columns, tile width)
    scores = values.flatten(1, 2) @ columns.weights[tile_column].transpose(1, 2)
    # along columns: (tiles, tile height, support rows) @ (tiles, support rows, slots * tile width)
    scores = rows.weights[tile_row] @ scores.view(len(tiles), rows.support.shape[1], -1)
    return scores.view(len(tiles) * rows.size, classes.shape[1], columns.size)


def _argmax(scores: torch.Tensor, has_nan: bool) -> torch.Tensor:
    """`scores.argmax(1)` of scores `(n, slots, pixels)`."""
    n, slots, pixels = scores.shape
    if has_nan or scores.device.type != "cpu":
        return scores.argmax(dim=1)
    # On CPUs, max pooling of a channels-last tensor works on vectors of pixels: ten times as fast as `argmax`.
    images = scores.as_strided((n, pixels, slots, 1), (slots * pixels, 1, pixels, pixels))
    return nn.functional.max_pool2d(images, (slots, 1), return_indices=True)[1].view(n, pixels)
