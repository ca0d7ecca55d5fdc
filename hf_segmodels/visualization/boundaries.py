# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Boundaries and directions that UN-EPT predicts, as overlays."""

import colorsys

import numpy as np
import torch
from PIL import Image

from ..unept.boundary_refinement import resize_boundary_maps
from .attention import check_coverage, overlay_heat_map


# One hue for each direction, clockwise from red for left.
DIRECTION_COLORS = np.array(
    [[round(255 * part) for part in colorsys.hsv_to_rgb(index / 8, 1, 1)] for index in range(8)], dtype=np.uint8
)


def draw_boundaries(
    image: Image.Image,
    boundary_logits: torch.Tensor,
    alpha: float = 0.6,
    coverage: tuple[float, float] = (1.0, 1.0),
) -> Image.Image:
    """
    Overlay the probability of a boundary on an image.

    Args:
        boundary_logits (`torch.Tensor` of shape `(2, h, w)`): For example `outputs.boundary_logits[0]`.
        image, alpha, coverage: See [`overlay_heat_map`].
    """
    _check(boundary_logits, 2, "boundary_logits")
    return overlay_heat_map(image, boundary_logits.detach().float().softmax(dim=0)[1], alpha, coverage)


def draw_directions(
    image: Image.Image,
    boundary_logits: torch.Tensor,
    direction_logits: torch.Tensor,
    alpha: float = 0.8,
    coverage: tuple[float, float] = (1.0, 1.0),
) -> Image.Image:
    """
    Color the pixels whose scores the refinement replaces by their direction (`DIRECTION_COLORS`: left, up left, up, and so on
    clockwise). Other pixels stay unchanged.

    Args:
        boundary_logits (`torch.Tensor` of shape `(2, h, w)`): For example `outputs.boundary_logits[0]`.
        direction_logits (`torch.Tensor` of shape `(8, h, w)`): For example `outputs.direction_logits[0]`.
        alpha (`float`, *optional*, defaults to 0.8): Opacity, from 0 to 1.
        image, coverage: See [`overlay_heat_map`].

    Returns:
        `PIL.Image.Image`: RGB image of the same size.
    """
    _check(boundary_logits, 2, "boundary_logits")
    _check(direction_logits, 8, "direction_logits")
    check_coverage(coverage)
    size = round(image.height * coverage[0]), round(image.width * coverage[1])
    maps = resize_boundary_maps(boundary_logits.detach()[None], direction_logits.detach()[None], size)
    boundaries, directions = (logits[0, :, : image.height, : image.width].cpu() for logits in maps)
    # (height, width) -> (height, width, 3)
    colors = DIRECTION_COLORS[directions.argmax(dim=0).numpy()]
    original = image.convert("RGB")
    painted = np.where((boundaries[1] > 0.5).numpy()[..., None], colors, np.asarray(original))
    return Image.blend(original, Image.fromarray(painted), alpha)


def _check(logits: torch.Tensor, num_channels: int, name: str) -> None:
    if logits.ndim != 3 or logits.shape[0] != num_channels:
        raise ValueError(
            f"`{name}` must have the shape ({num_channels}, h, w) of one image, got {tuple(logits.shape)}: give "
            f"`outputs.{name}[0]`."
        )
