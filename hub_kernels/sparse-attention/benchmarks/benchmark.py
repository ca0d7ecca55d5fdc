# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
The sizes of UN-EPT (crop 480), each against grid_sample, for `kernels benchmark`.

`SPARSE_ATTENTION_SCALE=8` divides the sides of the levels, for a quick look.
"""

import os

import torch
from kernels.benchmark import Benchmark
from torch import nn


HEADS, HEAD_DIM, LEVELS, POINTS = 8, 32, 3, 16
# (side of the levels, queries along a side, or None for all cells of all levels)
SIZES = {
    "deit_encoder": (30, None),
    "deit_decoder": (30, 60),
    "resnet_encoder": (60, None),
    "resnet_decoder": (60, 60),
}


def grid_sample_attention(value, spatial_shapes, locations, weights):
    """The operation in plain torch."""
    batch_size, queries = locations.shape[:2]
    grids = (2 * locations - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)
    weights = weights.permute(3, 0, 2, 1, 4).flatten(1, 2)[:, :, None]
    levels = value.split([height * width for height, width in spatial_shapes], dim=1)
    output = 0
    for level, (height, width), grid, weight in zip(levels, spatial_shapes, grids, weights, strict=True):
        cells = level.permute(0, 2, 3, 1).reshape(batch_size * HEADS, HEAD_DIM, height, width)
        output = output + (nn.functional.grid_sample(cells, grid, align_corners=False) * weight).sum(-1)
    return output.view(batch_size, HEADS * HEAD_DIM, queries).transpose(1, 2)


class _Workload:
    seed = 0
    size: str

    def setup(self):
        # on a CUDA build of torch the runner says cuda, with or without a GPU
        device = "cuda" if self.device == "cuda" and torch.cuda.is_available() else "cpu"
        scale = int(os.environ.get("SPARSE_ATTENTION_SCALE", "1"))
        side, along = (number and max(1, number // scale) for number in SIZES[self.size])
        self.shapes = [(side, side)] * LEVELS
        centers = (torch.arange(along or side) + 0.5) / (along or side)
        queries = torch.cartesian_prod(centers, centers).flip(-1).repeat(1 if along else LEVELS, 1)
        offsets = torch.randn(1, len(queries), HEADS, LEVELS, POINTS, 2) * 6 / side
        inputs = (
            torch.randn(1, LEVELS * side * side, HEADS, HEAD_DIM),
            queries[None, :, None, None, None] + offsets,
            torch.randn(1, len(queries), HEADS, LEVELS * POINTS).softmax(-1).unflatten(-1, (LEVELS, POINTS)),
        )
        self.inputs = [tensor.to(device).requires_grad_() for tensor in inputs]
        self.gradient = torch.randn(1, len(queries), HEADS * HEAD_DIM).to(device)

    def _run(self, function, backward):
        with torch.set_grad_enabled(backward):
            output = function(self.inputs[0], self.shapes, *self.inputs[1:])
        if not backward:
            return output
        gradients = torch.autograd.grad(output, self.inputs, self.gradient)
        return torch.cat([tensor.detach().flatten() for tensor in (output, *gradients)])

    def benchmark_forward(self):
        self.out = self._run(self.kernel.sparse_attention, False)

    def verify_forward(self):
        return self._run(grid_sample_attention, False)

    def benchmark_forward_and_backward(self):
        self.out = self._run(self.kernel.sparse_attention, True)

    def verify_forward_and_backward(self):
        return self._run(grid_sample_attention, True)


class DeitEncoder(_Workload, Benchmark):
    size = "deit_encoder"


class DeitDecoder(_Workload, Benchmark):
    size = "deit_decoder"


class ResnetEncoder(_Workload, Benchmark):
    size = "resnet_encoder"


class ResnetDecoder(_Workload, Benchmark):
    size = "resnet_decoder"
