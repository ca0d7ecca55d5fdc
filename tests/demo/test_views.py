# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""The views of each method, and that they show the selected point, class and layer."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from hf_segmodels.demo.sample import DEMO_MODEL
from hf_segmodels.demo.views import ViewSelection, _pixel_values, method_views
from hf_segmodels.inference.predictor import load_predictor
from hf_segmodels.visualization import attention_map, overlay_heat_map


@pytest.fixture(scope="module")
def image() -> Image.Image:
    small = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((70, 45), Image.Resampling.BICUBIC)


EXPECTED = {
    "segmenter": ["Attention from a point", "Attention of a class"],
    "segvit": ["Mask of a class", "Attention from a point"],
    "regproxy": ["Region at a point", "Attention from a point"],
    "unept": ["Sampled points", "Boundaries", "Directions", "Pyramid", "Attention from a point"],
}


@pytest.mark.parametrize("method", EXPECTED)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_views_of_each_method(method_folders, image, method, dtype):
    predictor = load_predictor(str(method_folders[method]), dtype=dtype)
    before = image.tobytes()
    expected_labels = predictor(image)
    views = method_views(predictor.model)
    assert [view.name for view in views] == EXPECTED[method]
    for view in views:
        pictures = {
            "default": view.draw(predictor, image, ViewSelection()),
            "point": view.draw(predictor, image, ViewSelection(point=(0.99, 0.05))),
            "class": view.draw(predictor, image, ViewSelection(class_index=3)),
        }
        if view.name not in ("Sampled points", "Pyramid"):  # several panels
            assert pictures["default"].size == image.size
        assert len(pictures["default"].getcolors(1 << 20)) > 1
        for needs in ("point", "class"):
            assert (pictures[needs].tobytes() != pictures["default"].tobytes()) == (view.needs == needs), view.name
        for number in view.layers:
            view.draw(predictor, image, ViewSelection(layer=number))
    # views do not change the model
    assert image.tobytes() == before
    assert (predictor(image) == expected_labels).all()
    assert predictor.model.config._attn_implementation == "sdpa"


def test_attention_is_that_of_the_chosen_layer(method_folders, image):
    predictor = load_predictor(str(method_folders["segmenter"]))
    eager = load_predictor(str(method_folders["segmenter"]), attention="eager").model
    pixel_values = predictor.prepare(image)["pixel_values"]
    height, width = pixel_values.shape[-2:]
    rows, columns = -(-height // 8), -(-width // 8)
    with torch.no_grad():
        outputs = eager(pixel_values, output_attentions=True)
    view, class_view = method_views(predictor.model)
    assert view.layers == (1, 2, 3)
    coverage = rows * 8 / height, columns * 8 / width
    for layer in view.layers:
        heat_map = attention_map(outputs.attentions[layer - 1][0], (rows, columns), patch=(0, 0), num_prefix_tokens=1)
        expected = np.asarray(overlay_heat_map(image, heat_map, coverage=coverage)).astype(int)
        found = np.asarray(view.draw(predictor, image, ViewSelection(point=(0, 0), layer=layer))).astype(int)
        # but for the ring around the point
        assert np.abs(found - expected)[12:, 12:].max() <= 1
    heat_map = attention_map(outputs.decoder_attentions[-1][0], (rows, columns), class_index=2)
    expected = np.asarray(overlay_heat_map(image, heat_map, coverage=coverage)).astype(int)
    found = np.asarray(class_view.draw(predictor, image, ViewSelection(class_index=2))).astype(int)
    assert np.abs(found - expected).max() <= 1


def test_attention_of_an_encoder_that_pads_inside(monkeypatch):
    monkeypatch.setattr("hf_segmodels.demo.views._MAX_PATCHES", 4000)
    image = Image.radial_gradient("L").convert("RGB").resize((50, 33))
    predictor = load_predictor(str(DEMO_MODEL))
    pixel_values = predictor.prepare(image)["pixel_values"]
    assert pixel_values.shape[-2:] == (360, 545)
    with torch.no_grad():
        eager = load_predictor(str(DEMO_MODEL), attention="eager").model
        attention = eager(pixel_values, output_attentions=True).attentions[-1][0]
    heat_map = attention_map(attention, (45, 69), patch=(44, 0))
    expected = np.asarray(overlay_heat_map(image, heat_map, coverage=(1, 69 * 8 / 545))).astype(int)
    view = next(view for view in method_views(predictor.model) if view.needs == "point")
    found = np.asarray(view.draw(predictor, image, ViewSelection(point=(0, 0.999)))).astype(int)
    assert np.abs(found - expected)[:20].max() <= 1


def test_shrunk_encoders_have_maps_of_both_grids(method_folders, image):
    predictor = load_predictor(str(method_folders["segvit"]))
    (view,) = (view for view in method_views(predictor.model) if view.needs == "point")
    # the second layer has fewer queries than keys
    assert view.layers == (1, 3)


def test_large_images_are_scaled_down(method_folders, monkeypatch):
    predictor = load_predictor(str(method_folders["segmenter"]))
    image = Image.new("RGB", (400, 200))
    assert _pixel_values(predictor, image).shape == (1, 3, 32, 64)
    monkeypatch.setattr("hf_segmodels.demo.views._MAX_PATCHES", 8)
    assert _pixel_values(predictor, image).shape == (1, 3, 16, 32)
    for view in method_views(predictor.model):
        assert view.draw(predictor, image, ViewSelection()).size == (400, 200)


def test_models_of_transformers_have_none():
    config = SegformerConfig(
        depths=[1] * 4, hidden_sizes=[8] * 4, num_attention_heads=[1] * 4, decoder_hidden_size=8, num_labels=2
    )
    assert method_views(SegformerForSemanticSegmentation(config)) == []
