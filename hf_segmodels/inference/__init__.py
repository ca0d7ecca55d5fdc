# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Prediction with a loaded model ([`load_predictor`]), and inference shared by the methods: sliding windows, several scales,
flips, and label maps without full-resolution scores.
"""

from .mask_scores import MaskScores, mask_argmax
from .prediction import DensePredictionMixin, LazyScores, choose_windows, dense_prediction, slide_when_configured
from .predictor import Predictor, load_predictor
from .region_painting import paint_labels, paint_scores, resize_regions
from .upsampled_argmax import UpsampledScores, upsample_argmax
from .window_grid import WindowGrid, run_windows


__all__ = [
    "DensePredictionMixin",
    "LazyScores",
    "MaskScores",
    "Predictor",
    "UpsampledScores",
    "WindowGrid",
    "choose_windows",
    "dense_prediction",
    "load_predictor",
    "mask_argmax",
    "paint_labels",
    "paint_scores",
    "resize_regions",
    "run_windows",
    "slide_when_configured",
    "upsample_argmax",
]
