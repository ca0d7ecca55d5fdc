# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Sliding windows: their positions in an image, and a network's outputs for them in batches."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn


# Maps crops `(num_windows, num_channels, height, width)` to tensors with one row per window, and to the size in pixels
# that the grids of a window cover.
Network = Callable[[torch.Tensor], tuple[Sequence[torch.Tensor], tuple[int, int]]]


def as_sizes(target_sizes: Sequence[tuple[int, int]] | torch.Tensor, batch_size: int) -> list[tuple[int, int]]:
    """
    Return `(height, width)` of each image, from pairs or a tensor `(batch_size, 2)`.

    Raises:
        ValueError: if there is not one pair of positive numbers for each image.
    """
    try:
        sizes = [(int(height), int(width)) for height, width in target_sizes]
    except (TypeError, ValueError):
        sizes = []
    if len(sizes) != batch_size or any(min(size) < 1 for size in sizes):
        raise ValueError(
            f"`target_sizes` for a batch of {batch_size} images must be one (height, width) of at least one pixel for each, "
            f"got {target_sizes}."
        )
    return sizes


class WindowAxis(NamedTuple):
    """
    The windows along one axis of an image.

    Args:
        starts (`tuple[int, ...]`): First pixel of each window, in ascending order.
        window_size (`int`): Pixels per window.
        num_entries (`int`): Grid entries per window.
        padded_size (`int`): Pixels that these entries cover: `window_size`, or more after padding to whole patches.
        image_size (`int`): Pixels of the image, all of them within windows.
        kept_size (`int`): Pixels of the image without the padding of small images.
        is_flipped (`bool`, *optional*, defaults to `False`): Whether the image is mirrored along the axis.
    """

    starts: tuple[int, ...]
    window_size: int
    num_entries: int
    padded_size: int
    image_size: int
    kept_size: int
    is_flipped: bool = False


@dataclass(frozen=True)
class WindowGrid:
    """
    Sliding windows over images of one size.

    Args:
        input_size (`tuple[int, int]`): Height and width of the images.
        window_size (`tuple[int, int]`): Height and width of a window; the image's own for a single window.
        window_stride (`tuple[int, int]`): Pixels from one window to the next one. The last window along an axis is
            shifted back into the image.
        small_image_mode (`str`, *optional*, defaults to `"none"`): How images smaller than the window are fitted to it.
            `"upscale"` resizes bilinearly until the window fits, as Segmenter's released code does: the side that is
            shortest relative to the window gets the window's length, the other one keeps the ratio (truncated). `"pad"`
            adds zeros at the bottom and right. `"none"` reduces the window to the image.
        is_flipped (`bool`, *optional*, defaults to `False`): Whether the images are mirrored horizontally, so that their
            scores have to be mirrored back.
    """

    input_size: tuple[int, int]
    window_size: tuple[int, int]
    window_stride: tuple[int, int]
    small_image_mode: str = "none"
    is_flipped: bool = False

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images after small ones are fitted to the window."""
        (height, width), (window_height, window_width) = self.input_size, self.window_size
        if self.small_image_mode == "none" or (height >= window_height and width >= window_width):
            return height, width
        if self.small_image_mode == "pad":
            return max(height, window_height), max(width, window_width)
        # height / window_height < width / window_width, in integers
        if height * window_width < width * window_height:
            return window_height, int(width / height * window_height)
        return int(height / width * window_width), window_width

    @property
    def crop_size(self) -> tuple[int, int]:
        """Height and width of the crops: those of a window, or of the image if it is smaller."""
        height, width = (min(sizes) for sizes in zip(self.window_size, self.image_size, strict=True))
        return height, width

    @property
    def starts(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """First row, and first column, of the windows."""
        lasts = (image - crop for image, crop in zip(self.image_size, self.crop_size, strict=True))
        rows, columns = (
            (*range(0, last, stride), last) for last, stride in zip(lasts, self.window_stride, strict=True)
        )
        return rows, columns

    @property
    def num_windows(self) -> tuple[int, int]:
        """Number of rows and of columns of windows, without a list of `starts`, which can be huge."""
        sides = zip(self.image_size, self.crop_size, self.window_stride, strict=True)
        rows, columns = (1 + math.ceil((image - crop) / stride) for image, crop, stride in sides)
        return rows, columns

    def crops(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """
        Cut images `(batch_size, num_channels, height, width)` of `input_size` into crops `(num_channels, crop_height,
        crop_width)`: the first window of each image, then the second one of each, row by row.
        """
        height, width = self.image_size
        if (height, width) != self.input_size:
            if self.small_image_mode == "pad":
                padding = (0, width - self.input_size[1], 0, height - self.input_size[0])
                pixel_values = nn.functional.pad(pixel_values, padding)
            else:
                pixel_values = nn.functional.interpolate(
                    pixel_values, size=(height, width), mode="bilinear", align_corners=False
                )
        crop_height, crop_width = self.crop_size
        rows, columns = self.starts
        return [
            image[:, top : top + crop_height, left : left + crop_width]
            for top in rows
            for left in columns
            for image in pixel_values
        ]

    def axes(self, grid_size: Sequence[int], padded_size: tuple[int, int]) -> tuple[WindowAxis, WindowAxis]:
        """The windows along rows and columns, given the size of a window's grid and the pixels that it covers."""
        kept_size = self.input_size if self.small_image_mode == "pad" else self.image_size
        fields = (self.starts, self.crop_size, grid_size, padded_size, self.image_size, kept_size)
        rows, columns = (WindowAxis(*axis) for axis in zip(*fields, strict=True))
        return rows, columns._replace(is_flipped=self.is_flipped)


def run_windows(
    network: Network, pixel_values: torch.Tensor, grid: WindowGrid, max_windows: int
) -> tuple[list[torch.Tensor], tuple[int, int]]:
    """
    Run a network over the windows of a batch of images.

    Args:
        network ([`Network`]): The network.
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): The images.
        grid ([`WindowGrid`]): The windows.
        max_windows (`int`): Number of windows that go through the network together.

    Returns:
        The network's tensors, each of shape `(batch_size, window rows, window columns, ...)` and in float32, and the size
        in pixels that the grids of a window cover.
    """
    crops = grid.crops(pixel_values)
    outputs = []
    for first in range(0, len(crops), max_windows):
        tensors, padded_size = network(torch.stack(crops[first : first + max_windows]))
        outputs.append([tensor.float() for tensor in tensors])
    num_windows = (*grid.num_windows, len(pixel_values))
    # (rows * columns * batch_size, ...) -> (batch_size, rows, columns, ...)
    merged = [torch.cat(parts).unflatten(0, num_windows).movedim(2, 0) for parts in zip(*outputs, strict=True)]
    return merged, padded_size


def tile_windows(grids: torch.Tensor) -> torch.Tensor:
    """`(batch_size, rows, columns, K, h, w)` -> `(batch_size, K, rows * h, columns * w)`: windows side by side."""
    # (batch_size, rows, columns, K, h, w) -> (batch_size, K, rows, h, columns, w)
    return grids.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
