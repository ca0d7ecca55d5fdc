# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Scores by the size of objects, combined scores, and scores of several processes."""

import math

import numpy as np
import pytest
import torch

from hf_segmodels.metrics import BoundaryIoU, ConfusionMatrix, ObjectSizes, SegmentationScores, sum_over_processes


OPTIONS = {"boundary_iou": True, "dilation_ratio": 0.05, "object_sizes": True}


def random_maps(num_labels, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    references = torch.randint(0, num_labels, shape, generator=generator)
    predictions = references.where(torch.rand(shape, generator=generator) < 0.7, 0)
    references[:, :3] = 255
    return predictions, references


def assert_same_scores(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12, nan_ok=True), name


# By size


def test_sizes_are_mean_shares_of_the_images_that_hold_a_class():
    sizes = ObjectSizes(4)
    first = np.zeros((10, 10), dtype=np.uint8)
    first[:2] = 1
    second = np.full((5, 20), 255, dtype=np.uint8)
    second[0] = 1
    second[1, :10] = 2
    for reference in (first, second):
        sizes.update(np.zeros_like(reference), reference)
    scores = sizes.compute([0.1, 0.2, 0.3, math.nan])
    assert scores["per_category_size"] == pytest.approx([0.8, (0.2 + 0.2) / 2, 0.1, math.nan], nan_ok=True)
    assert [scores[f"mean_iou_{name}"] for name in ("small", "medium", "large")] == pytest.approx([0.3, 0.2, 0.1])


def test_thirds_of_the_classes_average_to_the_mean_as_in_the_paper():
    references = torch.cat([torch.full((index + 1,), index) for index in range(150)])[None]
    predictions = references.where(torch.rand(references.shape, generator=torch.Generator().manual_seed(0)) < 0.6, 149)
    scores = SegmentationScores(150, object_sizes=True)
    scores.update(predictions, references)
    results = scores.compute()
    iou = results["per_category_iou"]
    groups = [results[f"mean_iou_{name}"] for name in ("small", "medium", "large")]
    assert groups == pytest.approx([np.mean(iou[start : start + 50]) for start in (0, 50, 100)])
    assert np.mean(groups) == pytest.approx(results["mean_iou"])


def test_fewer_classes_than_groups():
    sizes = ObjectSizes(5)
    sizes.update([[0, 0, 1]], [[0, 0, 1]])
    scores = sizes.compute([0.5, 0.25, math.nan, 0.0, math.nan])
    assert (scores["mean_iou_small"], scores["mean_iou_medium"]) == (0.25, 0.5)
    assert math.isnan(scores["mean_iou_large"])


def test_sizes_do_not_depend_on_batches():
    predictions, references = random_maps(6, 4, 20, 30)
    whole, parts = ObjectSizes(6), ObjectSizes(6)
    whole.update(predictions, references)
    for prediction, reference in zip(predictions, references, strict=True):
        other = ObjectSizes(6)
        other.update(prediction, reference.to(torch.uint8))
        parts.merge(other)
    torch.testing.assert_close(parts.counts, whole.counts)
    with pytest.raises(ValueError, match=r"\(..., height, width\)"):
        whole.update([0, 1], [0, 1])


# Together


def test_all_scores_are_those_of_their_parts():
    predictions, references = random_maps(6, 4, 40, 30)
    scores, plain = SegmentationScores(6, **OPTIONS), SegmentationScores(6)
    matrix, boundaries = ConfusionMatrix(6), BoundaryIoU(6, dilation_ratio=0.05)
    for part in (scores, plain, matrix, boundaries):
        part.update(predictions, references)
    found = scores.compute()
    assert_same_scores({name: found[name] for name in matrix.compute()}, matrix.compute())
    assert_same_scores({name: found[name] for name in boundaries.compute()}, boundaries.compute())
    assert_same_scores(plain.compute(), matrix.compute())
    assert len(found) == 5 + 2 + 4


def test_merged_parts_are_the_whole():
    predictions, references = random_maps(6, 4, 40, 30)
    whole, first, second = (SegmentationScores(6, **OPTIONS) for _ in range(3))
    whole.update(predictions, references)
    first.update(predictions[:1], references[:1])
    second.update(predictions[1:], references[1:])
    first.merge(second)
    assert_same_scores(first.compute(), whole.compute())
    for other in (SegmentationScores(6), SegmentationScores(5, **OPTIONS), SegmentationScores(6, 0, **OPTIONS)):
        with pytest.raises(ValueError, match="cannot be merged"):
            first.merge(other)
    with pytest.raises(ValueError, match="cannot be merged"):
        ConfusionMatrix(6).merge(ObjectSizes(6))


def test_without_processes_there_is_nothing_to_sum():
    scores = SegmentationScores(6)
    assert sum_over_processes(scores) is scores
    assert sum_over_processes(None) is None


def _count_in_one_of_three(rank, store):
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=3)
    predictions, references = random_maps(6, 4, 40, 30)
    whole = SegmentationScores(6, **OPTIONS)
    whole.update(predictions, references)
    # the last one has nothing to count
    own = SegmentationScores(6, **OPTIONS) if rank < 2 else None
    if own is not None:
        own.update(predictions[rank::2], references[rank::2])
        before = [part.counts.clone() for part in own.parts]
    assert_same_scores(sum_over_processes(own).compute(), whole.compute())
    if own is not None:
        # they can be summed again
        assert all(torch.equal(part.counts, counts) for part, counts in zip(own.parts, before, strict=True))
        assert_same_scores(sum_over_processes(own).compute(), whole.compute())
    else:
        sum_over_processes(None)

    assert sum_over_processes(None) is None
    with pytest.raises(ValueError, match="have different settings"):
        sum_over_processes(SegmentationScores(6, boundary_iou=rank == 0))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_add_up(tmp_path):
    torch.multiprocessing.spawn(_count_in_one_of_three, args=(str(tmp_path / "store"),), nprocs=3)
