# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Label maps from patch-level scores without full-resolution scores.

Each score of a pixel is an average of the few grid entries that support the pixel. So in a tile of pixels, a class can
win only if its largest supporting entry reaches a bound that the best score is never below. That leaves one class in
most tiles, whose pixels need no further work, and a few in the others, where only these are evaluated. Nothing is
approximated: the labels are those of upsampling every class.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import torch
from torch import nn

from .separable_maps import AxisMap, AxisTiles, resize_map


# Scores evaluated at a time: what the caches of a CPU hold; enough to fill a GPU.
_CHUNK_ON_CPU, _CHUNK = 1 << 20, 1 << 25
# Classes evaluated at least: smaller matrix products take a path in torch that rounds otherwise.
_MIN_SLOTS = 8
# Entries of a tile whose best classes are averaged for a bound, at most: where fine grids overlap there are hundreds.
_MAX_WINNERS = 36


class Scores(Protocol):
    """Scores of one image, not yet evaluated at full resolution; [`SeparableScores`] says what is what."""

    @property
    def shape(self) -> tuple[int, int, int]: ...
    def evaluate(self, top: int = 0, bottom: int | None = None) -> torch.Tensor: ...
    def argmax(self) -> torch.Tensor: ...


@dataclass(frozen=True, eq=False)
class SeparableScores:
    """
    Scores of one image, not yet evaluated at full resolution: `rows @ grid[k] @ columns.T` for each class `k`.

    Args:
        grid (`torch.Tensor` of shape `(num_labels, grid_height, grid_width)`): Patch-level scores.
        rows ([`AxisMap`] of `height` pixels from `grid_height` entries): Weights of the grid's rows.
        columns ([`AxisMap`] of `width` pixels from `grid_width` entries): The same for columns.
    """

    grid: torch.Tensor
    rows: AxisMap
    columns: AxisMap

    @property
    def shape(self) -> tuple[int, int, int]:
        """`(num_labels, height, width)`"""
        return self.grid.shape[0], self.rows.size, self.columns.size

    def evaluate(self, top: int = 0, bottom: int | None = None) -> torch.Tensor:
        """The scores `(num_labels, bottom - top, width)`, float32, of a band of rows, by default of all rows."""
        rows = self.rows.weights[top:bottom]
        used = (rows != 0).any(dim=0).nonzero()[:, 0]
        with torch.autocast(self.grid.device.type, enabled=False):
            # (rows, used) @ (num_labels, used, grid_width) @ (grid_width, width) -> (num_labels, rows, width)
            return rows[:, used] @ finite(self.grid[:, used]) @ self.columns.weights.T

    @torch.no_grad()
    def argmax(self) -> torch.Tensor:
        """
        The label map: `evaluate().argmax(0)` without holding its argument.

        Equal scores give the lower class. Scores that differ by rounding alone may come out either way; for float32
        logits resized to 128 pixels and more on x86 CPUs, rounding is that of `interpolate`. `-inf` never wins, `inf`
        counts as a large number, and NaN wins in the tiles (16 x 16 pixels at most) that it supports, as it does in
        `torch.argmax`.

        Returns:
            `torch.Tensor` of shape `(height, width)`, int64.
        """
        with torch.autocast(self.grid.device.type, enabled=False):
            # (K, h, w) -> (h, w, K)
            grid = finite(self.grid.permute(1, 2, 0)).contiguous()
            return _search(grid, self.rows.tiles, self.columns.tiles)


def finite(grid: torch.Tensor) -> torch.Tensor:
    """In float32, with numbers instead of infinities: large ones, whose averages are numbers too."""
    largest = torch.finfo(torch.float32).max / 2
    return grid.float().clamp(-largest, largest)


