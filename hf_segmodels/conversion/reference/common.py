# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Building blocks of the originals' forward passes, as plain functions over the original parameter names.

No code is shared with the models: agreement with a converted model shows that both its weights and its code are right.
Written from the papers and from the released code.
"""

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F


Weights = Mapping[str, torch.Tensor]


def numbered(weights: Weights, name: str) -> Iterator[str]:
    """`name.0`, `name.1`, ..., as far as there are weights."""
    number = 0
    while any(key.startswith(f"{name}.{number}.") for key in weights):
        yield f"{name}.{number}"
        number += 1


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Three `(batch_size, num_tokens, num_heads, head_dim)` -> the same shape."""
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(dim=-1), value)


def multihead_attention(
    weights: Weights, name: str, query: torch.Tensor, memory: torch.Tensor, num_heads: int
) -> torch.Tensor:
    """`torch.nn.MultiheadAttention` by its parameters' names: `(batch_size, num_tokens, D)` -> the shape of `query`."""
    parts = zip(weights[f"{name}.in_proj_weight"].chunk(3), weights[f"{name}.in_proj_bias"].chunk(3), strict=True)
    projected = [
        F.linear(tokens, weight, bias).unflatten(2, (num_heads, -1))
        for tokens, (weight, bias) in zip((query, memory, memory), parts, strict=True)
    ]
    return linear(weights, f"{name}.out_proj", attend(*projected).flatten(2))


def norm(weights: Weights, name: str, tokens: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def linear(weights: Weights, name: str, tokens: torch.Tensor) -> torch.Tensor:
    return F.linear(tokens, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def feed_forward(weights: Weights, name: str, tokens: torch.Tensor) -> torch.Tensor:
    return linear(weights, f"{name}.linear2", linear(weights, f"{name}.linear1", tokens).relu())


def conv(weights: Weights, name: str, features: torch.Tensor, **fields: int) -> torch.Tensor:
    return F.conv2d(features, weights[f"{name}.weight"], weights.get(f"{name}.bias"), **fields)


def conv_norm(
    weights: Weights,
    name: str,
    norm_name: str,
    features: torch.Tensor,
    stride: int = 1,
    dilation: int = 1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """Convolution, grouped if its weight is, with zeros at the borders; then batch norm by its running statistics."""
    _, group_size, _, kernel_size = weights[f"{name}.weight"].shape
    padding, groups = dilation * (kernel_size // 2), features.shape[1] // group_size
    features = conv(weights, name, features, stride=stride, padding=padding, dilation=dilation, groups=groups)
    mean, variance, scale, shift = (
        weights[f"{norm_name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return F.batch_norm(features, mean, variance, scale, shift, eps=eps)


def pad(image: torch.Tensor, multiple: int) -> torch.Tensor:
    """Zeros at the bottom and right up to multiples of `multiple`."""
    height, width = image.shape[-2:]
    return F.pad(image, (0, -width % multiple, 0, -height % multiple))


def resize(maps: torch.Tensor, size: tuple[int, ...], mode: str = "bilinear") -> torch.Tensor:
    return F.interpolate(maps, size=size, mode=mode, align_corners=False)
