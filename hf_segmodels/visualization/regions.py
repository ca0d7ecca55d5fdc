# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Regions of the tokens of RegProxy, as in figures 6 and 8 of the paper."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw
from torch import nn

from ..regproxy.painting import paint
from .attention import overlay_heat_map


def region_maps(affinity: torch.Tensor, tokens: Sequence[tuple[int, int]]) -> torch.Tensor:
    """
    Return the affinity of each pixel to the given tokens (section 4.1, the probabilistic region).

    Args:
        affinity (`torch.Tensor` of shape `(9, h, w, H, W)`): Affinity of one image, for example `outputs.affinity[0]`.
        tokens (`list[tuple[int, int]]`): Row and column of each token; see [`patch_at`].

    Returns:
        `torch.Tensor` of shape `(num_tokens, H * h, W * w)`, float32, from 0 to 1; 0 outside the 3x3 cells around the
        token. The maps of all tokens of an image add up to 1 in each pixel.

    Raises:
        ValueError: if `affinity` has another shape, or a token is outside the grid.
    """
    if affinity.ndim != 5 or affinity.shape[0] != 9:
        raise ValueError(
            f"`affinity` must have the shape (9, h, w, H, W) of one image, got {tuple(affinity.shape)}: give "
            "`outputs.affinity[0]`."
        )
    height, width = affinity.shape[-2:]
    for row, column in tokens:
        if not (0 <= row < height and 0 <= column < width):
            raise ValueError(f"`tokens` has {(row, column)}, outside the grid of {height} rows and {width} columns.")
    if not tokens:
        cell_height, cell_width = affinity.shape[1:3]
        return affinity.new_zeros(0, height * cell_height, width * cell_width, dtype=torch.float32)
    # the scores of a token in its own channel, (1, H * W, num_tokens), paint its affinity
    index = torch.tensor([row * width + column for row, column in tokens], dtype=torch.long, device=affinity.device)
    own_channel = nn.functional.one_hot(index, height * width).float().T[None]
    return paint(own_channel, affinity[None].detach())[0]


def draw_regions(
    image: Image.Image,
    affinity: torch.Tensor,
    tokens: Sequence[tuple[int, int]],
    alpha: float = 0.6,
    coverage: tuple[float, float] = (1.0, 1.0),
) -> Image.Image:
    """
    Overlay the regions of tokens on an image, from dark violet (no affinity) to light yellow (the largest affinity), and draw
    the cells of the tokens as white frames.

    Args:
        affinity, tokens: See [`region_maps`].
        image, alpha, coverage: See [`overlay_heat_map`].

    Returns:
        `PIL.Image.Image`: RGB image of the same size.
    """
    maps = region_maps(affinity, tokens)
    shares = maps.sum(dim=0)
    strongest = float(shares.max()) or 1.0
    picture = overlay_heat_map(image, shares, alpha, coverage, limits=(0, strongest))
    height, width = affinity.shape[-2:]
    cell_height, cell_width = image.height * coverage[0] / height, image.width * coverage[1] / width
    draw = ImageDraw.Draw(picture)
    for row, column in tokens:
        left, top = column * cell_width, row * cell_height
        draw.rectangle((left, top, left + cell_width - 1, top + cell_height - 1), outline="white")
    return picture
