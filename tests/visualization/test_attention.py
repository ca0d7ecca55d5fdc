# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Attention maps pick the right token's row, and heat maps lie where the patches are."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_segmodels import PlainViTConfig, SegmenterConfig, SegmenterForSemanticSegmentation
from hf_segmodels.visualization import attention_map, overlay_heat_map, patch_at


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    encoder = PlainViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        use_distillation_token=True,
    )
    config = SegmenterConfig(
        backbone_config=encoder, num_labels=3, decoder_num_attention_heads=2, attn_implementation="eager"
    )
    return SegmenterForSemanticSegmentation(config).eval()


def test_rows_of_encoder_and_decoder(model):
    outputs = model(torch.randn(2, 3, 24, 40), output_attentions=True)
    grid = tuple(outputs.logits.shape[-2:])
    assert grid == (3, 5)

    encoder = outputs.attentions[-1]
    found = attention_map(encoder, grid, patch=(1, 2), num_prefix_tokens=2)
    expected = encoder.mean(1)[:, 2 + 1 * 5 + 2, 2:].reshape(2, 3, 5)
    torch.testing.assert_close(found, expected)
    found = attention_map(encoder, grid, token=0, num_prefix_tokens=2, head=1)
    torch.testing.assert_close(found, encoder[:, 1, 0, 2:].reshape(2, 3, 5))

    decoder = outputs.decoder_attentions[0]
    found = attention_map(decoder, grid, class_index=2)
    torch.testing.assert_close(found, decoder.mean(1)[:, 15 + 2, :15].reshape(2, 3, 5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch": (0, 0), "num_prefix_tokens": 9}, "does not fit"),
        ({"patch": (3, 0)}, "outside"),
        ({"class_index": 1}, "class tokens"),
        ({"token": 13}, "13"),
        ({}, "exactly one"),
        ({"patch": (0, 0), "token": 1}, "exactly one"),
    ],
)
def test_tokens_that_do_not_exist_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        attention_map(torch.ones(2, 13, 13), (3, 4), **arguments)


def test_heat_map_is_brightest_where_the_value_is_highest():
    values = torch.zeros(4, 4)
    values[0, 3] = 1
    picture = np.asarray(overlay_heat_map(Image.new("RGB", (80, 40), "gray"), values).convert("L")).astype(int)
    row, column = np.unravel_index(picture.argmax(), picture.shape)
    assert row < 10
    assert column >= 60
    assert picture[30, 10] < picture[row, column]


def test_heat_map_of_a_padded_image_is_cut_at_the_bottom_and_right():
    values = np.zeros((2, 2))
    values[1] = 1  # the lower half of the padded image: below the upper two thirds of it lies no image
    image = Image.new("RGB", (40, 40), "gray")
    padded = np.asarray(overlay_heat_map(image, values, alpha=1, coverage=(1.5, 1.0)))
    whole = np.asarray(overlay_heat_map(image.resize((40, 60)), values, alpha=1))[:40]
    assert np.abs(padded.astype(int) - whole.astype(int)).max() <= 2


def test_constant_and_wrongly_shaped_heat_maps():
    image = Image.new("RGB", (8, 8))
    assert len(overlay_heat_map(image, np.ones((2, 2))).getcolors()) == 1
    with pytest.raises(ValueError, match="shape"):
        overlay_heat_map(image, np.ones((1, 2, 2)))
    with pytest.raises(ValueError, match="coverage"):
        overlay_heat_map(image, np.ones((2, 2)), coverage=(0.9, 1.0))


def test_patch_at_counts_rows_from_the_top():
    assert patch_at((79, 0), (40, 80), (2, 4)) == (0, 3)
    assert patch_at((0, 39), (40, 80), (2, 4)) == (1, 0)
    assert patch_at((0, 39), (40, 80), (3, 4), coverage=(1.5, 1.0)) == (1, 0)
    with pytest.raises(ValueError, match="outside"):
        patch_at((80, 0), (40, 80), (2, 4))
