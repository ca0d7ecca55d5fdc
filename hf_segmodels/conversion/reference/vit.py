# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Forward passes of the ViT encoders: timm (DeiT and Segmenter, too), AugReg and mmsegmentation."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from .common import Weights, add_positions, attend, linear, norm, pad


# The hybrids' stem: ResNetV2 with weight standardization, group norm and TensorFlow's "SAME" padding.


def _pad_same(image: torch.Tensor, kernel: int, stride: int, value: float = 0.0) -> torch.Tensor:
    totals = [max((math.ceil(size / stride) - 1) * stride + kernel - size, 0) for size in image.shape[-2:]]
    (top, left), (height, width) = [total // 2 for total in totals], totals
    return F.pad(image, (left, width - left, top, height - top), value=value)


def _resnetv2(image: torch.Tensor, layer: Callable[..., Any]) -> torch.Tensor:
    """
    `(batch_size, num_channels, height, width)` -> `(batch_size, D, height / stride, width / stride)`.

    `layer("stem")` and `layer(stage, block, part)` return the weight of a convolution and the weight and bias of its norm,
    or `None` for a layer that does not exist. Stages and blocks count from 0; `part` is 1, 2, 3 or `"shortcut"`.
    """

    def conv_norm(features: torch.Tensor, parameters: tuple[torch.Tensor, ...], stride: int = 1) -> torch.Tensor:
        weight, scale, shift = parameters
        variance, mean = torch.var_mean(weight, dim=(1, 2, 3), correction=0, keepdim=True)
        features = _pad_same(features, weight.shape[-1], stride)
        features = F.conv2d(features, (weight - mean) / (variance + 1e-8).sqrt(), stride=stride)
        return F.group_norm(features, 32, scale, shift, eps=1e-5)

    features = conv_norm(image, layer("stem"), stride=2).relu()
    features = F.max_pool2d(_pad_same(features, 3, 2, value=-torch.inf), 3, 2)
    stage = 0
    while layer(stage, 0, 1) is not None:
        block = 0
        while (first := layer(stage, block, 1)) is not None:
            stride = 2 if stage > 0 and block == 0 else 1
            shortcut = features
            if (parameters := layer(stage, block, "shortcut")) is not None:
                shortcut = conv_norm(features, parameters, stride=stride)
            features = conv_norm(features, first).relu()
            features = conv_norm(features, layer(stage, block, 2), stride=stride).relu()
            features = (conv_norm(features, layer(stage, block, 3)) + shortcut).relu()
            block += 1
        stage += 1
    return features


# timm, DeiT and Segmenter.


def timm_layers(weights: Weights, prefix: str, tokens: torch.Tensor, num_heads: int, eps: float) -> list[torch.Tensor]:
    """The tokens, and the output of each layer."""
    outputs = [tokens]
    while f"{prefix}blocks.{len(outputs) - 1}.norm1.weight" in weights:
        name = f"{prefix}blocks.{len(outputs) - 1}"
        qkv = linear(weights, f"{name}.attn.qkv", norm(weights, f"{name}.norm1", tokens, eps))
        # (batch_size, num_tokens, 3 * D) -> 3 x (batch_size, num_tokens, num_heads, head_dim)
        query, key, value = qkv.unflatten(2, (3, num_heads, -1)).unbind(2)
        tokens = tokens + linear(weights, f"{name}.attn.proj", attend(query, key, value).flatten(2))
        hidden = linear(weights, f"{name}.mlp.fc1", norm(weights, f"{name}.norm2", tokens, eps))
        tokens = tokens + linear(weights, f"{name}.mlp.fc2", F.gelu(hidden))
        outputs.append(tokens)
    return outputs


def _timm_stem(weights: Weights, prefix: str, pixel_values: torch.Tensor) -> torch.Tensor:
    def layer(*index: int | str) -> tuple[torch.Tensor, ...] | None:
        if index == ("stem",):
            conv, norm_name = "stem.conv", "stem.norm"
        else:
            stage, block, part = index
            name, suffix = f"stages.{stage}.blocks.{block}", "" if part == "shortcut" else part
            name = f"{name}.downsample" if part == "shortcut" else name
            conv, norm_name = f"{name}.conv{suffix}", f"{name}.norm{suffix}"
        if f"{prefix}{conv}.weight" not in weights:
            return None
        return tuple(weights[prefix + key] for key in (f"{conv}.weight", f"{norm_name}.weight", f"{norm_name}.bias"))

    return _resnetv2(pixel_values, layer)


def _embed(
    weights: Weights,
    prefix: str,
    projection: str,
    pixel_values: torch.Tensor,
    patch_size: int,
    grid: tuple[int, int],
    mode: str,
    only_by_count: bool,
) -> tuple[torch.Tensor, int, tuple[int, int]]:
    """
    Tokens with position embeddings, the number of prefix tokens, and the grid of patches. `projection` is the name of a
    plain ViT's patch projection; a hybrid's is `proj` everywhere.
    """
    if f"{prefix}patch_embed.backbone.stem.conv.weight" in weights:
        image, stride, projection = _timm_stem(weights, f"{prefix}patch_embed.backbone.", pixel_values), 1, "proj"
    else:
        image, stride = pad(pixel_values, patch_size), patch_size
    weight, bias = (weights[f"{prefix}patch_embed.{projection}.{part}"] for part in ("weight", "bias"))
    patches = F.conv2d(image, weight, bias, stride=stride)
    prefix_tokens = [weights[prefix + name] for name in ("cls_token", "dist_token") if prefix + name in weights]
    tokens = add_positions(patches, prefix_tokens, weights[f"{prefix}pos_embed"], grid, mode, only_by_count)
    return tokens, len(prefix_tokens), (patches.shape[2], patches.shape[3])


def timm_hidden_states(
    weights: Weights,
    pixel_values: torch.Tensor,
    *,
    num_heads: int,
    patch_size: int,
    grid: tuple[int, int],
    eps: float,
    mode: str,
    only_by_count: bool = False,
    prefix: str = "",
) -> list[torch.Tensor]:
    """
    Tokens before the first layer and after each one, without a final norm.

    Args:
        weights (`Weights`): Parameters by timm's names after `prefix`.
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): Normalized images.
        num_heads (`int`): Attention heads.
        patch_size (`int`): Pixels per token side.
        grid (`tuple[int, int]`): Rows and columns of the position embeddings.
        eps (`float`): Epsilon of the layer norms.
        mode (`str`): Interpolation of the position embeddings.
        only_by_count (`bool`): Whether position embeddings are resized only if the number of patches differs.
        prefix (`str`): Beginning of all names.

    Returns:
        A list of `torch.Tensor` of shape `(batch_size, num_prefix_tokens + h * w, D)`.
    """
    embedded, _, _ = _embed(weights, prefix, "proj", pixel_values, patch_size, grid, mode, only_by_count)
    return timm_layers(weights, prefix, embedded, num_heads, eps)


def timm_tokens(
    weights: Weights, pixel_values: torch.Tensor, *, eps: float, prefix: str = "", **fields: Any
) -> torch.Tensor:
    """Tokens after the last layer and, if there is one, the final norm; see [`timm_hidden_states`]."""
    tokens = timm_hidden_states(weights, pixel_values, eps=eps, prefix=prefix, **fields)[-1]
    return norm(weights, f"{prefix}norm", tokens, eps) if f"{prefix}norm.weight" in weights else tokens


# AugReg; kernels have inputs before outputs, and attention heads in a dimension of their own.


def _augreg_stem(weights: Weights, pixel_values: torch.Tensor) -> torch.Tensor:
    def layer(*index: Any) -> tuple[torch.Tensor, ...] | None:
        if index == ("stem",):
            block, suffix = "", "_root"
        else:
            block = f"block{index[0] + 1}/unit{index[1] + 1}/"
            suffix = "_proj" if index[2] == "shortcut" else index[2]
        if f"{block}conv{suffix}/kernel" not in weights:
            return None
        # (height, width, inputs, outputs) -> (outputs, inputs, height, width)
        weight = weights[f"{block}conv{suffix}/kernel"].permute(3, 2, 0, 1)
        return weight, *(weights[f"{block}gn{suffix}/{part}"].flatten() for part in ("scale", "bias"))

    return _resnetv2(pixel_values, layer)


def augreg_tokens(
    weights: Weights, pixel_values: torch.Tensor, *, patch_size: int, grid: tuple[int, int], eps: float, mode: str
) -> torch.Tensor:
    """Tokens `(batch_size, 1 + h * w, D)` after the final norm; see [`timm_tokens`]."""

    def layer_norm(name: str, tokens: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(tokens, tokens.shape[-1:], weights[f"{name}/scale"], weights[f"{name}/bias"], eps)

    def dense(name: str, tokens: torch.Tensor) -> torch.Tensor:
        return tokens @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]

    # (height, width, inputs, outputs) -> (outputs, inputs, height, width)
    projection = weights["embedding/kernel"].permute(3, 2, 0, 1), weights["embedding/bias"]
    if "conv_root/kernel" in weights:
        patches = F.conv2d(_augreg_stem(weights, pixel_values), *projection)
    else:
        patches = F.conv2d(pad(pixel_values, patch_size), *projection, stride=patch_size)
    table = weights["Transformer/posembed_input/pos_embedding"]
    tokens = add_positions(patches, [weights["cls"]], table, grid, mode)
    number = 0
    while f"Transformer/encoderblock_{number}/LayerNorm_0/scale" in weights:
        layer = f"Transformer/encoderblock_{number}"
        attention = f"{layer}/MultiHeadDotProductAttention_1"
        normed = layer_norm(f"{layer}/LayerNorm_0", tokens)
        # (batch_size, num_tokens, D) -> 3 x (batch_size, num_tokens, num_heads, head_dim)
        query, key, value = (
            torch.einsum("bnd,dhe->bnhe", normed, weights[f"{attention}/{part}/kernel"])
            + weights[f"{attention}/{part}/bias"]
            for part in ("query", "key", "value")
        )
        attended = torch.einsum("bnhe,hed->bnd", attend(query, key, value), weights[f"{attention}/out/kernel"])
        tokens = tokens + attended + weights[f"{attention}/out/bias"]
        hidden = F.gelu(dense(f"{layer}/MlpBlock_3/Dense_0", layer_norm(f"{layer}/LayerNorm_2", tokens)))
        tokens = tokens + dense(f"{layer}/MlpBlock_3/Dense_1", hidden)
        number += 1
    return layer_norm("Transformer/encoder_norm", tokens)


# mmsegmentation.


def mmseg_tokens(
    weights: Weights,
    pixel_values: torch.Tensor,
    *,
    num_heads: int,
    patch_size: int,
    grid: tuple[int, int],
    eps: float,
    mode: str,
    only_by_count: bool = True,
    halving_layer: int | None = None,
) -> list[torch.Tensor]:
    """
    Patch tokens before the first layer and after each one, without a final norm.

    Args:
        weights (`Weights`): Parameters of an mmsegmentation model whose encoder is a plain or hybrid ViT.
        grid (`tuple[int, int]`): Rows and columns of the position embeddings.
        only_by_count (`bool`): See [`timm_hidden_states`].
        halving_layer (`int`, *optional*): Index of a layer whose queries are every second patch of every second row.
        pixel_values, num_heads, patch_size, eps, mode: See [`timm_tokens`].

    Returns:
        A list of `torch.Tensor` of shape `(batch_size, D, h, w)`.
    """
    tokens, num_prefix_tokens, (rows, columns) = _embed(
        weights, "backbone.", "projection", pixel_values, patch_size, grid, mode, only_by_count
    )
    # (batch_size, num_tokens, D) -> (batch_size, D, h, w)
    outputs = [tokens[:, num_prefix_tokens:].mT.unflatten(2, (rows, columns))]
    while f"backbone.layers.{len(outputs) - 1}.ln1.weight" in weights:
        layer = f"backbone.layers.{len(outputs) - 1}"
        attention = f"{layer}.attn.attn"
        normed = norm(weights, f"{layer}.ln1", tokens, eps)
        qkv = F.linear(normed, weights[f"{attention}.in_proj_weight"], weights[f"{attention}.in_proj_bias"])
        # (batch_size, num_tokens, 3 * D) -> 3 x (batch_size, num_tokens, num_heads, head_dim)
        query, key, value = qkv.unflatten(2, (3, num_heads, -1)).unbind(2)
        if len(outputs) - 1 == halving_layer:
            number = torch.arange(rows * columns).view(rows, columns)[::2, ::2]
            rows, columns = number.shape
            kept = torch.cat([torch.arange(num_prefix_tokens), num_prefix_tokens + number.flatten()])
            query, tokens = query[:, kept], tokens[:, kept]
        tokens = tokens + linear(weights, f"{attention}.out_proj", attend(query, key, value).flatten(2))
        hidden = F.gelu(linear(weights, f"{layer}.ffn.layers.0.0", norm(weights, f"{layer}.ln2", tokens, eps)))
        tokens = tokens + linear(weights, f"{layer}.ffn.layers.1", hidden)
        outputs.append(tokens[:, num_prefix_tokens:].mT.unflatten(2, (rows, columns)))
    return outputs
