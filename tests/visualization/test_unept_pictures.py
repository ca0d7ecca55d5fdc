# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Sampled points, pyramids, boundaries and directions lie where the model has them."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_segmodels import PlainViTConfig, UNEPTConfig, UNEPTForSemanticSegmentation
from hf_segmodels.visualization import (
    DIRECTION_COLORS,
    draw_boundaries,
    draw_directions,
    draw_sampled_points,
    feature_picture,
    pyramid_picture,
    sampled_points,
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    encoder = PlainViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8, out_indices=[1, 2]
    )
    config = UNEPTConfig(
        backbone_config=encoder, num_labels=3, hidden_size=16, num_attention_heads=4, num_points=3, image_size=32
    )
    return UNEPTForSemanticSegmentation(config).eval()


def test_points_of_an_untrained_model_lie_on_rays_around_the_query(model):
    # 30 x 50 pixels are padded to 32 x 56, the query at (21, 11) has its center at (20, 12)
    sampled = sampled_points(model, torch.randn(1, 3, 30, 50), (21.0, 11.0))
    assert sampled.query == pytest.approx((20, 12), abs=1e-4)
    assert sampled.points.shape == (2, 4 * 3, 2)
    # heads look right, down, left and up by 1 to 3 cells of 8 pixels
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    rays = (directions[:, None] * torch.arange(1.0, 4.0)[:, None] * 8).flatten(0, 1)
    expected = (torch.tensor([20.0, 12.0]) + rays).expand(2, -1, -1)
    torch.testing.assert_close(sampled.points, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(sampled.weights, torch.full((2, 12), 1 / 6))


def test_points_are_drawn_where_they_are(model):
    sampled = sampled_points(model, torch.randn(1, 3, 32, 32), (12.0, 20.0))
    picture = draw_sampled_points(Image.new("RGB", (320, 320)), sampled)
    pixels = np.asarray(picture)
    first = pixels[-320:, :320]
    green = np.argwhere((first == (0, 208, 32)).all(-1)).mean(0)
    assert green == pytest.approx((200, 120), abs=6)
    # one cell to the right
    assert first[200, 200, 0] == 255


def test_one_image_and_a_point_in_it(model):
    with pytest.raises(ValueError, match="must be one image"):
        sampled_points(model, torch.randn(2, 3, 32, 32), (1.0, 1.0))
    with pytest.raises(ValueError, match="outside the image of height 32 and width 32"):
        sampled_points(model, torch.randn(1, 3, 32, 32), (32.0, 1.0))


def test_principal_components_tell_regions_apart():
    feature_map = torch.randn(8, 6, 6, generator=torch.Generator().manual_seed(0)) * 0.01
    feature_map[2, :, 3:] += 5
    pixels = np.asarray(feature_picture(feature_map)).astype(int)
    assert pixels.shape == (6, 6, 3)
    assert abs(pixels[:, :3, 0].mean() - pixels[:, 3:, 0].mean()) > 200
    assert np.array_equal(pixels, np.asarray(feature_picture(feature_map)))
    assert feature_picture(torch.ones(4, 1, 2), size=(10, 20)).size == (20, 10)
    assert pyramid_picture([feature_map, feature_map[:, ::2, ::2]], (30, 40)).width >= 80
    with pytest.raises(ValueError, match=r"at least 3 channels, got \(2, 4, 4\)"):
        feature_picture(torch.ones(2, 4, 4))


def test_boundaries_and_directions():
    boundary_logits = torch.zeros(2, 4, 4)
    boundary_logits[1] = -9
    boundary_logits[1, :, 2:] = 9
    direction_logits = torch.zeros(8, 4, 4)
    direction_logits[4] = 1
    image = Image.new("RGB", (40, 40), "gray")
    pixels = np.asarray(draw_directions(image, boundary_logits, direction_logits, alpha=1.0))
    assert (pixels[:, -1] == DIRECTION_COLORS[4]).all()
    assert (pixels[:, 0] == 128).all()
    heat = np.asarray(draw_boundaries(image, boundary_logits)).astype(int)
    assert heat[:, -1].sum() > heat[:, 0].sum()
    # half of the maps lie outside the image
    pixels = np.asarray(draw_directions(image, boundary_logits, direction_logits, alpha=1.0, coverage=(1.0, 2.0)))
    assert (pixels[:, 15] == 128).all()
    with pytest.raises(
        ValueError, match=r"\(8, h, w\) of one image, got \(1, 8, 4, 4\): give `outputs.direction_logits\[0\]`"
    ):
        draw_directions(image, boundary_logits, direction_logits[None])
    with pytest.raises(ValueError, match=r"`coverage` \(0.5, 1.0\) must be at least 1"):
        draw_directions(image, boundary_logits, direction_logits, coverage=(0.5, 1.0))
