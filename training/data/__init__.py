# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Data sets for training: an image and a label map per row, read with the `datasets` library."""

from .collator import TrainingCollator
from .segmentation_data import AugmentedData, SegmentationData, TrainingBatches


__all__ = ["AugmentedData", "SegmentationData", "TrainingBatches", "TrainingCollator"]
