# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Predicted boundaries and directions over the image."""

import colorsys

import numpy as np
import torch
from PIL import Image
from torch import nn

from .attention import check_coverage, overlay_heat_map


# One hue a direction, red for left, round the wheel clockwise.
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
    Lays the probability of a boundary over an image.

    Args:
        image (`PIL.Image.Image`): The image, of any size. Not changed.
        boundary_logits (`torch.Tensor` of shape `(2, h, w)`): Such as `outputs.boundary_logits[0]`.
        alpha (`float`, *optional*, defaults to 0.6): Opacity, from 0 to 1.
        coverage (`tuple[float, float]`, *optional*, defaults to `(1.0, 1.0)`): As in [`overlay_heat_map`].
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
    Paints the pixels that refinement moves in the color of their direction (`DIRECTION_COLORS`: left, up left, up, and so
    on clockwise), and leaves the others as they are.

    Args:
        image (`PIL.Image.Image`): The image, of any size. Not changed.
        boundary_logits (`torch.Tensor` of shape `(2, h, w)`): Such as `outputs.boundary_logits[0]`.
        direction_logits (`torch.Tensor` of shape `(8, h, w)`): Such as `outputs.direction_logits[0]`.
        alpha (`float`, *optional*, defaults to 0.8): Opacity, from 0 to 1.
        coverage (`tuple[float, float]`, *optional*, defaults to `(1.0, 1.0)`): As in [`overlay_heat_map`].

    Returns:
        `PIL.Image.Image`: an RGB image of the same size.
    """
    _check(boundary_logits, 2, "boundary_logits")
    _check(direction_logits, 8, "direction_logits")
    check_coverage(coverage)
    size = tuple(round(side * share) for side, share in zip((image.height, image.width), coverage, strict=True))
    # corner pixels on corner pixels, as the refinement resizes them
    boundaries, directions = (
        nn.functional.interpolate(logits.detach().float()[None], size=size, mode="bilinear", align_corners=True)[
            0, :, : image.height, : image.width
        ].cpu()
        for logits in (boundary_logits, direction_logits)
    )
    # (height, width) -> (height, width, 3)
    colors = DIRECTION_COLORS[directions.argmax(dim=0).numpy()]
    pixels = np.asarray(image.convert("RGB"))
    painted = np.where((boundaries[1] > 0.5).numpy()[..., None], colors, pixels)
    return Image.blend(image.convert("RGB"), Image.fromarray(painted.astype(np.uint8)), alpha)


def _check(logits: torch.Tensor, num_channels: int, name: str) -> None:
    if logits.ndim != 3 or logits.shape[0] != num_channels:
        raise ValueError(
            f"Expected `{name}` of one image, ({num_channels}, h, w), got {tuple(logits.shape)}: take `outputs.{name}[0]`."
        )


__all__ = ["DIRECTION_COLORS", "draw_boundaries", "draw_directions"]
