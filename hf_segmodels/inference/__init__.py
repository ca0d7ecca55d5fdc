# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Inference that the four methods share: sliding windows, several scales, flips, and label maps without full scores."""

from .label_search import SeparableScores, upsample_argmax
from .prediction import DensePredictionMixin, choose_windows, dense_prediction, slide_when_configured


__all__ = [
    "DensePredictionMixin",
    "SeparableScores",
    "choose_windows",
    "dense_prediction",
    "slide_when_configured",
    "upsample_argmax",
]
