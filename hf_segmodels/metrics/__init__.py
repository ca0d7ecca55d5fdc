# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Segmentation metrics, accumulated batch by batch."""

from pathlib import Path

from .boundary_iou import BoundaryIoU
from .confusion_matrix import ConfusionMatrix
from .object_sizes import ObjectSizes
from .segmentation_scores import SegmentationScores, sum_over_processes
from .trainer import trainer_metrics


MEAN_IOU = str(Path(__file__).parent / "mean_iou.py")
"""Path of `mean_iou.py` for `evaluate.load`, without the Hub."""


__all__ = [
    "MEAN_IOU",
    "BoundaryIoU",
    "ConfusionMatrix",
    "ObjectSizes",
    "SegmentationScores",
    "sum_over_processes",
    "trainer_metrics",
]
