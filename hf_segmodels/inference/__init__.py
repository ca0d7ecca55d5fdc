# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Inference that the four methods share: sliding windows, several scales, flips, and label maps without full scores."""

from .mask_scores import MaskScores, mask_argmax, mask_window_scores
from .prediction import DensePredictionMixin, choose_windows, dense_prediction, slide_when_configured
from .region_painting import paint_labels, paint_scores, resize_regions
from .upsampled_argmax import SeparableScores, upsample_argmax


__all__ = [
    "DensePredictionMixin",
    "MaskScores",
    "SeparableScores",
    "choose_windows",
    "dense_prediction",
    "mask_argmax",
    "mask_window_scores",
    "paint_labels",
    "paint_scores",
    "resize_regions",
    "slide_when_configured",
    "upsample_argmax",
]
