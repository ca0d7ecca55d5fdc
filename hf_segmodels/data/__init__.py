# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Data sets of images and label maps.

A [`DatasetSpec`] (location, layout, columns) and a [`LabelSpec`] (classes, ignored label) describe the data. It is
opened in one form for each use:

- `loading.RawSplit`: undecoded rows, for the label checks;
- [`SegmentationData`]: decoded and validated samples as tensors, for training and evaluation;
- [`load_segmentation_dataset`]: PIL images in a `datasets.Dataset`, for other code;
- `shards.ImageShards`: the images alone, in shards for several processes, for `hf-segmodels segment-dataset`.
"""

from .checks.label_checks import ISSUES
from .checks.report import DataReport, LabelIssue, SplitReport
from .checks.runner import check_data, quick_check
from .dataset import SegmentationData
from .layouts import LAYOUTS, detect_layouts
from .loading import find_id2label, load_segmentation_dataset
from .specs import DatasetSpec, LabelSpec


__all__ = [
    "ISSUES",
    "LAYOUTS",
    "DataReport",
    "DatasetSpec",
    "LabelIssue",
    "LabelSpec",
    "SegmentationData",
    "SplitReport",
    "check_data",
    "detect_layouts",
    "find_id2label",
    "load_segmentation_dataset",
    "quick_check",
]
