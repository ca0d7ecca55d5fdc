# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""The regions that RegProxy's tokens stand for, as in figures 6 and 8 of its paper."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw

from .attention import overlay_heat_map


def region_maps(affinity: torch.Tensor, tokens: Sequence[tuple[int, int]]) -> torch.Tensor:
    """
    How much each pixel belongs to each of some tokens (section 4.1, the probabilistic region).

    Args:
        affinity (`torch.Tensor` of shape `(9, h, w, H, W)`): One image's affinity, such as `outputs.affinity[0]`.
        tokens (`list[tuple[int, int]]`): Row and column of each token; see [`patch_at`].

    Returns:
        `torch.Tensor` of shape `(num_tokens, H * h, W * w)`, float32, from 0 to 1; 0 outside the 3x3 cells around the
        token. The maps of all tokens of an image add up to 1 in each pixel.

    Raises:
        ValueError: if the affinity has another shape, or a token is outside the grid.
    """
    if affinity.ndim != 5 or affinity.shape[0] != 9:
        raise ValueError(
            f"Expected one image's affinity (9, h, w, H, W), got {tuple(affinity.shape)}: take `outputs.affinity[0]`."
        )
    _, cell_height, cell_width, height, width = affinity.shape
    for row, column in tokens:
        if not (0 <= row < height and 0 <= column < width):
            raise ValueError(f"Token {(row, column)} is outside the grid of {height} rows and {width} columns.")
    index = torch.arange(len(tokens), device=affinity.device)
    places = torch.tensor(tokens, dtype=torch.long, device=affinity.device).view(-1, 2)
    # a border of cells around the image, which neighbors of the outer tokens fall into
    maps = affinity.new_zeros(len(tokens), height + 2, width + 2, cell_height, cell_width, dtype=torch.float32)
    for neighbor in range(9):
        # the cell for which the token is this neighbor lies in the opposite direction
        rows, columns = places[:, 0] - (neighbor // 3 - 1), places[:, 1] - (neighbor % 3 - 1)
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        # (h, w, num_inside) -> (num_inside, h, w)
        shares = affinity[neighbor][:, :, rows[inside], columns[inside]].detach().float().permute(2, 0, 1)
        maps[index[inside], rows[inside] + 1, columns[inside] + 1] = shares
    # (num_tokens, H, W, h, w) -> (num_tokens, H, h, W, w) -> (num_tokens, H * h, W * w)
    return maps[:, 1:-1, 1:-1].transpose(2, 3).flatten(3, 4).flatten(1, 2)


def draw_regions(
    image: Image.Image,
    affinity: torch.Tensor,
    tokens: Sequence[tuple[int, int]],
    alpha: float = 0.6,
    coverage: tuple[float, float] = (1.0, 1.0),
) -> Image.Image:
    """
    Draws the regions of some tokens over an image, from dark violet (no share) to light yellow (the largest share), and
    the tokens' own cells as white frames.

    Args:
        image (`PIL.Image.Image`):
            The image, of any size. Not changed.
        affinity (`torch.Tensor` of shape `(9, h, w, H, W)`):
            Its affinity, such as `outputs.affinity[0]`.
        tokens (`list[tuple[int, int]]`):
            Row and column of each token.
        alpha (`float`, *optional*, defaults to 0.6):
            Opacity of the regions, from 0 to 1.
        coverage (`tuple[float, float]`, *optional*, defaults to `(1.0, 1.0)`):
            As in [`overlay_heat_map`]: how much the tokens cover in units of the image's height and width.

    Returns:
        `PIL.Image.Image`: an RGB image of the same size.
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


__all__ = ["draw_regions", "region_maps"]
