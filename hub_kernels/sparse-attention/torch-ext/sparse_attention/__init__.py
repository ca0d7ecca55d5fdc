# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Sparse sampling attention (multi-scale deformable attention) for CPU and CUDA, differentiable once."""

from . import layers
from ._functional import sparse_attention, supports
from ._ops import ops


__all__ = ["layers", "ops", "sparse_attention", "supports"]
