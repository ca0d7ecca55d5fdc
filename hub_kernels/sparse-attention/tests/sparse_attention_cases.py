# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Random arguments, and what the kernel is held to: the operation through `grid_sample`."""

import torch
from torch import nn


SHAPES = ((5, 7), (1, 1), (9, 4))


def grid_sample_attention(value, spatial_shapes, locations, weights):
    """The operation in plain torch, in the dtype of its arguments."""
    batch_size, queries, heads = locations.shape[:3]
    head_dim = value.shape[-1]
    # (B, Q, M, L, P, 2) -> L x (B * M, Q, P, 2)
    grids = (2 * locations - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)
    # (B, Q, M, L, P) -> L x (B * M, 1, Q, P)
    weights = weights.permute(3, 0, 2, 1, 4).flatten(1, 2)[:, :, None]
    output = 0
    for level, (height, width), grid, weight in zip(
        value.split([height * width for height, width in spatial_shapes], dim=1),
        spatial_shapes,
        grids,
        weights,
        strict=True,
    ):
        cells = level.permute(0, 2, 3, 1).reshape(batch_size * heads, head_dim, height, width)
        output = output + (nn.functional.grid_sample(cells, grid, align_corners=False) * weight).sum(-1)
    return output.view(batch_size, heads * head_dim, queries).transpose(1, 2)


def arguments(
    device="cpu",
    dtype=torch.float32,
    shapes=SHAPES,
    batch_size=2,
    queries=11,
    heads=3,
    head_dim=32,
    points=5,
    margin=0.3,
    seed=0,
):
    """Locations reach beyond the borders by `margin`; locations and weights are float32 where values are shorter."""
    generator = torch.Generator().manual_seed(seed)
    precise = torch.promote_types(dtype, torch.float32)
    value = torch.randn(batch_size, sum(h * w for h, w in shapes), heads, head_dim, generator=generator)
    sampled = (batch_size, queries, heads, len(shapes), points)
    locations = torch.rand(*sampled, 2, generator=generator, dtype=precise) * (1 + 2 * margin) - margin
    weights = torch.rand(*sampled, generator=generator, dtype=precise)
    gradient = torch.randn(batch_size, queries, heads * head_dim, generator=generator)
    tensors = value.to(dtype), locations, weights, gradient.to(dtype)
    return [tensor.to(device) for tensor in tensors]


def with_gradients(function, value, shapes, locations, weights, gradient):
    inputs = [tensor.detach().clone().requires_grad_() for tensor in (value, locations, weights)]
    output = function(inputs[0], list(shapes), *inputs[1:])
    return [output.detach(), *torch.autograd.grad(output, inputs, gradient)]


def exact(value, shapes, locations, weights, gradient):
    """Outputs and gradients in float64, of the arguments as they are rounded."""
    doubles = [tensor.double() for tensor in (value, locations, weights)]
    return with_gradients(grid_sample_attention, doubles[0], shapes, *doubles[1:], gradient.double())


def relative_rms(found, expected):
    return ((found.double() - expected).square().mean() / expected.square().mean()).sqrt().item()
