# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Losses shared by the models."""

from .semantic_cross_entropy import semantic_cross_entropy


__all__ = ["semantic_cross_entropy"]
