# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Boundary IoU: equal to masks and erosions of each class."""

import math

import numpy as np
import pytest
import torch

from hf_segmodels.metrics import BoundaryIoU
from hf_segmodels.metrics.boundary_iou import near_contours


def random_maps(num_labels, *shape, seed=0):
    """Label maps of rectangles with a little noise, and predictions that differ along edges and inside."""
    generator = np.random.default_rng(seed)
    references = np.zeros(shape, dtype=np.int64)
    for reference in references:
        for _ in range(12):
            y, x = generator.integers(0, shape[1]), generator.integers(0, shape[2])
            reference[y : y + 25, x : x + 40] = generator.integers(0, num_labels)
    predictions = np.roll(references, (1, -2), axis=(1, 2))
    predictions[generator.random(shape) < 0.01] = 1
    references[:, 30:40, 10:50] = 255
    return predictions, references


def eroded_scores(predictions, references, num_labels, dilation_ratio):
    """Boundary by definition: the mask without its erosion by 3x3 pixels, repeated `distance` times."""
    ndimage = pytest.importorskip("scipy.ndimage")
    counts = np.zeros((2, num_labels))
    for prediction, reference in zip(predictions, references, strict=True):
        distance = max(1, round(dilation_ratio * math.hypot(*reference.shape)))
        is_valid = reference != 255
        for label in range(num_labels):
            predicted, labeled = (
                mask & ~ndimage.binary_erosion(mask, np.ones((3, 3)), iterations=distance, border_value=0)
                for mask in ((prediction == label) & is_valid, reference == label)
            )
            counts[:, label] += (predicted & labeled).sum(), (predicted | labeled).sum()
    with np.errstate(invalid="ignore"):
        return counts[0] / counts[1]


@pytest.mark.parametrize("dilation_ratio", [0.005, 0.02, 0.1, 0.9])
@pytest.mark.parametrize("size", [(96, 130), (61, 47)])
def test_equals_erosion_of_masks(dilation_ratio, size):
    predictions, references = random_maps(6, 3, *size)
    boundaries = BoundaryIoU(8, dilation_ratio=dilation_ratio)
    boundaries.update(predictions, references)
    expected = eroded_scores(predictions, references, 8, dilation_ratio)
    scores = boundaries.compute()
    assert np.isnan(expected).any()
    assert scores["per_category_boundary_iou"] == pytest.approx(expected.tolist(), abs=1e-12, nan_ok=True)
    assert scores["mean_boundary_iou"] == pytest.approx(np.nanmean(expected), abs=1e-12)
    assert 0 < scores["mean_boundary_iou"] < 1


def test_distance_is_that_of_a_square_and_the_border_is_contour():
    labels = torch.zeros(1, 9, 9, dtype=torch.uint8)
    assert near_contours(labels, 2, outside=5)[0].sum() == 81 - 25
    labels[0, 4, 4] = 1
    near = near_contours(labels, 1, outside=5)[0]
    assert near[3:6, 3:6].all()
    assert not near[2, 2:7].any()


def test_correct_predictions_are_perfect_for_any_prediction_of_ignored_pixels():
    _, references = random_maps(6, 2, 80, 90)
    predictions = np.where(references == 255, 3, references)
    boundaries = BoundaryIoU(6)
    boundaries.update(predictions, references)
    assert boundaries.compute()["mean_boundary_iou"] == 1


def test_is_harsher_than_iou_on_edges_of_large_objects():
    references = np.zeros((200, 200), dtype=np.int64)
    references[40:160, 40:160] = 1
    boundaries = BoundaryIoU(2)
    boundaries.update(np.roll(references, 3, axis=0), references)
    square = boundaries.compute()["per_category_boundary_iou"][1]
    # IoU is 117 / 123; two frames of 6 pixels, one 3 pixels lower than the other, have a lower IoU
    assert square < 0.7 < 117 / 123


def test_counts_do_not_depend_on_batches():
    predictions, references = random_maps(6, 4, 50, 60)
    whole, first, second = BoundaryIoU(6), BoundaryIoU(6), BoundaryIoU(6)
    whole.update(predictions.reshape(2, 2, 50, 60), references.reshape(2, 2, 50, 60))
    first.update(predictions[0], references[0].astype(np.uint8))
    second.update(torch.from_numpy(predictions[1:]), torch.from_numpy(references[1:]))
    first.merge(second)
    assert torch.equal(first.counts, whole.counts)


def test_many_classes():
    predictions, references = random_maps(6, 1, 50, 60)
    few, many = BoundaryIoU(6), BoundaryIoU(400)
    few.update(predictions, references)
    many.update(
        np.where(references == 255, predictions, predictions + 300), np.where(references == 255, 255, references + 300)
    )
    assert torch.equal(few.counts, many.counts[:, 300:306])


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="`dilation_ratio` must be above 0"):
        BoundaryIoU(2, dilation_ratio=0)
    boundaries = BoundaryIoU(2)
    with pytest.raises(ValueError, match="Labels hold values from 0 to 2"):
        boundaries.update([[0, 1]], [[0, 2]])
    with pytest.raises(ValueError, match=r"\(..., height, width\), got \(2,\)"):
        boundaries.update([0, 1], [0, 1])
    with pytest.raises(ValueError, match="cannot be merged"):
        boundaries.merge(BoundaryIoU(2, dilation_ratio=0.01))
    boundaries.update(np.zeros((0, 5, 5), dtype=int), np.zeros((0, 5, 5), dtype=int))
    assert math.isnan(boundaries.compute()["mean_boundary_iou"])
