# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Label maps from patch-level scores without full-resolution scores.

Each score of a pixel is an average of the few grid entries that support the pixel. So in a tile of pixels, a class can
win only if its largest supporting entry is at least as large as the best of all classes' smallest ones. That leaves
one class in most tiles, whose pixels need no further work, and a few in the others, where only these are evaluated.
"""

import math

import torch

from .separable_maps import SeparableScores, resize_weights


# floats evaluated at a time: what stays in a core's cache is about twice as fast
_CHUNK = 1 << 19
# above this share of (tile, class) pairs, evaluating all classes is the faster way
_DENSE_SHARE = 0.2


def upsample_argmax(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """
    The labels of bilinearly upsampled logits: those of `interpolate(logits, size, mode="bilinear",
    align_corners=False).argmax(1)`, several times faster and in a fraction of the memory. Computed in float32; two
    classes whose scores are equal up to rounding may come out either way.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_labels, grid_height, grid_width)`): Scores.
        size (`tuple[int, int]`): Height and width wanted.

    Returns:
        `torch.Tensor` of shape `(batch_size, height, width)`, int64.
    """
    height, width = size
    if tuple(logits.shape[-2:]) == (height, width):
        return logits.argmax(dim=1)
    rows = resize_weights(logits.shape[-2], height, logits.device)
    columns = resize_weights(logits.shape[-1], width, logits.device)
    labels = torch.empty(logits.shape[0], height, width, dtype=torch.long, device=logits.device)
    for index, grid in enumerate(logits):
        labels[index] = separable_argmax(SeparableScores(grid, rows, columns))
    return labels


@torch.no_grad()
def separable_argmax(scores: SeparableScores) -> torch.Tensor:
    """
    The label map of one image: `scores.evaluate().argmax(0)` without holding its argument.

    Where scores are not finite, labels near them are undefined.

    Returns:
        `torch.Tensor` of shape `(height, width)`, int64.
    """
    grid = scores.grid.float()
    row_tiles, column_tiles = _Tiles(scores.rows), _Tiles(scores.columns)
    num_tiles = row_tiles.number * column_tiles.number
    # (K, grid_height, grid_width) -> (K, tile rows, grid_width) -> (K, tile rows, tile columns) -> (K, tiles)
    highest = grid[:, row_tiles.support].amax(2)[:, :, column_tiles.support].amax(3).flatten(1)
    lowest = grid[:, row_tiles.support].amin(2)[:, :, column_tiles.support].amin(3).flatten(1)
    rounding = 1e-5 * grid.abs().amax()
    # (K, tiles) -> (tiles, K)
    can_win = (highest >= lowest.amax(0) - rounding).T
    num_classes = can_win.sum(1)
    num_pairs = int(num_classes.sum())
    if num_pairs > _DENSE_SHARE * can_win.numel() or not bool((num_classes > 0).all()):
        return _evaluate_all(SeparableScores(grid, scores.rows, scores.columns))

    # The classes of tile t are `classes[first[t] : first[t] + num_classes[t]]`, in rising order.
    classes = can_win.nonzero()[:, 1]
    first = num_classes.cumsum(0) - num_classes
    num_pixels = row_tiles.size * column_tiles.size
    labels = classes[first][:, None].repeat(1, num_pixels)
    for tiles, slots in _by_number_of_classes(num_classes, num_pixels):
        # Tiles with fewer classes than slots repeat their last one: it cannot win over its first occurrence.
        slot = torch.minimum(torch.arange(slots, device=grid.device), num_classes[tiles, None] - 1)
        candidates = classes[first[tiles, None] + slot]
        tile_row, tile_column = tiles // column_tiles.number, tiles % column_tiles.number
        support_rows = row_tiles.support[tile_row][:, None, :, None]
        support_columns = column_tiles.support[tile_column][:, None, None, :]
        # (tiles, slots, support rows, support columns) -> (tiles, slots, support)
        values = grid[candidates[:, :, None, None], support_rows, support_columns].flatten(2)
        # (tiles, tile rows, support rows) x (tiles, tile columns, support columns) -> (tiles, pixels, support)
        weights = torch.einsum("tym,txn->tyxmn", row_tiles.weights[tile_row], column_tiles.weights[tile_column])
        weights = weights.reshape(len(tiles), num_pixels, -1)
        labels[tiles] = candidates.gather(1, (values @ weights.transpose(1, 2)).argmax(1))

    # (tiles, pixels) -> (tile rows, tile height, tile columns, tile width) -> (height, width)
    labels = labels.view(row_tiles.number, column_tiles.number, row_tiles.size, column_tiles.size).transpose(1, 2)
    labels = labels.reshape(num_tiles * num_pixels // (column_tiles.number * column_tiles.size), -1)
    return labels[: scores.rows.shape[0], : scores.columns.shape[0]]


class _Tiles:
    """One axis cut into tiles: the grid entries that support each tile, and their weights for each of its pixels."""

    def __init__(self, weights: torch.Tensor):
        num_pixels, num_entries = weights.shape
        # half of the distance between grid entries: then two entries support a tile where distances are powers of two
        self.size = min(max(4, 2 ** math.ceil(math.log2(num_pixels / num_entries)) // 2), 32)
        self.number = -(-num_pixels // self.size)
        pixels = torch.arange(self.number * self.size, device=weights.device).clamp(max=num_pixels - 1)
        # (num_pixels, num_entries) -> (number, size, num_entries)
        weights = weights[pixels].view(self.number, self.size, num_entries)
        is_support = (weights != 0).any(dim=1)
        most = int(is_support.sum(1).max())
        support = is_support.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
        is_support = is_support.gather(1, support)
        weights = weights.gather(2, support[:, None].expand(-1, self.size, -1))
        # tiles with less support repeat their first entry, with weight zero
        self.support = torch.where(is_support, support, support[:, :1])
        self.weights = weights * is_support[:, None]


def _by_number_of_classes(num_classes: torch.Tensor, num_pixels: int) -> list[tuple[torch.Tensor, int]]:
    """Tiles of similar numbers of classes together, in chunks, each with the number of slots that its tiles need."""
    most = int(num_classes.max())
    chunks, fewer = [], 1
    while fewer < most:
        slots = min(2 * fewer, most)
        tiles = ((num_classes > fewer) & (num_classes <= slots)).nonzero()[:, 0]
        chunks += [(part, slots) for part in tiles.split(max(1, _CHUNK // (slots * num_pixels))) if len(part) > 0]
        fewer = slots
    return chunks


def _evaluate_all(scores: SeparableScores) -> torch.Tensor:
    """The label map by evaluating every class, a band of rows at a time."""
    height, width = scores.rows.shape[0], scores.columns.shape[0]
    band = max(1, _CHUNK // (scores.grid.shape[0] * width))
    return torch.cat([scores.evaluate(top, top + band).argmax(0) for top in range(0, height, band)])
