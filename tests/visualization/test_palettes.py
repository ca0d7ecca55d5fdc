# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Classes get the colors of their data set, or generated ones that differ."""

import numpy as np
import pytest
from transformers import SegformerConfig

from hf_segmodels.labels import load_labels
from hf_segmodels.visualization import generate_palette, palette_for


def test_generated_colors_differ_and_a_longer_palette_begins_with_a_shorter():
    palette = generate_palette(150)
    assert palette.shape == (150, 3)
    assert palette.dtype == np.uint8
    assert len(np.unique(palette, axis=0)) == 150
    assert (generate_palette(19) == palette[:19]).all()
    distance = np.abs(palette[:20, None].astype(int) - palette[None, :20].astype(int)).sum(-1) + 1000 * np.eye(20)
    assert distance.min() >= 50
    assert min(palette[:20].sum(-1).min(), (255 * 3 - palette[:20].astype(int).sum(-1)).min()) >= 50


def test_more_classes_than_colors_repeat():
    assert generate_palette(5000).shape == (5000, 3)


def test_the_data_set_is_recognized_by_its_class_names():
    names, palette = load_labels("cityscapes")
    config = SegformerConfig(id2label=dict(enumerate(names)))
    assert (palette_for(config) == palette).all()
    assert (palette_for(SegformerConfig(id2label=dict(enumerate(names[:-1])))) == generate_palette(18)).all()


def test_a_palette_in_the_configuration_goes_first():
    config = SegformerConfig(num_labels=2, palette=[[1, 2, 3], [4, 5, 6]])
    assert palette_for(config).tolist() == [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("palette", "message"),
    [([[1, 2, 3]], "2 classes"), ([[1, 2], [3, 4]], "shape"), ([[0, 0, 0], [0, 0, 256]], "0 to 255")],
)
def test_a_palette_that_does_not_fit_is_refused(palette, message):
    with pytest.raises(ValueError, match=message):
        palette_for(SegformerConfig(num_labels=2, palette=palette))
