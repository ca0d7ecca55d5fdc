# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Region maps hold the affinity, and regions are drawn over their part of the image."""

import numpy as np
import pytest
import torch
from PIL import Image

from hf_segmodels.regproxy.painting import neighbors
from hf_segmodels.visualization import draw_regions, region_maps


@pytest.fixture
def affinity() -> torch.Tensor:
    """Of an image of 3 x 4 tokens with cells of 2 x 3 pixels, softmaxed inside the image."""
    scores = torch.randn(1, 9, 2, 3, 3, 4, generator=torch.Generator().manual_seed(0))
    _, is_inside = neighbors(3, 4, scores.device)
    return scores.masked_fill(~is_inside[:, None, None], -torch.inf).softmax(dim=1)


def test_maps_of_all_tokens_hold_the_affinity_of_each_pixel(affinity):
    tokens = [(row, column) for row in range(3) for column in range(4)]
    maps = region_maps(affinity[0], tokens)
    assert maps.shape == (12, 6, 12)
    torch.testing.assert_close(maps.sum(dim=0), torch.ones(6, 12))
    expected = torch.zeros(12, 6, 12)
    for row, column in tokens:
        cell = (slice(2 * row, 2 * row + 2), slice(3 * column, 3 * column + 3))
        for neighbor in range(9):
            other_row, other_column = row + neighbor // 3 - 1, column + neighbor % 3 - 1
            if 0 <= other_row < 3 and 0 <= other_column < 4:
                expected[4 * other_row + other_column][cell] = affinity[0, neighbor, :, :, row, column]
    torch.testing.assert_close(maps, expected)


def test_regions_lie_over_their_part_of_the_image(affinity):
    image = Image.fromarray(np.zeros((60, 120, 3), np.uint8))
    blank = np.asarray(draw_regions(image, affinity[0], []))
    picture = np.asarray(draw_regions(image, affinity[0], [(0, 0)]))
    assert picture.shape == (60, 120, 3)
    changed = (picture != blank).any(axis=2)
    # the token's neighborhood ends after two cells; bilinear scaling reaches half a pixel of the map further
    assert changed[:40, :60].any()
    assert not changed[46:].any()
    assert not changed[:, 66:].any()
    frame = (picture == 255).all(axis=2)
    assert frame[0, :30].all()
    assert frame[19, :30].all()

    half = np.asarray(draw_regions(image, affinity[0], [(0, 0)], coverage=(1.5, 1.0)))
    assert (half == 255).all(axis=2)[29, :30].all()


@pytest.mark.parametrize(
    ("shape", "token", "message"),
    [((1, 9, 2, 2, 3, 4), (0, 0), "outputs.affinity"), ((9, 2, 2, 3, 4), (3, 0), "outside the grid of 3 rows")],
)
def test_what_does_not_fit_is_refused(shape, token, message):
    with pytest.raises(ValueError, match=message):
        region_maps(torch.zeros(shape), [token])
