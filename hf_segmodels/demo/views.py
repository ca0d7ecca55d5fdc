# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
What a method shows of its workings, as pictures of one image: attention, regions, masks of queries, sampled points,
boundaries. Which of them a model has, [`method_views`] says.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import nn

from ..inference.predictor import Predictor
from ..plain_vit.configuration_plain_vit import PlainViTConfig
from ..visualization import (
    attention_map,
    draw_boundaries,
    draw_directions,
    draw_regions,
    draw_sampled_points,
    overlay_heat_map,
    patch_at,
    pyramid_picture,
    sampled_points,
)


# Here an image goes through the network as a whole, and attention weights of a layer grow with the square of these.
_MAX_PATCHES = 3072
_MAX_PIXELS = 1 << 20
_PANEL_EDGE = 480


@dataclass(frozen=True)
class Choice:
    """What to look at. Each view reads what it [needs][`MethodView.needs`]."""

    point: tuple[float, float] = (0.5, 0.5)
    """`(x, y)` in units of the image's width and height, from 0 to below 1."""
    class_index: int = 0
    layer: int | None = None
    """The encoder's layer, from 1; the last one that has a map if unset."""


@dataclass(frozen=True)
class MethodView:
    """One kind of picture that a model has."""

    name: str
    description: str
    """One sentence for the user."""
    needs: str | None
    """`"point"`, `"class"`, or nothing."""
    draw: Callable[[Predictor, Image.Image, Choice], Image.Image]
    layers: tuple[int, ...] = ()
    """Layers to choose from, counted from 1; none where there is no choice."""


def method_views(model: Any) -> list[MethodView]:
    """
    The pictures that a model has, by its method and encoder; none for models of transformers itself.

    Args:
        model (`PreTrainedModel`): The model.
    """
    method = model.config.model_type
    if method not in ("segmenter", "segvit", "regproxy", "unept"):
        return []
    views = []
    if method == "regproxy":
        views.append(
            MethodView("Region of a place", "How much each pixel belongs to the token at this place.", "point", _region)
        )
    if method == "unept":
        views += [
            MethodView("Sampled points", "Where the query at this place looks, on each scale.", "point", _points),
            MethodView("Boundaries", "How likely each pixel lies on a boundary between classes.", None, _boundaries),
            MethodView(
                "Directions",
                "Which way refinement takes the labels of pixels near boundaries: one hue a direction, red for left.",
                None,
                _directions,
            ),
            MethodView("Pyramid", "The encoder's scales; similar colors are similar features.", None, _pyramid),
        ]
    if method == "segvit":
        views.append(MethodView("Mask of a class", "The mask that the query of a class attends to.", "class", _mask))
    if isinstance(model.config.backbone_config, PlainViTConfig):
        layers = tuple(number for number, _ in _encoder_layers(model))
        description = "Where the patch at this place looks, in a layer of the encoder (mean of its heads)."
        views.append(MethodView("Attention of a place", description, "point", _encoder_attention, layers))
    if method == "segmenter" and hasattr(model.decoder, "class_embeddings"):
        description = "Where a class looks, in the last layer of the mask transformer (mean of its heads)."
        views.append(MethodView("Attention of a class", description, "class", _decoder_attention))
    return views


def _encoder_layers(model: Any) -> list[tuple[int, Any]]:
    """The encoder's layers in which as many tokens look as are looked at, by number from 1."""
    layers = enumerate(model.backbone.encoder.layers, start=1)
    return [(number, layer) for number, layer in layers if layer.downsampling is None]


def _pixel_values(predictor: Predictor, image: Image.Image) -> torch.Tensor:
    """The image for the network `(1, num_channels, height, width)`, scaled down where it would take too much memory."""
    model = predictor.model
    pixel_values = predictor.prepare(image)["pixel_values"].to(model.device, model.dtype)
    height, width = pixel_values.shape[-2:]
    limit = _MAX_PIXELS
    backbone_config = model.config.backbone_config
    if isinstance(backbone_config, PlainViTConfig):
        limit = min(limit, _MAX_PATCHES * backbone_config.patch_size**2)
    if height * width <= limit:
        return pixel_values
    factor = (limit / (height * width)) ** 0.5
    size = max(1, int(height * factor)), max(1, int(width * factor))
    resized = nn.functional.interpolate(pixel_values.float(), size=size, mode="bilinear", antialias=True)
    return resized.to(pixel_values.dtype)


def _coverage(padded_size: Sequence[int], pixel_values: torch.Tensor) -> tuple[float, float]:
    """Return the extent of a map in units of the height and width of the image, which is above 1 after padding."""
    height, width = pixel_values.shape[-2:]
    return padded_size[0] / height, padded_size[1] / width


@torch.inference_mode()
def _run(predictor: Predictor, image: Image.Image) -> tuple[Any, tuple[float, float]]:
    """Return the output of `decode` for an image, and the extent of its maps as [`_coverage`] does."""
    pixel_values = _pixel_values(predictor, image)
    encoded = predictor.model.encode(pixel_values)
    return predictor.model.decode(encoded), _coverage(encoded.padded_size, pixel_values)


def _pixel(choice: Choice, height: int, width: int) -> tuple[float, float]:
    return choice.point[0] * width, choice.point[1] * height


