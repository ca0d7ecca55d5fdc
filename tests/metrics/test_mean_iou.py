# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Mean IoU: the results of the original code, for any batching of the pixels."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_segmodels.metrics import MEAN_IOU, ConfusionMatrix, SegmentationScores


FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "metrics"


@pytest.fixture
def golden():
    arrays = np.load(FIXTURES / "mean_iou.npz")
    pairs = [(arrays[f"pred{index}"], arrays[f"gt{index}"]) for index in range(len(arrays) // 2)]
    return pairs, json.loads((FIXTURES / "mean_iou.json").read_text())


def assert_golden(scores, expected):
    assert scores["overall_accuracy"] == pytest.approx(expected["aAcc"], abs=1e-12)
    for ours, theirs in (("per_category_iou", "iou"), ("per_category_accuracy", "acc")):
        values = [math.nan if value is None else value for value in expected[theirs]]
        assert scores[ours] == pytest.approx(values, abs=1e-12, nan_ok=True)
    reported = expected["reported"]
    assert round(100 * scores["mean_iou"], 2) == reported["mean_iou"]
    assert round(100 * scores["mean_accuracy"], 2) == reported["mean_accuracy"]
    assert round(100 * scores["overall_accuracy"], 2) == reported["pixel_accuracy"]


def test_equals_the_original_metric(golden):
    pairs, expected = golden
    matrix = ConfusionMatrix(expected["num_classes"], expected["ignore_index"])
    for prediction, label_map in pairs:
        matrix.update(prediction, label_map)
    assert_golden(matrix.compute(), expected)


def test_equals_the_shared_original_metric(shared):
    folder = shared / "golden" / "segmenter"
    arrays, expected = np.load(folder / "mean_iou.npz"), json.loads((folder / "mean_iou.json").read_text())
    matrix = ConfusionMatrix(expected["num_classes"], expected["ignore_index"])
    for index in range(len(arrays) // 2):
        matrix.update(arrays[f"pred{index}"], arrays[f"gt{index}"])
    assert_golden(matrix.compute(), expected)


def published_scores(predictions, references, num_labels, ignore_index):
    """Mean IoU as `evaluate` defines it: areas by image, then sums over all images."""
    areas = np.zeros((4, num_labels))
    for prediction, reference in zip(predictions, references, strict=True):
        prediction, reference = prediction[reference != ignore_index], reference[reference != ignore_index]
        for label in range(num_labels):
            predicted, labeled = prediction == label, reference == label
            areas[:, label] += [
                np.logical_and(predicted, labeled).sum(),
                np.logical_or(predicted, labeled).sum(),
                predicted.sum(),
                labeled.sum(),
            ]
    intersection, union, _, labeled = areas
    with np.errstate(invalid="ignore"):
        iou, accuracy = intersection / union, intersection / labeled
    return {
        "mean_iou": np.nanmean(iou),
        "mean_accuracy": np.nanmean(accuracy),
        "overall_accuracy": intersection.sum() / labeled.sum(),
        "per_category_iou": iou.tolist(),
        "per_category_accuracy": accuracy.tolist(),
    }


@pytest.mark.parametrize(
    ("dtype", "num_labels", "ignore_index"),
    [(dtype, 7, ignore_index) for dtype in (np.int16, np.int32, np.int64) for ignore_index in (255, -100, 3)]
    + [(dtype, 200, 255) for dtype in (np.uint8, np.uint16, np.int64)]
    + [(dtype, 600, 65_000) for dtype in (np.uint16, np.int32)],
)
def test_equals_the_published_definition(dtype, num_labels, ignore_index):
    generator = np.random.default_rng(0)
    # one class does not occur; images of several sizes
    sizes = [(20, 30), (31, 17), (1, 5)]
    references = [generator.integers(0, num_labels - 1, size).astype(dtype) for size in sizes]
    predictions = [
        np.where(generator.random(size) < 0.5, map_, 2).astype(dtype)
        for size, map_ in zip(sizes, references, strict=True)
    ]
    for reference, prediction in zip(references, predictions, strict=True):
        reference[generator.random(reference.shape) < 0.2] = ignore_index
        # predictions of ignored pixels have no effect
        prediction[(reference == ignore_index) & (generator.random(reference.shape) < 0.5)] = np.iinfo(dtype).max
    matrix = ConfusionMatrix(num_labels, ignore_index)
    for prediction, reference in zip(predictions, references, strict=True):
        before = prediction.copy(), reference.copy()
        matrix.update(prediction, reference)
        assert np.array_equal(prediction, before[0])
        assert np.array_equal(reference, before[1])
    found, expected = matrix.compute(), published_scores(predictions, references, num_labels, ignore_index)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12, nan_ok=True), name


def test_both_ways_of_counting_agree(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    predictions, references = (torch.randint(0, 9, (2, 40, 30), generator=generator) for _ in range(2))
    references[:, :3] = 255
    table, checked = ConfusionMatrix(9), ConfusionMatrix(9)
    table.update(predictions, references)
    monkeypatch.setattr("hf_segmodels.metrics.confusion_matrix._MAX_TABLE", 0)
    checked.update(predictions, references)
    assert table.counts.sum() == 2 * 37 * 30
    assert torch.equal(table.counts, checked.counts)


def test_evaluate_module_reports_boundaries_and_sizes_on_request(golden, tmp_path):
    evaluate = pytest.importorskip("evaluate")
    pairs, expected = golden
    options = {"boundary_iou": True, "dilation_ratio": 0.05, "object_sizes": True}
    metric = evaluate.load(MEAN_IOU, num_labels=expected["num_classes"], cache_dir=str(tmp_path), **options)
    scores = SegmentationScores(expected["num_classes"], **options)
    for prediction, reference in pairs:
        metric.add(prediction=prediction, reference=reference)
        scores.update(prediction, reference)
    found, expected_scores = metric.compute(), scores.compute()
    assert {"mean_boundary_iou", "mean_iou_small", "per_category_size"} < found.keys() == expected_scores.keys()
    for name, value in expected_scores.items():
        assert found[name] == pytest.approx(value, abs=1e-12, nan_ok=True), name
    assert_golden(found, expected)


def test_evaluate_module_loads_from_its_path_and_equals_the_original(golden, tmp_path, monkeypatch):
    evaluate = pytest.importorskip("evaluate")
    pairs, expected = golden
    metric = evaluate.load(MEAN_IOU, num_labels=expected["num_classes"], cache_dir=str(tmp_path))
    metric.add_batch(predictions=[pairs[0][0], pairs[1][0]], references=[pairs[0][1], pairs[1][1]])
    metric.add(prediction=pairs[2][0], reference=pairs[2][1])
    assert_golden(metric.compute(predictions=[pairs[3][0]], references=[pairs[3][1]]), expected)
    with pytest.raises(ValueError, match="Nothing to compute"):
        metric.compute()


def _count_in_one_process_only(rank, store, cache, golden):
    import evaluate

    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    pairs, expected = golden
    # the second process has nothing to count, and no number of classes
    metric = evaluate.load(MEAN_IOU, cache_dir=cache, num_labels=None if rank else expected["num_classes"])
    if rank == 0:
        metric.add_batch(predictions=[pair[0] for pair in pairs], references=[pair[1] for pair in pairs])
    assert_golden(metric.compute(), expected)

    with pytest.raises(ValueError, match="Nothing to compute"):
        metric.compute()

    with pytest.raises(ValueError, match=r"different settings, .*'num_labels': 2.*'num_labels': 3"):
        metric.compute(predictions=[[[0, 1]]], references=[[[0, 1]]], num_labels=2 + rank)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_without_pixels_take_part(golden, tmp_path):
    pytest.importorskip("evaluate")
    arguments = (str(tmp_path / "store"), str(tmp_path / "cache"), golden)
    torch.multiprocessing.spawn(_count_in_one_process_only, args=arguments, nprocs=2)


def test_counts_do_not_depend_on_batches_or_processes():
    generator = torch.Generator().manual_seed(0)
    predictions = torch.randint(0, 4, (6, 9, 7), generator=generator)
    references = torch.randint(0, 4, (6, 9, 7), generator=generator)
    references[:, 0] = 255
    whole = ConfusionMatrix(4)
    whole.update(predictions, references)
    first, second = ConfusionMatrix(4), ConfusionMatrix(4)
    first.update(predictions[:2], references[:2].to(torch.uint8))
    second.update(predictions[2:].numpy(), references[2:].numpy())
    first.merge(second)
    assert torch.equal(first.counts, whole.counts)
    assert whole.counts.sum() == 6 * 8 * 7


def test_scores_by_hand():
    matrix = ConfusionMatrix(3)
    matrix.update([[0, 0, 1, 1], [1, 0, 0, 0]], [[0, 0, 0, 1], [255, 255, 255, 0]])
    scores = matrix.compute()
    # class 0: 3 of 4 labeled and 3 predicted; class 1: 1 labeled, 2 predicted; class 2 does not occur
    assert scores["per_category_iou"] == pytest.approx([3 / 4, 1 / 2, math.nan], nan_ok=True)
    assert scores["mean_iou"] == pytest.approx(0.625)
    assert scores["mean_accuracy"] == pytest.approx((3 / 4 + 1) / 2)
    assert scores["overall_accuracy"] == pytest.approx(4 / 5)


def test_all_pixels_ignored_gives_nan_not_an_error():
    matrix = ConfusionMatrix(2)
    matrix.update([[0, 1]], [[255, 255]])
    assert math.isnan(matrix.compute()["mean_iou"])


@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [
        ([[0, 1]], [[0, 2]], "Labels hold values from 0 to 2"),
        ([[0, 5]], [[0, 1]], "Predictions hold values from 0 to 5"),
        ([[0, -1]], [[0, 1]], "Predictions hold values from -1 to 0"),
        ([[0, 1]], [[0, -1]], "Labels hold values from -1 to 0"),
        ([[0, 1]], [[0, 5_000_000]], "Labels hold values from 0 to 5000000"),
        ([[0, 1, 1]], [[0, 1]], "target_sizes"),
        ([[0.0, 1.0]], [[0, 1]], "classes are integers"),
    ],
)
def test_bad_input_is_refused(prediction, reference, message):
    with pytest.raises(ValueError, match=message):
        ConfusionMatrix(2).update(prediction, reference)
