# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Overlays, legends and panels say what the label map says."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_segmodels.visualization import add_legend, class_shares, color_label_map, legend, overlay, side_by_side


PALETTE = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=np.uint8)
NAMES = {0: "sky", 1: "tree", 2: "road"}


@pytest.fixture
def label_map() -> np.ndarray:
    label_map = np.zeros((20, 30), dtype=np.int64)
    label_map[10:, :15] = 1
    label_map[10:, 15:] = 255
    return label_map


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


def test_overlay_mixes_image_and_color_and_leaves_ignored_pixels(image, label_map):
    before = np.asarray(image).copy()
    mixed = np.asarray(overlay(image, label_map, PALETTE, alpha=0.4)).astype(float)
    expected = 0.6 * before + 0.4 * np.array([255.0, 0, 0])
    assert np.abs(mixed - expected)[:10].max() <= 1
    assert (mixed[10:, 15:] == before[10:, 15:]).all()
    assert (np.asarray(image) == before).all()


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_overlay_at_the_ends_of_alpha(image, label_map, alpha):
    mixed = np.asarray(overlay(image, label_map, PALETTE, alpha=alpha))
    expected = np.asarray(color_label_map(label_map, PALETTE) if alpha else image)
    assert (mixed[:10] == expected[:10]).all()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_overlay_takes_any_image_mode(image, label_map, mode):
    assert overlay(image.convert(mode), label_map, PALETTE).mode == "RGB"


@pytest.mark.parametrize("convert", [torch.from_numpy, lambda x: Image.fromarray(x.astype(np.uint8)), np.int32])
def test_label_maps_of_torch_pil_and_numpy_are_the_same(label_map, convert):
    expected = np.asarray(color_label_map(label_map, PALETTE))
    assert (np.asarray(color_label_map(convert(label_map), PALETTE)) == expected).all()


def test_more_than_256_classes_have_their_own_colors():
    palette = np.arange(900).reshape(300, 3).astype(np.uint8)
    labels = np.array([[0, 254, 255, 256, 299]])
    assert (np.asarray(color_label_map(labels, palette, ignore_index=None))[0] == palette[labels[0]]).all()
    assert (np.asarray(color_label_map(labels, palette, ignore_index=255))[0, 2] == 0).all()


def test_a_label_without_a_color_is_named(label_map):
    with pytest.raises(ValueError, match=r"labels \[255\].*0 to 2"):
        color_label_map(label_map, PALETTE, ignore_index=None)
    with pytest.raises(ValueError, match="-1"):
        color_label_map(label_map - 1, PALETTE)


def test_what_cannot_be_a_label_map_is_refused(image, label_map):
    with pytest.raises(ValueError, match="shape"):
        overlay(image, np.zeros((1, 20, 30), dtype=int), PALETTE)
    with pytest.raises(ValueError, match="float32"):
        overlay(image, np.zeros((20, 30), dtype=np.float32), PALETTE)
    with pytest.raises(ValueError, match="target_sizes"):
        overlay(image, label_map[:10], PALETTE)
    with pytest.raises(ValueError, match="alpha"):
        overlay(image, label_map, PALETTE, alpha=50)


def test_class_shares_are_of_the_pixels_that_count(label_map):
    shares = class_shares(label_map, NAMES)
    assert [(item.index, item.name, item.pixels) for item in shares] == [(0, "sky", 300), (1, "tree", 150)]
    assert [item.share for item in shares] == pytest.approx([2 / 3, 1 / 3])
    assert class_shares(np.full((2, 2), 255), NAMES) == []


def test_legend_shows_each_color_and_grows_with_the_classes(label_map):
    shares = class_shares(label_map, NAMES)
    picture = legend(shares, PALETTE)
    colors = {color for _, color in picture.getcolors(1 << 20)}
    assert {(255, 0, 0), (0, 255, 0)} <= colors
    assert (0, 0, 255) not in colors
    assert legend(shares[:1], PALETTE).height < picture.height
    assert legend(shares, PALETTE, font_size=32).width > picture.width


def test_legend_of_many_classes_stays_within_its_columns():
    labels = np.arange(150).repeat(4).reshape(20, 30)
    shares = class_shares(labels, {index: f"class number {index}" for index in range(150)})
    palette = np.zeros((150, 3), dtype=np.uint8)
    one_column = legend(shares, palette)
    two_columns = legend(shares, palette, height=300)
    assert two_columns.height <= 300 < one_column.height
    assert two_columns.width < 2.5 * one_column.width


def test_legend_without_any_class_is_an_image():
    assert legend([], PALETTE).size > (0, 0)


def test_add_legend_keeps_the_image_at_the_left(image, label_map):
    picture = add_legend(image, class_shares(label_map, NAMES), PALETTE)
    assert picture.width > image.width
    assert (np.asarray(picture.crop((0, 0, *image.size))) == np.asarray(image)).all()


def test_side_by_side_puts_images_next_to_each_other(image):
    panel = side_by_side([image, image.resize((10, 40))], gap=5)
    assert panel.size == (45, 40)
    assert (np.asarray(panel)[:20, :30] == np.asarray(image)).all()
    assert (np.asarray(panel)[:, 30:35] == 255).all()
    assert side_by_side([image, image], titles=["image", "labels"]).height > image.height
    with pytest.raises(ValueError, match="title"):
        side_by_side([image], titles=["one", "two"])
