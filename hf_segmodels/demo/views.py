# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Pictures of how a model works on one image: attention, regions, query masks, sampled points, boundaries. [`method_views`]
lists those that a model supports.
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


# Views run the network on the whole image, and the attention weights of a layer grow with the square of the patches.
_MAX_PATCHES = 3072
_MAX_PIXELS = 1 << 20
_PANEL_EDGE = 480


@dataclass(frozen=True)
class ViewSelection:
    """Point, class and layer that a view shows. A view uses the fields that [`MethodView.needs`] and [`MethodView.layers`] specify."""

    point: tuple[float, float] = (0.5, 0.5)
    """`(x, y)` in units of the image's width and height, in [0, 1)."""
    class_index: int = 0
    layer: int | None = None
    """Encoder layer, counted from 1. Defaults to the last layer with an attention map."""

    def pixel(self, height: int, width: int) -> tuple[float, float]:
        """The point `(x, y)` in an image of this size."""
        return self.point[0] * width, self.point[1] * height


@dataclass(frozen=True)
class MethodView:
    """A kind of picture."""

    name: str
    description: str
    """One sentence for the user."""
    needs: str | None
    """`"point"`, `"class"` or `None`."""
    draw: Callable[[Predictor, Image.Image, ViewSelection], Image.Image]
    layers: tuple[int, ...] = ()
    """Layers to choose from, counted from 1. Empty if the view does not depend on a layer."""


def method_views(model: Any) -> list[MethodView]:
    """
    Return the views of a model, which depend on its method and encoder. Models of transformers itself have no views.

    Args:
        model (`PreTrainedModel`): The model.
    """
    if model.config.model_type not in _METHOD_VIEWS:
        return []
    views = list(_METHOD_VIEWS[model.config.model_type])
    if isinstance(model.config.backbone_config, PlainViTConfig):
        description = "Where the patch at this point looks, in a layer of the encoder (mean over heads)."
        layers = tuple(_encoder_layers(model))
        views.append(MethodView("Attention from a point", description, "point", _encoder_attention, layers))
    if model.config.model_type == "segmenter" and hasattr(model.decoder, "class_embeddings"):
        description = "Where a class looks, in the last layer of the mask transformer (mean over heads)."
        views.append(MethodView("Attention of a class", description, "class", _decoder_attention))
    return views


def _encoder_layers(model: Any) -> dict[int, Any]:
    """Encoder layers with as many queries as keys, by their numbers from 1."""
    layers = enumerate(model.backbone.encoder.layers, start=1)
    return {number: layer for number, layer in layers if layer.downsampling is None}


def _pixel_values(predictor: Predictor, image: Image.Image) -> torch.Tensor:
    """Preprocess an image to `(1, num_channels, height, width)`, scaled down if it would take too much memory."""
    model, limit = predictor.model, _MAX_PIXELS
    pixel_values = predictor.prepare(image)["pixel_values"].to(model.device, model.dtype)
    height, width = pixel_values.shape[-2:]
    if isinstance(model.config.backbone_config, PlainViTConfig):
        limit = min(limit, _MAX_PATCHES * model.config.backbone_config.patch_size**2)
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


