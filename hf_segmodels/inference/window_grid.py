# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Sliding windows: where they lie, running them in batches, and how their scores become an image's."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .separable_maps import Windows, window_map
from .upsampled_argmax import SeparableScores


DenseLogits = Callable[[torch.Tensor], tuple[torch.Tensor, tuple[int, int]]]
Network = Callable[[torch.Tensor], tuple[Sequence[torch.Tensor], tuple[int, int]]]


def window_starts(size: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along one axis: every `stride`, the last one shifted back into the image."""
    return [*range(0, max(size - window, 0), stride), max(size - window, 0)]


def as_sizes(target_sizes: Sequence[tuple[int, int]] | torch.Tensor) -> list[tuple[int, int]]:
    """
    `(height, width)` of each image, from pairs or a tensor `(batch_size, 2)`.

    Raises:
        ValueError: if it is something else.
    """
    try:
        return [(int(height), int(width)) for height, width in target_sizes]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`target_sizes` must be a list with one (height, width) for each image, got {target_sizes}."
        ) from error


def fit_to_window(pixel_values: torch.Tensor, window: tuple[int, int], mode: str) -> torch.Tensor:
    """
    Makes images `(batch_size, num_channels, height, width)` that are smaller than the window large enough for it.

    `"upscale"` scales bilinearly until the window fits, as Segmenter's released code does it: the side that is
    shortest against the window becomes the window's, the other one keeps the ratio (truncated). `"pad"` adds zeros at
    the bottom and right. `"none"` leaves them as they are.
    """
    height, width = pixel_values.shape[-2:]
    if mode == "none" or (height >= window[0] and width >= window[1]):
        return pixel_values
    if mode == "pad":
        padding = (0, max(window[1] - width, 0), 0, max(window[0] - height, 0))
        return nn.functional.pad(pixel_values, padding)
    # height / window[0] against width / window[1], in whole numbers
    if height * window[1] < width * window[0]:
        size = (window[0], int(width / height * window[0]))
    else:
        size = (int(height / width * window[1]), window[1])
    return nn.functional.interpolate(pixel_values, size=size, mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class WindowLayout:
    """
    Where the windows of a batch of images lie.

    Args:
        starts (`tuple[tuple[int, ...], tuple[int, ...]]`): First row, and first column, of the windows.
        size (`tuple[int, int]`): Height and width of a window.
        image_size (`tuple[int, int]`): Those of the image that was cut.
        kept_size (`tuple[int, int]`): Those that are left after padding is cut off.
    """

    starts: tuple[tuple[int, ...], tuple[int, ...]]
    size: tuple[int, int]
    image_size: tuple[int, int]
    kept_size: tuple[int, int]

    def axes(self, num_entries: Sequence[int], covered: tuple[int, int]) -> tuple[Windows, Windows]:
        """The windows along rows and columns, given the entries of a window's grid and the pixels that they cover."""
        fields = (self.starts, self.size, num_entries, covered, self.image_size, self.kept_size)
        rows, columns = (Windows(*axis) for axis in zip(*fields, strict=True))
        return rows, columns


def run_windows(
    network: Network,
    pixel_values: torch.Tensor,
    windows: tuple[tuple[int, int], tuple[int, int]] | None,
    small_image_mode: str,
    max_windows: int,
) -> tuple[list[torch.Tensor], tuple[int, int], WindowLayout]:
    """
    Runs a network over windows of a batch of images: all images' first windows, then their second ones, and so on.

    Args:
        network: Maps `(num_windows, num_channels, height, width)` to tensors with a row for each window, and the size in
            pixels that they cover.
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): The images.
        windows: Window and stride, or `None` for whole images.
        small_image_mode: See [`fit_to_window`].
        max_windows: How many windows go through the network together.

    Returns:
        The network's tensors, each of shape `(batch_size, windows down, windows across, ...)` and in float32, the size in
        pixels that those of a window cover, and where the windows lie.
    """
    batch_size, _, height, width = pixel_values.shape
    window = stride = (height, width)
    if windows is not None:
        (window_height, window_width), stride = windows
        pixel_values = fit_to_window(pixel_values, windows[0], small_image_mode)
        window = min(window_height, pixel_values.shape[-2]), min(window_width, pixel_values.shape[-1])
    image_size = (pixel_values.shape[-2], pixel_values.shape[-1])
    rows, columns = (tuple(window_starts(*sizes)) for sizes in zip(image_size, window, stride, strict=True))
    layout = WindowLayout(
        starts=(rows, columns),
        size=window,
        image_size=image_size,
        kept_size=(height, width) if small_image_mode == "pad" else image_size,
    )

    crops = [
        image[:, top : top + window[0], left : left + window[1]]
        for top in rows
        for left in columns
        for image in pixel_values
    ]
    outputs = []
    for first in range(0, len(crops), max_windows):
        tensors, covered = network(torch.stack(crops[first : first + max_windows]))
        outputs.append([tensor.float() for tensor in tensors])
    grid = (len(rows), len(columns), batch_size)
    # (rows * columns * batch_size, ...) -> (batch_size, rows, columns, ...)
    merged = [torch.cat(parts).unflatten(0, grid).movedim(2, 0) for parts in zip(*outputs, strict=True)]
    return merged, covered, layout


def run_dense_windows(
    dense_logits: DenseLogits,
    pixel_values: torch.Tensor,
    windows: tuple[tuple[int, int], tuple[int, int]] | None,
    small_image_mode: str,
    max_windows: int,
) -> tuple[torch.Tensor, Windows, Windows]:
    """
    Runs a network that gives logits over windows of a batch of images.

    Args:
        dense_logits: Maps `(num_windows, num_channels, height, width)` to logits `(num_windows, num_labels,
            grid_height, grid_width)` and the size in pixels that they cover.
        pixel_values, windows, small_image_mode, max_windows: See [`run_windows`].

    Returns:
        The windows' grids `(batch_size, windows down, windows across, num_labels, grid_height, grid_width)` in float32, and
        where the windows lie along rows and columns.
    """

    def network(crops: torch.Tensor) -> tuple[list[torch.Tensor], tuple[int, int]]:
        logits, covered = dense_logits(crops)
        return [logits], covered

    (grids,), covered, layout = run_windows(network, pixel_values, windows, small_image_mode, max_windows)
    rows, columns = layout.axes(grids.shape[-2:], covered)
    return grids, rows, columns


def tile_windows(grids: torch.Tensor) -> torch.Tensor:
    """`(batch_size, rows, columns, K, h, w)` -> `(batch_size, K, rows * h, columns * w)`: windows side by side."""
    # (batch_size, rows, columns, K, h, w) -> (batch_size, K, rows, h, columns, w)
    return grids.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def window_scores(
    dense_logits: DenseLogits,
    pixel_values: torch.Tensor,
    target_sizes: Sequence[tuple[int, int]],
    windows: tuple[tuple[int, int], tuple[int, int]] | None,
    small_image_mode: str,
    is_flipped: bool,
    max_windows: int,
) -> list[SeparableScores]:
    """
    Runs a network that gives logits over windows of a batch of images, and merges them.

    Args:
        target_sizes: `(height, width)` wanted for each image.
        is_flipped: Whether the images are mirrored, so that their scores have to be mirrored back.
        dense_logits, pixel_values, windows, small_image_mode, max_windows: See [`run_dense_windows`].

    Returns:
        For each image, its averaged scores at the target size.
    """
    grids, rows, columns = run_dense_windows(dense_logits, pixel_values, windows, small_image_mode, max_windows)
    return [
        SeparableScores(
            grid,
            window_map(rows, target_height, False, pixel_values.device),
            window_map(columns, target_width, is_flipped, pixel_values.device),
        )
        for grid, (target_height, target_width) in zip(tile_windows(grids), target_sizes, strict=True)
    ]
