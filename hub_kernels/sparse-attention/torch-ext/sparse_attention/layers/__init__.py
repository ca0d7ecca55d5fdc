# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""What `kernels.kernelize` puts in the place of a model's own layer of the same name."""

from collections.abc import Sequence

import torch
from torch import nn

from .._functional import sparse_attention


class SparseSampling(nn.Module):
    """Stateless; see `sparse_attention`."""

    can_torch_compile = True
    has_backward = True

    def forward(
        self,
        value: torch.Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
        sampling_locations: torch.Tensor,
        attention_weights: torch.Tensor,
    ) -> torch.Tensor:
        return sparse_attention(value, spatial_shapes, sampling_locations, attention_weights)


__all__ = ["SparseSampling"]
