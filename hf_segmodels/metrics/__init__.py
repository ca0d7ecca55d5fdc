# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Segmentation metrics, counted batch by batch."""

from pathlib import Path

from .boundary_iou import BoundaryIoU
from .confusion_matrix import ConfusionMatrix
from .object_sizes import ObjectSizes
from .region_entropy import region_entropies
from .segmentation_scores import SegmentationScores, sum_over_processes
from .trainer import trainer_metrics


MEAN_IOU = str(Path(__file__).parent / "mean_iou.py")
"""Path for `evaluate.load`: the metric of `mean_iou.py`, without the Hub."""


__all__ = [
    "MEAN_IOU",
    "BoundaryIoU",
    "ConfusionMatrix",
    "ObjectSizes",
    "SegmentationScores",
    "region_entropies",
    "sum_over_processes",
    "trainer_metrics",
]
