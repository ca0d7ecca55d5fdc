# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Forward passes of the ViT encoders: timm (DeiT and Segmenter, too), mmsegmentation and AugReg."""

import math
import re
from typing import Any

import torch
import torch.nn.functional as F

from .common import Weights, attend, conv, linear, norm, numbered, pad, resize


# Names in a layer: the layer, first norm, projection to queries, keys and values, output projection, second norm, MLP.
_TIMM = ("blocks", "norm1", "attn.qkv.", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
_MMSEG = ("layers", "ln1", "attn.attn.in_proj_", "attn.attn.out_proj", "ln2", "ffn.layers.0.0", "ffn.layers.1")


def transformer_layers(
    weights: Weights,
    prefix: str,
    tokens: torch.Tensor,
    num_heads: int,
    eps: float,
    halving_layer: int | None = None,
    kept: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """The tokens `(batch_size, num_tokens, D)`, and each layer's output. Queries of `halving_layer` are the tokens `kept`."""
    layers, norm1, in_proj, out_proj, norm2, fc1, fc2 = _MMSEG if f"{prefix}layers.0.ln1.weight" in weights else _TIMM
    outputs = [tokens]
    for index, name in enumerate(numbered(weights, f"{prefix}{layers}")):
        normed = norm(weights, f"{name}.{norm1}", tokens, eps)
        qkv = F.linear(normed, weights[f"{name}.{in_proj}weight"], weights.get(f"{name}.{in_proj}bias"))
        # (batch_size, num_tokens, 3 * D) -> 3 x (batch_size, num_tokens, num_heads, head_dim)
        query, key, value = qkv.unflatten(2, (3, num_heads, -1)).unbind(2)
        if index == halving_layer:
            query, tokens = query[:, kept], tokens[:, kept]
        tokens = tokens + linear(weights, f"{name}.{out_proj}", attend(query, key, value).flatten(2))
        hidden = linear(weights, f"{name}.{fc1}", norm(weights, f"{name}.{norm2}", tokens, eps))
        tokens = tokens + linear(weights, f"{name}.{fc2}", F.gelu(hidden))
        outputs.append(tokens)
    return outputs


def vit_features(
    weights: Weights,
    pixel_values: torch.Tensor,
    *,
    num_heads: int,
    patch_size: int,
    grid: tuple[int, int],
    eps: float,
    mode: str,
    prefix: str,
    only_by_count: bool = False,
    halving_layer: int | None = None,
) -> list[torch.Tensor]:
    """
    Patches before the first layer and after each one, without a final norm.

    Args:
        weights (`Weights`): Parameters by timm's or mmsegmentation's names after `prefix`.
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): Normalized images.
        num_heads (`int`): Attention heads.
        patch_size (`int`): Pixels per token side.
        grid (`tuple[int, int]`): Rows and columns of the position embeddings.
        eps (`float`): Epsilon of the layer norms.
        mode (`str`): Interpolation of the position embeddings.
        prefix (`str`): Beginning of all names.
        only_by_count (`bool`):
            Whether position embeddings are resized only if the number of patches differs from that of `grid`, not if the
            rows or columns differ.
        halving_layer (`int`, *optional*): Index of a layer whose queries are every second patch of every second row.

    Returns:
        A list of `torch.Tensor` of shape `(batch_size, D, h, w)`.
    """
    stem, stride = f"{prefix}patch_embed.backbone.", 1
    if f"{stem}stem.conv.weight" in weights:
        image = _resnetv2(weights, stem, pixel_values)
    else:
        image, stride = pad(pixel_values, patch_size), patch_size
    projection = "proj" if f"{prefix}patch_embed.proj.weight" in weights else "projection"
    patches = conv(weights, f"{prefix}patch_embed.{projection}", image, stride=stride)
    (batch_size, width, rows, columns), table = patches.shape, weights[f"{prefix}pos_embed"]
    extra = [weights[prefix + name] for name in ("cls_token", "dist_token") if prefix + name in weights]
    count = len(extra)
    fits = rows * columns == math.prod(grid) if only_by_count else (rows, columns) == tuple(grid)
    if not fits:
        # (1, num_patches, D) -> (1, D, rows, columns) -> (1, D, h, w) -> (1, h * w, D)
        resized = resize(table[:, count:].mT.unflatten(2, grid), (rows, columns), mode)
        table = torch.cat([table[:, :count], resized.flatten(2).mT], dim=1)
    # (batch_size, D, h, w) -> (batch_size, count + h * w, D)
    tokens = torch.cat([*(token.expand(batch_size, 1, width) for token in extra), patches.flatten(2).mT], dim=1) + table
    number = torch.arange(rows * columns).view(rows, columns)
    halved = number[::2, ::2]
    kept = torch.cat([torch.arange(count), count + halved.flatten()])
    states = transformer_layers(weights, prefix, tokens, num_heads, eps, halving_layer, kept)
    shapes = {len(kept): halved.shape, tokens.shape[1]: number.shape}
    return [state[:, count:].mT.unflatten(2, shapes[state.shape[1]]) for state in states]


@torch.no_grad()
def backbone_forward(weights: Weights, pixel_values: torch.Tensor, *, eps: float, **fields: Any) -> torch.Tensor:
    """
    Patches `(batch_size, D, h, w)` after the last layer and, if there is one, the final norm.

    Args:
        weights (`Weights`): Parameters by timm's or AugReg's names.
        pixel_values, eps, fields: See [`vit_features`].
    """
    query = weights.get("Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/bias")
    if query is not None:
        weights, fields["num_heads"] = _augreg_as_timm(weights), len(query)
    features = vit_features(weights, pixel_values, eps=eps, prefix="", **fields)[-1]
    if "norm.weight" in weights:
        features = norm(weights, "norm", features.permute(0, 2, 3, 1), eps).permute(0, 3, 1, 2)
    return features


# The hybrids' stem: ResNetV2 with weight standardization, group norm and TensorFlow's "SAME" padding.


def _pad_same(image: torch.Tensor, kernel: int, stride: int, value: float = 0.0) -> torch.Tensor:
    totals = [max((math.ceil(size / stride) - 1) * stride + kernel - size, 0) for size in image.shape[-2:]]
    (top, left), (height, width) = [total // 2 for total in totals], totals
    return F.pad(image, (left, width - left, top, height - top), value=value)


def _resnetv2(weights: Weights, prefix: str, image: torch.Tensor) -> torch.Tensor:
    """`(batch_size, num_channels, height, width)` -> `(batch_size, D, height / stride, width / stride)`."""

    def conv_norm(features: torch.Tensor, block: str, number: int | str = "", stride: int = 1) -> torch.Tensor:
        weight = weights[f"{block}.conv{number}.weight"]
        scale, shift = (weights[f"{block}.norm{number}.{part}"] for part in ("weight", "bias"))
        variance, mean = torch.var_mean(weight, dim=(1, 2, 3), correction=0, keepdim=True)
        features = _pad_same(features, weight.shape[-1], stride)
        features = F.conv2d(features, (weight - mean) / (variance + 1e-8).sqrt(), stride=stride)
        return F.group_norm(features, 32, scale, shift, eps=1e-5)

    features = conv_norm(image, f"{prefix}stem", stride=2).relu()
    features = F.max_pool2d(_pad_same(features, 3, 2, value=-torch.inf), 3, 2)
    for stage, name in enumerate(numbered(weights, f"{prefix}stages")):
        for number, block in enumerate(numbered(weights, f"{name}.blocks")):
            stride = 2 if stage > 0 and number == 0 else 1
            shortcut = features
            if f"{block}.downsample.conv.weight" in weights:
                shortcut = conv_norm(features, f"{block}.downsample", stride=stride)
            features = conv_norm(features, block, 1).relu()
            features = conv_norm(features, block, 2, stride=stride).relu()
            features = (conv_norm(features, block, 3) + shortcut).relu()
    return features


# Parts of AugReg's names -> timm's. Blocks and units of the stem count from 1.
_AUGREG_NAMES: tuple[tuple[str, Any], ...] = (
    (r"^Transformer/encoderblock_(\d+)/", r"blocks.\1."),
    (r"MultiHeadDotProductAttention_1/", "attn."),
    (r"attn\.out$", "attn.proj"),
    (r"LayerNorm_0$", "norm1"),
    (r"LayerNorm_2$", "norm2"),
    (r"MlpBlock_3/Dense_0$", "mlp.fc1"),
    (r"MlpBlock_3/Dense_1$", "mlp.fc2"),
    (r"^Transformer/encoder_norm$", "norm"),
    (r"^embedding$", "patch_embed.proj"),
    (r"^(conv|gn)_root$", r"patch_embed.backbone.stem.\1"),
    (r"^block(\d+)/unit(\d+)/", lambda m: f"patch_embed.backbone.stages.{int(m[1]) - 1}.blocks.{int(m[2]) - 1}."),
    (r"(conv|gn)_proj$", r"downsample.\1"),
    (r"\bgn(\d?)$", r"norm\1"),
)


def _augreg_as_timm(weights: Weights) -> dict[str, torch.Tensor]:
    """AugReg's arrays by timm's names, with outputs before inputs and without a dimension for heads."""
    named = {"cls_token": weights["cls"], "pos_embed": weights["Transformer/posembed_input/pos_embedding"]}
    for key in weights.keys() - {"cls", "Transformer/posembed_input/pos_embedding"}:
        (name, _, kind), array = key.rpartition("/"), weights[key]
        for pattern, replacement in _AUGREG_NAMES:
            name = re.sub(pattern, replacement, name)
        if kind != "kernel":
            array = array.flatten()
        elif array.ndim == 4:
            # (height, width, inputs, outputs) -> (outputs, inputs, height, width)
            array = array.permute(3, 2, 0, 1)
        else:
            # the output projection's heads are inputs, (num_heads, head_dim, D); the others' outputs
            array = (array.flatten(0, -2) if name.endswith("attn.proj") else array.flatten(1)).T
        named[f"{name}.{'bias' if kind == 'bias' else 'weight'}"] = array
    for name in [name for name in named if ".query." in name]:
        parts = [named[name.replace("query", part)] for part in ("query", "key", "value")]
        named[name.replace("query", "qkv")] = torch.cat(parts)
    return named