@contextmanager
def _attention_weights(attention: Any) -> Iterator[list[torch.Tensor]]:
    """
    Collect the weights `(batch_size, num_heads, num_tokens, num_tokens)` of one attention module. The other layers keep
    their fast implementation, so that only the weights of one layer are in memory.
    """
    config, implementation = attention.config, attention.config._attn_implementation
    weights: list[torch.Tensor] = []

    def use_eager(module: nn.Module, inputs: Any) -> None:
        config._attn_implementation = "eager"

    def collect(module: nn.Module, inputs: Any, outputs: Any) -> None:
        config._attn_implementation = implementation
        weights.append(outputs[1])

    hooks = [attention.register_forward_pre_hook(use_eager), attention.register_forward_hook(collect)]
    try:
        yield weights
    finally:
        config._attn_implementation = implementation
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def _encoder_attention(predictor: Predictor, image: Image.Image, selection: ViewSelection) -> Image.Image:
    model, pixel_values = predictor.model, _pixel_values(predictor, image)
    config, layers = model.config.backbone_config, _encoder_layers(model)
    number = selection.layer or max(layers)
    with _attention_weights(layers[number].attention) as weights:
        model.encode(pixel_values)
    patch_size = config.patch_size
    if config.query_downsampling_layer is not None and number > config.query_downsampling_layer:
        patch_size *= 2  # after the layer that halves the grid
    rows, columns = (-(-side // patch_size) for side in pixel_values.shape[-2:])
    coverage = _coverage((rows * patch_size, columns * patch_size), pixel_values)
    point = selection.pixel(image.height, image.width)
    patch = patch_at(point, (image.height, image.width), (rows, columns), coverage)
    heat_map = attention_map(weights[0][0], (rows, columns), patch=patch, num_prefix_tokens=config.num_prefix_tokens)
    return _mark(overlay_heat_map(image, heat_map, coverage=coverage), point)


def _mark(picture: Image.Image, point: tuple[float, float]) -> Image.Image:
    """Draws a ring around a point `(x, y)`."""
    draw = ImageDraw.Draw(picture)
    radius = max(4.0, max(picture.size) / 80)
    for size, color in ((radius + 1, "black"), (radius, "white")):
        box = (point[0] - size, point[1] - size, point[0] + size, point[1] + size)
        draw.ellipse(box, outline=color, width=max(2, round(radius / 3)))
    return picture


def _decoder_attention(predictor: Predictor, image: Image.Image, selection: ViewSelection) -> Image.Image:
    with _attention_weights(predictor.model.decoder.encoder.layers[-1].attention) as weights:
        outputs, coverage = _run(predictor, image)
    heat_map = attention_map(weights[0][0], tuple(outputs.logits.shape[-2:]), class_index=selection.class_index)
    return overlay_heat_map(image, heat_map, coverage=coverage)


def _region(predictor: Predictor, image: Image.Image, selection: ViewSelection) -> Image.Image:
    outputs, coverage = _run(predictor, image)
    size = image.height, image.width
    token = patch_at(selection.pixel(*size), size, tuple(outputs.affinity.shape[-2:]), coverage)
    return draw_regions(image, outputs.affinity[0], [token], coverage=coverage)


def _mask(predictor: Predictor, image: Image.Image, selection: ViewSelection) -> Image.Image:
    outputs, coverage = _run(predictor, image)
    mask = outputs.masks_queries_logits[0, selection.class_index].float().sigmoid()
    return overlay_heat_map(image, mask, coverage=coverage, limits=(0, 1))


def _points(predictor: Predictor, image: Image.Image, selection: ViewSelection) -> Image.Image:
    pixel_values = _pixel_values(predictor, image)
    sampled = sampled_points(predictor.model, pixel_values, selection.pixel(*pixel_values.shape[-2:]))
    return draw_sampled_points(_panel(image), sampled)


def _panel(image: Image.Image) -> Image.Image:
    """Scale an image down so that several fit side by side."""
    panel = image.copy()
    panel.thumbnail((_PANEL_EDGE, _PANEL_EDGE))
    return panel


def _boundaries(predictor: Predictor, image: Image.Image, selection: ViewSelection) -> Image.Image:
    outputs, coverage = _run(predictor, image)
    return draw_boundaries(image, outputs.boundary_logits[0], coverage=coverage)


def _directions(predictor: Predictor, image: Image.Image, selection: ViewSelection) -> Image.Image:
    outputs, coverage = _run(predictor, image)
    return draw_directions(image, outputs.boundary_logits[0], outputs.direction_logits[0], coverage=coverage)


@torch.inference_mode()
def _pyramid(predictor: Predictor, image: Image.Image, selection: ViewSelection) -> Image.Image:
    model, pixel_values = predictor.model, _pixel_values(predictor, image)
    feature_maps = [feature_map[0] for feature_map in model.encode(pixel_values).feature_maps]
    panel = _panel(image)
    return pyramid_picture(feature_maps, (panel.height, panel.width))


_METHOD_VIEWS = {
    "segmenter": (),
    "segvit": (MethodView("Mask of a class", "The mask that the query of a class attends to.", "class", _mask),),
    "regproxy": (
        MethodView("Region at a point", "How much each pixel belongs to the token at this point.", "point", _region),
    ),
    "unept": (
        MethodView("Sampled points", "Where the query at this point looks, on each scale.", "point", _points),
        MethodView("Boundaries", "How likely each pixel is on a boundary between classes.", None, _boundaries),
        MethodView(
            "Directions",
            "From which direction refinement takes the labels of pixels near boundaries: one hue per direction, red "
            "for left.",
            None,
            _directions,
        ),
        MethodView("Pyramid", "The scales of the encoder; similar colors are similar features.", None, _pyramid),
    ),
}
