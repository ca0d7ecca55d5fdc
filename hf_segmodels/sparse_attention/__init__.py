# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Sparse sampling attention (UN-EPT section 3.1, multi-scale deformable attention): each query attends to a few sampled
points of each level of a feature pyramid, so the cost grows linearly with the number of queries.
"""

from .kernels import SparseAttentionKernelMixin, register_kernel_mapping, use_hub_kernel
from .layer import SamplingOffsets, SamplingWeights, SparseAttention, SparseSampling, reference_points
from .operation import select_implementation, sparse_attention, sparse_attention_reference


__all__ = [
    "SamplingOffsets",
    "SamplingWeights",
    "SparseAttention",
    "SparseAttentionKernelMixin",
    "SparseSampling",
    "reference_points",
    "register_kernel_mapping",
    "select_implementation",
    "sparse_attention",
    "sparse_attention_reference",
    "use_hub_kernel",
]
