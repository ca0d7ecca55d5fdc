# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Segmentation metrics, counted batch by batch."""

from pathlib import Path

from .confusion_matrix import ConfusionMatrix
from .region_entropy import region_entropies


MEAN_IOU = str(Path(__file__).parent / "mean_iou.py")
"""Path for `evaluate.load`: the metric of `mean_iou.py`, without the Hub."""


__all__ = ["MEAN_IOU", "ConfusionMatrix", "region_entropies"]