def upsample_argmax(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """
    The labels of bilinearly resized logits: `interpolate(logits, size, mode="bilinear",
    align_corners=False).argmax(1)` many times faster and in a fraction of the memory. Half precision is computed in
    float32. See [`~SeparableScores.argmax`] for ties and for scores that are not finite.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_labels, grid_height, grid_width)`): Scores.
        size (`tuple[int, int]`): Height and width wanted.

    Returns:
        `torch.Tensor` of shape `(batch_size, height, width)`, int64.

    Raises:
        ValueError: if the logits or the size are empty or of another shape.
    """
    height, width = (int(side) for side in size)
    if logits.ndim != 4 or 0 in logits.shape[1:] or height < 1 or width < 1:
        raise ValueError(
            "Expected logits of shape (batch_size, num_labels, height, width) with at least one label and pixel, and a "
            f"size of at least (1, 1); got {tuple(logits.shape)} and {tuple(size)}."
        )
    if tuple(logits.shape[-2:]) == (height, width):
        return logits.argmax(dim=1)
    rows = resize_map(logits.shape[-2], height, logits.device)
    columns = resize_map(logits.shape[-1], width, logits.device)
    labels = torch.empty(logits.shape[0], height, width, dtype=torch.long, device=logits.device)
    for index, grid in enumerate(logits):
        labels[index] = SeparableScores(grid, rows, columns).argmax()
    return labels


def _search(grid: torch.Tensor, rows: AxisTiles, columns: AxisTiles) -> torch.Tensor:
    """Labels `(height, width)` of a float32 grid `(h, w, K)` without infinities."""

    def evaluate(tiles: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        return _evaluate(grid, rows, columns, tiles, classes)

    return label_tiles(_can_win(grid, rows, columns), rows, columns, evaluate, _MIN_SLOTS, bool(grid.isnan().any()))


class Tiles(Protocol):
    """Tiles along one axis: their number, the pixels of each, and where each pixel is in them, laid end to end."""

    @property
    def number(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def position(self) -> torch.Tensor: ...


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
    The label map, where only the classes that can win in a tile are evaluated, and none where only one can.

    Args:
        can_win (`torch.BoolTensor` of shape `(tiles, num_labels)`): Which classes may be the label of a pixel of a tile;
            at least one.
        rows, columns ([`Tiles`]): The tiles; those of a row follow each other.
        evaluate: Maps some tiles, and `classes (tiles, slots)` of each, to scores whose shape is `(n, slots, pixels)`
            where all but the slots, laid end to end, are the pixels of the tiles.
        min_slots (`int`): Classes evaluated at least.
        has_nan (`bool`): Whether scores can be NaN.
        extra_floats (`int`): Floats for each pixel that `evaluate` holds beside the scores.

    Returns:
        `torch.Tensor` of shape `(height, width)`, int64.
    """
    # The classes of tile t are `classes[first[t] : first[t] + num_classes[t]]`, in rising order.
    device = can_win.device
    num_classes = can_win.sum(1)
    classes = can_win.nonzero()[:, 1]
    first = num_classes.cumsum(0) - num_classes
    num_pixels = rows.size * columns.size
    labels = classes[first, None].repeat(1, num_pixels)

    chunk = _CHUNK_ON_CPU if device.type == "cpu" else _CHUNK
    # tiles with similar numbers of classes together, those with one class left out
    descending, order = num_classes.sort(descending=True)
    slots_of = descending[descending > 1].tolist()
    start = 0
    while start < len(slots_of):
        slots = max(slots_of[start], min_slots)
        end = min(start + max(1, chunk // ((slots + extra_floats) * num_pixels)), len(slots_of))
        tiles = order[start:end]
        # Tiles with fewer classes than slots repeat their last one: it cannot win over its first occurrence.
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
    Largest and smallest entry of a grid `(h, w, K)` among those that tiles depend on.

    Args:
        row_support, column_support (`torch.LongTensor` of shape `(tiles, num_support)`): Rows and columns of the entries.

    Returns:
        Two `torch.Tensor` of shape `(tile rows, tile columns, K)`.
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
    # rounding of an average is relative to the largest entry in it
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
    Bounds of the best score in tiles from below, which hold where classes meet: each of these is low at the other's entries,
    but the average of the classes that win at some entry is low nowhere, and the best score is never below an average.

    Args:
        winners (`torch.LongTensor` of shape `(h * w,)`): The best class of each entry of the grid `(h, w, K)`.
        entries (`torch.LongTensor` of shape `(tiles, support)`): The entries that the tiles depend on.

    Returns:
        `torch.Tensor` of shape `(tiles,)`.
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
