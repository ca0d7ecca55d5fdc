# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Label maps from queries with classes and masks, without masks or scores at full resolution.

The score of class `k` in a pixel is the sum over queries of the query's probability of `k` times the sigmoid of the
query's upsampled mask. The sigmoid is monotonic and an upsampled mask is an average of grid entries. So the entries that a
tile of pixels depends on bound each query's sigmoid there and, together with the class probabilities, each class's score.
Classes that cannot have the best score in a tile are left out. Nothing is approximated.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..configuration_utils import as_pair
from .mask_axes import MaskAxis, MaskTiles, WindowTaps, mask_axis
from .upsampled_argmax import bounds, finite, label_tiles
from .window_grid import WindowAxis, tile_windows


# floats of masks held at a time
_BAND = 1 << 22


@dataclass(frozen=True, eq=False)
class MaskScores:
    """
    [`LazyScores`] of queries with class probabilities and masks.

    Args:
        masks (`torch.Tensor` of shape `(num_queries, rows * h, columns * w)`): Mask logits of the windows, side by side.
        probabilities (`torch.Tensor` of shape `(rows, columns, num_queries, num_labels)`): Class probabilities of each
            query in each window.
        rows, columns ([`MaskAxis`]): From the windows' grids to target pixels.
    """

    masks: torch.Tensor
    probabilities: torch.Tensor
    rows: MaskAxis
    columns: MaskAxis

    @classmethod
    def from_windows(
        cls,
        class_logits: torch.Tensor,
        mask_logits: torch.Tensor,
        axes: tuple[WindowAxis, WindowAxis],
        target_sizes: Sequence[tuple[int, int]],
        prediction_size: tuple[int, int] | None = None,
    ) -> list["MaskScores"]:
        """
        Average the scores of overlapping windows.

        Args:
            class_logits (`torch.Tensor` of shape `(batch_size, window rows, window columns, num_queries, num_labels +
                1)`): Class logits of the queries, "no object" last.
            mask_logits (`torch.Tensor` of shape `(batch_size, window rows, window columns, num_queries, h, w)`): Mask
                logits of the queries.
            axes (pair of [`WindowAxis`]): The windows along rows and columns.
            target_sizes (`list[tuple[int, int]]`): Target `(height, width)` of each image.
            prediction_size (`tuple[int, int]`, *optional*): Height and width of a window at which masks become
                probabilities; defaults to the size that its grid covers.
        """
        probabilities = class_logits.softmax(dim=-1)[..., :-1]
        prediction = (None, None) if prediction_size is None else prediction_size
        return [
            cls(
                masks,
                classes,
                *(mask_axis(*maps, mask_logits.device) for maps in zip(axes, prediction, size, strict=True)),
            )
            for masks, classes, size in zip(tile_windows(mask_logits), probabilities, target_sizes, strict=True)
        ]

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.probabilities.shape[-1], self.rows.size, self.columns.size

    def evaluate(self, top: int = 0, bottom: int | None = None) -> torch.Tensor:
        num_labels, height, width = self.shape
        bottom = height if bottom is None else min(bottom, height)
        scores = self.masks.new_zeros(num_labels, max(bottom - top, 0), width)
        band = max(1, _BAND // (len(self.masks) * len(self.columns.entries)))
        with torch.autocast(self.masks.device.type, enabled=False):
            for start in range(top, bottom, band):
                self._add_band(scores[:, start - top :], start, min(start + band, bottom))
        return scores

    def _add_band(self, scores: torch.Tensor, top: int, bottom: int) -> None:
        """Add the scores of a band of rows to `scores (num_labels, at least bottom - top, width)`."""
        grid_height, grid_width = self.rows.entries.shape[1], self.columns.entries.shape[1]
        for row, rows in enumerate(self.rows.windows):
            start, end = max(top, rows.first), min(bottom, rows.last)
            if start >= end:
                continue
            weights = rows.weights[start - rows.first : end - rows.first]
            used, taps = rows.taps[start - rows.first : end - rows.first].unique(return_inverse=True)
            band = WindowTaps(0, taps, weights)
            for column, columns in enumerate(self.columns.windows):
                grid = self.masks[:, row * grid_height :][:, :grid_height, column * grid_width :][..., :grid_width]
                # (used, h) @ (num_queries, h, w) @ (w, num_predictions) -> (num_queries, used, num_predictions)
                masks = (self.rows.entries[used] @ finite(grid) @ self.columns.entries.T).sigmoid_()
                # (num_labels, num_queries) @ (num_queries, used * num_predictions)
                predictions = self.probabilities[row, column].T @ masks.flatten(1)
                predictions = predictions.unflatten(1, masks.shape[1:])
                predictions = _apply(_apply(predictions, band, 1), columns, 2)
                scores[:, start - top : end - top, columns.first : columns.last] += predictions

    @torch.no_grad()
    def argmax(self) -> torch.Tensor:
        """
        The label map `(height, width)`, int64: `evaluate().argmax(0)` without full-resolution scores.

        Equal scores give the lower class. Either class may win where scores differ by rounding only.
        """
        with torch.autocast(self.masks.device.type, enabled=False):
            # (num_queries, H, W) -> (H, W, num_queries)
            grid = finite(self.masks.permute(1, 2, 0)).contiguous()
            return _Search(grid, self.probabilities.float(), self.rows.tiles, self.columns.tiles).labels()


def mask_argmax(
    class_queries_logits: torch.Tensor,
    masks_queries_logits: torch.Tensor,
    size: tuple[int, int],
    prediction_size: tuple[int, int] | None = None,
) -> torch.Tensor:
    """
    Labels of queries with classes and masks: `einsum("bqk,bqhw->bkhw", class_queries_logits.softmax(-1)[..., :-1],
    interpolate(masks_queries_logits, size).sigmoid()).argmax(1)` many times faster and in a fraction of the memory. Half
    precision is computed in float32. See [`~MaskScores.argmax`] for ties.

    Args:
        class_queries_logits (`torch.Tensor` of shape `(batch_size, num_queries, num_labels + 1)`): Class logits of the
            queries, "no object" last.
        masks_queries_logits (`torch.Tensor` of shape `(batch_size, num_queries, h, w)`): Masks before the sigmoid.
        size (`tuple[int, int]`): Target height and width.
        prediction_size (`tuple[int, int]`, *optional*): Height and width at which masks become probabilities; scores are
            then resized to `size`. Defaults to `size`.

    Returns:
        `torch.Tensor` of shape `(batch_size, height, width)`, int64.

    Raises:
        ValueError: if the shapes of the logits do not match, or if a size is empty or not a pair.
    """
    height, width = (int(side) for side in size)
    shapes = tuple(class_queries_logits.shape), tuple(masks_queries_logits.shape)
    if len(shapes[0]) != 3 or len(shapes[1]) != 4 or shapes[0][:2] != shapes[1][:2] or 0 in shapes[1][1:]:
        raise ValueError(
            "Expected class logits of shape (batch_size, num_queries, num_labels + 1) and mask logits of shape "
            f"(batch_size, num_queries, height, width), got {shapes[0]} and {shapes[1]}."
        )
    if shapes[0][2] < 2 or height < 1 or width < 1:
        raise ValueError(
            f'Expected at least one class in addition to "no object" and a size of at least (1, 1), got {shapes[0][2]} class '
            f"scores and {tuple(size)}."
        )
    if prediction_size is not None:
        prediction_size = as_pair(prediction_size, "prediction_size")
        if 0 in prediction_size:
            raise ValueError(f"`prediction_size` must be at least (1, 1), got {prediction_size}.")
    rows, columns = (
        WindowAxis((0,), pixels, entries, pixels, pixels, pixels)
        for pixels, entries in zip((height, width), shapes[1][2:], strict=True)
    )
    # one window: (batch_size, ...) -> (batch_size, 1, 1, ...)
    classes, masks = (logits[:, None, None].float() for logits in (class_queries_logits, masks_queries_logits))
    scores = MaskScores.from_windows(classes, masks, (rows, columns), [(height, width)] * len(masks), prediction_size)
    labels = torch.empty(len(masks), height, width, dtype=torch.long, device=masks.device)
    for index, image_scores in enumerate(scores):
        labels[index] = image_scores.argmax()
    return labels


def _apply(predictions: torch.Tensor, window: WindowTaps, dim: int) -> torch.Tensor:
    """Map prediction pixels to target pixels along a dimension."""
    shape = [1] * predictions.ndim
    shape[dim] = -1
    terms = [
        predictions.index_select(dim, taps) * weights.view(shape)
        for taps, weights in zip(window.taps.unbind(1), window.weights.unbind(1), strict=True)
    ]
    return sum(terms[1:], terms[0])


class _Search:
    """
    Search for the labels of `grid (H, W, num_queries)`, float32 without infinities.

    The *parts* of a tile are all pairs of a part of its row of tiles and a part of its column of tiles.
    """

    def __init__(self, grid: torch.Tensor, probabilities: torch.Tensor, rows: MaskTiles, columns: MaskTiles):
        self.grid = grid
        self.probabilities = probabilities
        # (rows * columns, num_labels, num_queries)
        self.class_rows = probabilities.flatten(0, 1).transpose(1, 2).contiguous()
        self.rows = rows
        self.columns = columns
        self.is_direct = rows.is_direct and columns.is_direct

    def labels(self) -> torch.Tensor:
        num_queries = self.grid.shape[2]
        parts_per_tile = (len(self.rows.tile) / self.rows.number) * (len(self.columns.tile) / self.columns.number)
        return label_tiles(
            self._can_win(),
            self.rows,
            self.columns,
            self._evaluate,
            has_nan=bool(self.grid.isnan().any() or self.probabilities.isnan().any()),
            extra_floats=int(2 * num_queries * parts_per_tile),
        )

    # Which classes can win

    def _can_win(self) -> torch.Tensor:
        """`(tiles, num_labels)`, bool."""
        # the strongest query at each entry, and the most probable class of each query
        peak, peak_class = self.probabilities.max(dim=3)
        height, width = (whole // number for whole, number in zip(self.grid.shape[:2], peak.shape[:2], strict=True))
        spread = peak.repeat_interleave(height, 0).repeat_interleave(width, 1)
        strongest = (self.grid.sigmoid() * spread).argmax(dim=2)

        # bands of rows of tiles, so that memory does not grow with the image
        num_labels = self.probabilities.shape[3]
        num_support = self.rows.support.shape[1] * self.columns.support.shape[1]
        floats = len(self.columns.tile) * max(self.grid.shape[2], num_labels, num_support**2)
        floats *= int(self.rows.num_parts.max())
        band = max(1, _BAND // floats)
        bands = []
        for first in range(0, self.rows.number, band):
            last = min(first + band, self.rows.number)
            parts = slice(
                int(self.rows.first_part[first]), int(self.rows.first_part[last - 1] + self.rows.num_parts[last - 1])
            )
            bands.append(self._can_win_in_band(first, last, parts, strongest, peak_class))
        return torch.cat(bands)

    def _can_win_in_band(
        self, first: int, last: int, parts: slice, strongest: torch.Tensor, peak_class: torch.Tensor
    ) -> torch.Tensor:
        rows, columns = self.rows, self.columns
        num_queries = self.grid.shape[2]
        highest, lowest = bounds(self.grid, rows.support[parts], columns.support)
        # the rounding error of an average is relative to its largest entry
        eps = torch.finfo(self.grid.dtype).eps
        margin = torch.maximum(highest.abs(), lowest.abs()) * (16 * eps)
        highest, lowest = (highest + margin).sigmoid_(), (lowest - margin).sigmoid_()
        # the rounding error of a sum of positive terms is relative to the sum
        slack = (num_queries + 16) * eps
        # (row parts, column parts, num_queries) -> (row parts, column parts, num_labels)
        upper = self._mix(highest, parts) * (1 + slack)
        lower = self._mix(lowest, parts) * (1 - slack)

        # a pixel's score is an average over the parts: a bound that holds in all of them bounds the average
        shared = self._shared_bound(parts, strongest, peak_class, margin)
        if shared.shape != (last - first, columns.number):
            tiles = (rows.tile[parts] - first, last - first), (columns.tile, columns.number)
            upper = _reduce_parts(upper, tiles, "amax")
            lower = _reduce_parts(lower, tiles, "amin")
            shared = _reduce_parts(shared[..., None], tiles, "amin")[..., 0]
        # not above the largest score, so that at least one class is left even if products are rounded to TF32
        bound = torch.maximum(lower.amax(dim=2), shared).minimum(upper.amax(dim=2))
        # not `>=`: NaN can always win
        return ~(upper < bound[..., None] * (1 - slack)).flatten(0, 1)

    def _mix(self, values: torch.Tensor, parts: slice) -> torch.Tensor:
        """Values of queries in each part -> values of classes, by the probabilities in the part's window."""
        if self.probabilities.shape[:2] == (1, 1):
            return values @ self.probabilities[0, 0]
        mixed = values.new_empty(*values.shape[:2], self.probabilities.shape[3])
        for row, window_row in enumerate(self.probabilities):
            row_parts = (self.rows.window[parts] == row).nonzero()[:, 0]
            if len(row_parts) == 0:
                continue
            for column, probabilities in enumerate(window_row):
                column_parts = (self.columns.window == column).nonzero()[:, 0]
                own = row_parts[:, None], column_parts
                mixed[own] = values[own] @ probabilities
        return mixed

    def _shared_bound(
        self, parts: slice, strongest: torch.Tensor, peak_class: torch.Tensor, margin: torch.Tensor
    ) -> torch.Tensor:
        """
        A lower bound for each part: the best score of a tile is never below their average over its parts.

        Where classes meet, each class is low at the other's entries and has a low bound of its own. The highest of some
        masks is never below their average, and the average of the masks that are strongest at some entry is low nowhere.
        Where prediction pixels are averaged, the highest mask may differ between them, so only the mean score of the
        masks' classes is bounded.
        """
        rows, columns = self.rows, self.columns
        width, num_queries = self.grid.shape[1:]
        # (row parts, column parts, support)
        entries = (rows.support[parts, None, :, None] * width + columns.support[None, :, None]).flatten(2)
        # all parts of a tile use the queries of its first part, and for each query the same class
        first = rows.first_part[rows.tile[parts]], columns.first_part[columns.tile]
        first_entries = rows.support[first[0], None, :, None] * width + columns.support[first[1]][None, :, None]
        queries = strongest.flatten()[first_entries.flatten(2)]
        first_window = rows.window[first[0], None], columns.window[first[1]][None]
        classes = peak_class[first_window[0][..., None], first_window[1][..., None], queries]
        window = (rows.window[parts, None] * self.probabilities.shape[1] + columns.window)[..., None]
        probability = self.class_rows[window, classes, queries].amin(dim=2)
        # each query counts once
        weight = (queries[..., :, None] == queries[..., None, :]).sum(dim=3).reciprocal()
        distinct = weight.sum(dim=2)
        # (row parts, column parts, support as queries, support as entries)
        values = self.grid.flatten()[entries[..., None, :] * num_queries + queries[..., :, None]]
        average = (weight[..., None] * values).sum(dim=2) / distinct[..., None]
        bound = (average.amin(dim=2) - margin.amax(dim=2)).sigmoid() * probability
        return bound if self.is_direct else bound / distinct

    # Scores of the classes that can win

    def _evaluate(self, tiles: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Scores of the `classes (tiles, slots)` in some `tiles`: `(tiles, slots, pixels)`."""
        rows, columns = self.rows, self.columns
        tile_row, tile_column = tiles // columns.number, tiles % columns.number
        num_parts = rows.num_parts[tile_row] * columns.num_parts[tile_column]
        # for each part of all tiles: its tile, and its number among the parts of this tile
        owner = torch.arange(len(tiles), device=tiles.device).repeat_interleave(num_parts)
        number = torch.arange(len(owner), device=tiles.device) - (num_parts.cumsum(0) - num_parts)[owner]
        column_parts = columns.num_parts[tile_column][owner]
        row = rows.first_part[tile_row][owner] + number // column_parts
        column = columns.first_part[tile_column][owner] + number % column_parts

        masks = self._masks(row, column)
        window = rows.window[row] * self.probabilities.shape[1] + columns.window[column]
        # (parts, slots, num_queries) @ (parts, num_queries, prediction pixels)
        scores = self.class_rows[window[:, None], classes[owner]] @ masks.transpose(1, 2)
        if self.is_direct:
            return scores
        size = rows.entry_weights.shape[1], columns.entry_weights.shape[1]
        # (parts, slots, prediction rows, prediction columns) -> (parts, slots, tile height, tile width)
        scores = scores.unflatten(2, size) @ columns.pixel_weights[column, None].transpose(2, 3)
        scores = (rows.pixel_weights[row, None] @ scores).flatten(2)
        if len(owner) == len(tiles):
            return scores
        return scores.new_zeros(len(tiles), *scores.shape[1:]).index_add_(0, owner, scores)

    def _masks(self, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        """Masks after the sigmoid in some parts: `(parts, prediction pixels, num_queries)`."""
        width, num_queries = self.grid.shape[1:]
        row_support, column_support = self.rows.support[row], self.columns.support[column]
        entries = row_support[:, None] * width + column_support[..., None]
        # (parts, support columns, support rows, num_queries)
        values = self.grid.flatten(0, 1)[entries]
        # along rows: (parts, prediction columns, support columns) @ (parts, support columns, support rows * num_queries)
        masks = self.columns.entry_weights[column] @ values.flatten(2)
        # (parts, prediction columns, support rows, num_queries) -> (parts, support rows, prediction columns * num_queries)
        masks = masks.unflatten(2, (-1, num_queries)).transpose(1, 2).flatten(2)
        # along columns: (parts, prediction rows, support rows) @ (parts, support rows, prediction columns * num_queries)
        masks = self.rows.entry_weights[row] @ masks
        return masks.unflatten(2, (-1, num_queries)).flatten(1, 2).sigmoid_()


def _reduce_parts(values: torch.Tensor, tiles: Sequence[tuple[torch.Tensor, int]], reduction: str) -> torch.Tensor:
    """
    Largest (`"amax"`) or smallest (`"amin"`) of the parts of each tile: `(row parts, column parts, K)` -> `(tile rows, tile
    columns, K)`, given the tile of each part and the number of tiles along both axes.
    """
    for dim, (tile, number) in enumerate(tiles):
        size = [*values.shape]
        size[dim] = number
        index = tile.view([-1 if axis == dim else 1 for axis in range(3)]).expand_as(values)
        values = values.new_zeros(size).scatter_reduce_(dim, index, values, reduction, include_self=False)
    return values
