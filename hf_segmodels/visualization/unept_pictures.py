# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Pictures of UN-EPT: predicted boundaries and directions, sampled points of the context queries and the feature pyramid, as in
figures 7 and 5 of the paper.
"""

import colorsys
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn

from ..unept.boundary_refinement import resize_boundary_maps
from .attention import check_coverage, overlay_heat_map
from .label_maps import side_by_side


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


class SampledPoints(NamedTuple):
    """
    Points that one context query samples.

    Args:
        query (`tuple[float, float]`): Position of the query, `(x, y)` in pixels.
        points (`torch.Tensor` of shape `(num_levels, num_heads * num_points, 2)`): Positions `(x, y)` in pixels. Values
            outside the image are 0.
        weights (`torch.Tensor` of shape `(num_levels, num_heads * num_points)`): Attention weights from 0 to 1, whose sum is
            the number of heads.
        size (`tuple[int, int]`): `(height, width)` of the image in the same pixels.
    """

    query: tuple[float, float]
    points: torch.Tensor
    weights: torch.Tensor
    size: tuple[int, int]


@torch.no_grad()
def sampled_points(
    model: Any, pixel_values: torch.Tensor, point: tuple[float, float], layer: int = -1
) -> SampledPoints:
    """
    Return the points that the context query at a position samples from each level of the pyramid, in one decoder layer.

    Args:
        model ([`UNEPTForSemanticSegmentation`]): Model in eval mode.
        pixel_values (`torch.Tensor` of shape `(1, num_channels, height, width)`): One image, which is processed without
            windows.
        point (`tuple[float, float]`): Position `(x, y)` in pixels of the image.
        layer (`int`, *optional*, defaults to -1): Index of the decoder layer.

    Raises:
        ValueError: if there are several images, or the point is outside the image.
    """
    (height, width), (x, y) = pixel_values.shape[-2:], point
    if pixel_values.ndim != 4 or len(pixel_values) != 1:
        raise ValueError(
            f"`pixel_values` must be one image (1, num_channels, height, width), got {tuple(pixel_values.shape)}."
        )
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(f"`point` (x, y) = {tuple(point)} is outside the image of height {height} and width {width}.")
    inputs: list[tuple] = []
    attention = model.decoder.layers[layer].cross_attention
    hook = attention.register_forward_pre_hook(lambda module, args: inputs.append(args))
    try:
        encoded = model.encode(pixel_values)
        outputs = model.decode(encoded)
    finally:
        hook.remove()
    queries, _, references, spatial_shapes = inputs[0]
    rows, columns = outputs.boundary_logits.shape[-2:]
    padded_size = encoded.padded_size
    index = int(y / padded_size[0] * rows) * columns + int(x / padded_size[1] * columns)
    locations, weights = attention.sample(queries[:, index : index + 1], references[index : index + 1], spatial_shapes)
    scale = locations.new_tensor([padded_size[1], padded_size[0]])
    query_x, query_y = (references[index] * scale).tolist()
    # (1, 1, M, L, P, 2) -> (L, M * P, 2)
    points = (locations[0, 0] * scale).transpose(0, 1).flatten(1, 2)
    return SampledPoints((query_x, query_y), points, weights[0, 0].transpose(0, 1).flatten(1).float(), (height, width))


def draw_sampled_points(image: Image.Image, sampled: SampledPoints) -> Image.Image:
    """
    Draw the points that a query samples, one panel for each level. Points with larger weights are redder. A green star marks
    the query.

    Args:
        image (`PIL.Image.Image`): Image of any size.
        sampled ([`SampledPoints`]): Output of [`sampled_points`].

    Returns:
        `PIL.Image.Image`: RGB image.
    """
    scale = np.array([image.width / sampled.size[1], image.height / sampled.size[0]])
    radius = max(2.0, min(image.size) / 120)
    strongest = sampled.weights.max().clamp(min=torch.finfo(torch.float32).tiny)
    panels = []
    for points, weights in zip(sampled.points, sampled.weights / strongest, strict=True):
        panel = image.convert("RGB")
        draw = ImageDraw.Draw(panel)
        order = weights.argsort()  # the strongest on top
        for (x, y), weight in zip(points[order].cpu().numpy() * scale, weights[order].tolist(), strict=True):
            color = (255, round(230 * (1 - weight)), 0)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color, outline="black")
        x, y = np.array(sampled.query) * scale
        # a five-pointed star
        lengths = [3 * radius * (1 if corner % 2 == 0 else 0.45) for corner in range(10)]
        angles = [math.pi * (corner / 5 - 0.5) for corner in range(10)]
        corners = [(x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(lengths, angles, strict=True)]
        draw.polygon(corners, fill="#00d020", outline="black")
        panels.append(panel)
    return side_by_side(panels, [f"scale {number}" for number in range(1, len(panels) + 1)])


def feature_picture(feature_map: torch.Tensor, size: tuple[int, int] | None = None) -> Image.Image:
    """
    Draw the first three principal components of a feature map as red, green and blue.

    Args:
        feature_map (`torch.Tensor` of shape `(num_channels, height, width)`): One level with at least three channels, for
            example `model.encode(pixel_values).feature_maps[0][0]`.
        size (`tuple[int, int]`, *optional*): `(height, width)` of the picture. Defaults to the size of the feature map.

    Returns:
        `PIL.Image.Image`: RGB image.

    Raises:
        ValueError: if `feature_map` has another shape, or fewer than three channels.
    """
    if feature_map.ndim != 3 or feature_map.shape[0] < 3:
        raise ValueError(
            f"`feature_map` must have the shape (num_channels, height, width) with at least 3 channels, got "
            f"{tuple(feature_map.shape)}."
        )
    # (D, h, w) -> (h * w, D)
    cells = feature_map.detach().float().flatten(1).T
    cells = cells - cells.mean(dim=0)
    _, _, axes = torch.linalg.svd(cells, full_matrices=False)
    if len(axes) < 3:
        axes = nn.functional.pad(axes, (0, 0, 0, 3 - len(axes)))
    # the sign of a principal axis is arbitrary: make the largest entry positive, so that pictures are reproducible
    axes = axes[:3] * axes[:3].gather(1, axes[:3].abs().argmax(dim=1, keepdim=True)).sign()
    components = cells @ axes.T
    low, high = components.quantile(torch.tensor([0.01, 0.99], device=cells.device), dim=0)
    scaled = ((components - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    # (h * w, 3) -> (h, w, 3)
    colors = (255 * scaled).round().to(torch.uint8).unflatten(0, tuple(feature_map.shape[1:]))
    picture = Image.fromarray(colors.cpu().numpy())
    return picture if size is None else picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def pyramid_picture(feature_maps: Sequence[torch.Tensor], size: tuple[int, int]) -> Image.Image:
    """
    Draw the levels of a pyramid side by side, each as [`feature_picture`].

    Args:
        feature_maps (`list[torch.Tensor]`, each of shape `(num_channels, h, w)`): Levels of the pyramid of one image.
        size (`tuple[int, int]`): `(height, width)` of each panel.
    """
    titles = [f"scale {number}" for number in range(1, len(feature_maps) + 1)]
    return side_by_side([feature_picture(feature_map, size) for feature_map in feature_maps], titles)