@contextmanager
def _attention_weights(attention: Any) -> Iterator[list[torch.Tensor]]:
    """
    Collects what one attention module gives `(batch_size, num_heads, num_tokens, num_tokens)`. The other layers keep
    their fast implementation, so that the weights of a single layer are held at a time.
    """
    config, implementation = attention.config, attention.config._attn_implementation
    weights: list[torch.Tensor] = []

    def be_eager(module: nn.Module, inputs: Any) -> None:
        config._attn_implementation = "eager"

    def collect(module: nn.Module, inputs: Any, outputs: Any) -> None:
        config._attn_implementation = implementation
        weights.append(outputs[1])

    hooks = [attention.register_forward_pre_hook(be_eager), attention.register_forward_hook(collect)]
    try:
        yield weights
    finally:
        config._attn_implementation = implementation
        for hook in hooks:
            hook.remove()


def _patch_grid(pixel_values: torch.Tensor, patch_size: int) -> tuple[tuple[int, int], tuple[float, float]]:
    """Rows and columns of patches, and how much of the image they cover."""
    rows, columns = (-(-side // patch_size) for side in pixel_values.shape[-2:])
    return (rows, columns), _coverage((rows * patch_size, columns * patch_size), pixel_values)


@torch.inference_mode()
def _encoder_attention(predictor: Predictor, image: Image.Image, choice: Choice) -> Image.Image:
    model, pixel_values = predictor.model, _pixel_values(predictor, image)
    config = model.config.backbone_config
    layers = dict(_encoder_layers(model))
    number = choice.layer or max(layers)
    with _attention_weights(layers[number].attention) as weights:
        model.encode(pixel_values)
    patch_size = config.patch_size
    if config.query_downsampling_layer is not None and number > config.query_downsampling_layer:
        patch_size *= 2  # behind the layer that halves the grid
    grid, coverage = _patch_grid(pixel_values, patch_size)
    point = _pixel(choice, image.height, image.width)
    patch = patch_at(point, (image.height, image.width), grid, coverage)
    heat_map = attention_map(weights[0][0], grid, patch=patch, num_prefix_tokens=config.num_prefix_tokens)
    return _mark(overlay_heat_map(image, heat_map, coverage=coverage), point)


def _mark(picture: Image.Image, point: tuple[float, float]) -> Image.Image:
    """Draws a ring around a point `(x, y)`."""
    draw = ImageDraw.Draw(picture)
    radius = max(4.0, max(picture.size) / 80)
    for size, color in ((radius + 1, "black"), (radius, "white")):
        box = (point[0] - size, point[1] - size, point[0] + size, point[1] + size)
        draw.ellipse(box, outline=color, width=max(2, round(radius / 3)))
    return picture


@torch.inference_mode()
def _decoder_attention(predictor: Predictor, image: Image.Image, choice: Choice) -> Image.Image:
    with _attention_weights(predictor.model.decoder.encoder.layers[-1].attention) as weights:
        outputs, coverage = _run(predictor, image)
    heat_map = attention_map(weights[0][0], tuple(outputs.logits.shape[-2:]), class_index=choice.class_index)
    return overlay_heat_map(image, heat_map, coverage=coverage)


@torch.inference_mode()
def _region(predictor: Predictor, image: Image.Image, choice: Choice) -> Image.Image:
    outputs, coverage = _run(predictor, image)
    size = image.height, image.width
    token = patch_at(_pixel(choice, *size), size, tuple(outputs.affinity.shape[-2:]), coverage)
    return draw_regions(image, outputs.affinity[0], [token], coverage=coverage)


@torch.inference_mode()
def _mask(predictor: Predictor, image: Image.Image, choice: Choice) -> Image.Image:
    outputs, coverage = _run(predictor, image)
    mask = outputs.masks_queries_logits[0, choice.class_index].float().sigmoid()
    return overlay_heat_map(image, mask, coverage=coverage, limits=(0, 1))


def _points(predictor: Predictor, image: Image.Image, choice: Choice) -> Image.Image:
    pixel_values = _pixel_values(predictor, image)
    sampled = sampled_points(predictor.model, pixel_values, _pixel(choice, *pixel_values.shape[-2:]))
    return draw_sampled_points(_panel(image), sampled)


def _panel(image: Image.Image) -> Image.Image:
    """The image in a size of which several fit side by side."""
    panel = image.copy()
    panel.thumbnail((_PANEL_EDGE, _PANEL_EDGE))
    return panel


@torch.inference_mode()
def _boundaries(predictor: Predictor, image: Image.Image, choice: Choice) -> Image.Image:
    outputs, coverage = _run(predictor, image)
    return draw_boundaries(image, outputs.boundary_logits[0], coverage=coverage)


@torch.inference_mode()
def _directions(predictor: Predictor, image: Image.Image, choice: Choice) -> Image.Image:
    outputs, coverage = _run(predictor, image)
    return draw_directions(image, outputs.boundary_logits[0], outputs.direction_logits[0], coverage=coverage)


@torch.inference_mode()
def _pyramid(predictor: Predictor, image: Image.Image, choice: Choice) -> Image.Image:
    model, pixel_values = predictor.model, _pixel_values(predictor, image)
    feature_maps = [feature_map[0] for feature_map in model.encode(pixel_values).feature_maps]
    panel = _panel(image)
    return pyramid_picture(feature_maps, (panel.height, panel.width))


__all__ = ["Choice", "MethodView", "method_views"]
