# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
The originals' forward passes as plain functions over the original parameter names.

Nothing here is shared with the models: agreement with a converted model shows that both its weights and its code are
right. Written from the papers and from what the released code does.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F


Weights = Mapping[str, torch.Tensor]


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Three `(batch_size, num_tokens, num_heads, head_dim)` -> the same shape."""
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(dim=-1), value)


def _add_positions(
    patches: torch.Tensor,
    prefix: list[torch.Tensor],
    table: torch.Tensor,
    table_grid: tuple[int, int],
    mode: str,
    only_by_count: bool = False,
) -> torch.Tensor:
    """
    Patches `(batch_size, D, h, w)` and prefix tokens `(1, 1, D)` -> tokens with positions
    `(batch_size, len(prefix) + h * w, D)`. The table is resized when the grid differs, or only when the number of
    patches does.
    """
    batch_size, width, *grid = patches.shape
    fits = math.prod(grid) == math.prod(table_grid) if only_by_count else tuple(grid) == tuple(table_grid)
    if not fits:
        # (1, num_patches, D) -> (1, D, rows, columns) -> (1, D, h, w) -> (1, h * w, D)
        resized = table[:, len(prefix) :].reshape(1, *table_grid, width).permute(0, 3, 1, 2)
        resized = F.interpolate(resized, size=grid, mode=mode, align_corners=False)
        table = torch.cat([table[:, : len(prefix)], resized.permute(0, 2, 3, 1).reshape(1, -1, width)], dim=1)
    tokens = [token.expand(batch_size, 1, width) for token in prefix]
    # (batch_size, D, h, w) -> (batch_size, h * w, D)
    return torch.cat([*tokens, patches.permute(0, 2, 3, 1).reshape(batch_size, -1, width)], dim=1) + table


def _pad(image: torch.Tensor, multiple: int) -> torch.Tensor:
    """Zeros at the bottom and right, up to multiples."""
    height, width = (math.ceil(size / multiple) * multiple for size in image.shape[-2:])
    padded = image.new_zeros(*image.shape[:2], height, width)
    padded[..., : image.shape[2], : image.shape[3]] = image
    return padded


# The hybrids' stem: ResNetV2 with weight standardization, group norm and TensorFlow's "SAME" padding.


def _pad_same(image: torch.Tensor, kernel: int, stride: int, value: float = 0.0) -> torch.Tensor:
    totals = [max((math.ceil(size / stride) - 1) * stride + kernel - size, 0) for size in image.shape[-2:]]
    (top, left), (height, width) = [total // 2 for total in totals], totals
    return F.pad(image, (left, width - left, top, height - top), value=value)


def _resnetv2(
    image: torch.Tensor,
    conv_weight: Callable[[tuple], torch.Tensor | None],
    norm_weights: Callable[[tuple], tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """
    `(batch_size, num_channels, height, width)` -> `(batch_size, D, height / stride, width / stride)`.

    Layers are asked for by `("stem",)` and `(stage, block, layer)` with layer 1 to 3, or `"shortcut"`, all from 0 but the
    layer; `conv_weight` gives `None` for those that do not exist.
    """

    def conv_norm(features: torch.Tensor, *layer: int | str, stride: int = 1) -> torch.Tensor:
        weight = conv_weight(layer)
        variance, mean = torch.var_mean(weight, dim=(1, 2, 3), correction=0, keepdim=True)
        features = _pad_same(features, weight.shape[-1], stride)
        features = F.conv2d(features, (weight - mean) / (variance + 1e-8).sqrt(), stride=stride)
        return F.group_norm(features, 32, *norm_weights(layer), eps=1e-5)

    features = conv_norm(image, "stem", stride=2).relu()
    features = F.max_pool2d(_pad_same(features, 3, 2, value=-torch.inf), 3, 2)
    stage = 0
    while conv_weight((stage, 0, 1)) is not None:
        block = 0
        while conv_weight((stage, block, 1)) is not None:
            stride = 2 if stage > 0 and block == 0 else 1
            shortcut = features
            if conv_weight((stage, block, "shortcut")) is not None:
                shortcut = conv_norm(features, stage, block, "shortcut", stride=stride)
            features = conv_norm(features, stage, block, 1).relu()
            features = conv_norm(features, stage, block, 2, stride=stride).relu()
            features = (conv_norm(features, stage, block, 3) + shortcut).relu()
            block += 1
        stage += 1
    return features


# timm's names, which Segmenter and DeiT share.


def _norm(weights: Weights, name: str, tokens: torch.Tensor, eps: float) -> torch.Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)


def _linear(weights: Weights, name: str, tokens: torch.Tensor) -> torch.Tensor:
    return F.linear(tokens, weights[f"{name}.weight"], weights.get(f"{name}.bias"))


def _timm_layers(weights: Weights, prefix: str, tokens: torch.Tensor, num_heads: int, eps: float) -> list[torch.Tensor]:
    """The tokens, and what each layer makes of them."""
    outputs = [tokens]
    while f"{prefix}blocks.{len(outputs) - 1}.norm1.weight" in weights:
        name = f"{prefix}blocks.{len(outputs) - 1}"
        qkv = _linear(weights, f"{name}.attn.qkv", _norm(weights, f"{name}.norm1", tokens, eps))
        # (batch_size, num_tokens, 3 * D) -> 3 x (batch_size, num_tokens, num_heads, head_dim)
        query, key, value = qkv.unflatten(2, (3, num_heads, -1)).unbind(2)
        tokens = tokens + _linear(weights, f"{name}.attn.proj", _attend(query, key, value).flatten(2))
        hidden = _linear(weights, f"{name}.mlp.fc1", _norm(weights, f"{name}.norm2", tokens, eps))
        tokens = tokens + _linear(weights, f"{name}.mlp.fc2", F.gelu(hidden))
        outputs.append(tokens)
    return outputs


def _timm_stem(weights: Weights, prefix: str, pixel_values: torch.Tensor) -> torch.Tensor:
    def name(layer: tuple) -> tuple[str, str]:
        if layer == ("stem",):
            return f"{prefix}stem.conv", f"{prefix}stem.norm"
        stage, block, part = layer
        block_name = f"{prefix}stages.{stage}.blocks.{block}"
        if part == "shortcut":
            return f"{block_name}.downsample.conv", f"{block_name}.downsample.norm"
        return f"{block_name}.conv{part}", f"{block_name}.norm{part}"

    return _resnetv2(
        pixel_values,
        lambda layer: weights.get(f"{name(layer)[0]}.weight"),
        lambda layer: (weights[f"{name(layer)[1]}.weight"], weights[f"{name(layer)[1]}.bias"]),
    )


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
        weights (`Weights`): Parameters by timm's names, each with `prefix` before it.
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): Normalized images.
        num_heads (`int`): Attention heads.
        patch_size (`int`): Pixels per token side.
        grid (`tuple[int, int]`): Rows and columns of the position table.
        eps (`float`): Epsilon of the layer norms.
        mode (`str`): How the position table is resized.
        only_by_count (`bool`): Whether it is only resized when the number of patches differs.
        prefix (`str`): What stands before all names.

    Returns:
        A list of `torch.Tensor` of shape `(batch_size, num_prefix_tokens + h * w, D)`.
    """
    projection = weights[f"{prefix}patch_embed.proj.weight"], weights[f"{prefix}patch_embed.proj.bias"]
    if f"{prefix}patch_embed.backbone.stem.conv.weight" in weights:
        patches = F.conv2d(_timm_stem(weights, f"{prefix}patch_embed.backbone.", pixel_values), *projection)
    else:
        patches = F.conv2d(_pad(pixel_values, patch_size), *projection, stride=patch_size)
    tokens = [weights[prefix + name] for name in ("cls_token", "dist_token") if prefix + name in weights]
    embedded = _add_positions(patches, tokens, weights[f"{prefix}pos_embed"], grid, mode, only_by_count)
    return _timm_layers(weights, prefix, embedded, num_heads, eps)


def timm_tokens(
    weights: Weights, pixel_values: torch.Tensor, *, eps: float, prefix: str = "", **fields: Any
) -> torch.Tensor:
    """Tokens after the last layer and the final norm, where there is one; see [`timm_hidden_states`]."""
    tokens = timm_hidden_states(weights, pixel_values, eps=eps, prefix=prefix, **fields)[-1]
    return _norm(weights, f"{prefix}norm", tokens, eps) if f"{prefix}norm.weight" in weights else tokens


# AugReg's names and layouts (kernels: inputs before outputs, heads apart).


def _augreg_stem(weights: Weights, pixel_values: torch.Tensor) -> torch.Tensor:
    def name(layer: tuple) -> tuple[str, str]:
        if layer == ("stem",):
            return "conv_root", "gn_root"
        stage, block, part = layer
        part = "_proj" if part == "shortcut" else part
        return f"block{stage + 1}/unit{block + 1}/conv{part}", f"block{stage + 1}/unit{block + 1}/gn{part}"

    def conv_weight(layer: tuple) -> torch.Tensor | None:
        kernel = weights.get(f"{name(layer)[0]}/kernel")
        # (height, width, inputs, outputs) -> (outputs, inputs, height, width)
        return None if kernel is None else kernel.permute(3, 2, 0, 1)

    return _resnetv2(
        pixel_values,
        conv_weight,
        lambda layer: (weights[f"{name(layer)[1]}/scale"].flatten(), weights[f"{name(layer)[1]}/bias"].flatten()),
    )


def augreg_tokens(
    weights: Weights, pixel_values: torch.Tensor, *, patch_size: int, grid: tuple[int, int], eps: float, mode: str
) -> torch.Tensor:
    """Tokens `(batch_size, 1 + h * w, D)` after the final norm; see [`timm_tokens`]."""

    def norm(name: str, tokens: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(tokens, tokens.shape[-1:], weights[f"{name}/scale"], weights[f"{name}/bias"], eps)

    def dense(name: str, tokens: torch.Tensor) -> torch.Tensor:
        return tokens @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]

    # (height, width, inputs, outputs) -> (outputs, inputs, height, width)
    projection = weights["embedding/kernel"].permute(3, 2, 0, 1), weights["embedding/bias"]
    if "conv_root/kernel" in weights:
        patches = F.conv2d(_augreg_stem(weights, pixel_values), *projection)
    else:
        patches = F.conv2d(_pad(pixel_values, patch_size), *projection, stride=patch_size)
    table = weights["Transformer/posembed_input/pos_embedding"]
    tokens = _add_positions(patches, [weights["cls"]], table, grid, mode)
    number = 0
    while f"Transformer/encoderblock_{number}/LayerNorm_0/scale" in weights:
        layer = f"Transformer/encoderblock_{number}"
        attention = f"{layer}/MultiHeadDotProductAttention_1"
        normed = norm(f"{layer}/LayerNorm_0", tokens)
        # (batch_size, num_tokens, D) -> 3 x (batch_size, num_tokens, num_heads, head_dim)
        query, key, value = (
            torch.einsum("bnd,dhe->bnhe", normed, weights[f"{attention}/{part}/kernel"])
            + weights[f"{attention}/{part}/bias"]
            for part in ("query", "key", "value")
        )
        attended = torch.einsum("bnhe,hed->bnd", _attend(query, key, value), weights[f"{attention}/out/kernel"])
        tokens = tokens + attended + weights[f"{attention}/out/bias"]
        hidden = F.gelu(dense(f"{layer}/MlpBlock_3/Dense_0", norm(f"{layer}/LayerNorm_2", tokens)))
        tokens = tokens + dense(f"{layer}/MlpBlock_3/Dense_1", hidden)
        number += 1
    return norm("Transformer/encoder_norm", tokens)


# Segmenter.


def _segmenter_masks(weights: Weights, patches: torch.Tensor) -> torch.Tensor:
    """Patch tokens `(batch_size, num_patches, D)` -> scores `(batch_size, num_patches, num_labels)`."""
    if "decoder.head.weight" in weights:
        return _linear(weights, "decoder.head", patches)
    batch_size, num_patches, _ = patches.shape
    width = weights["decoder.cls_emb"].shape[2]
    tokens = _linear(weights, "decoder.proj_dec", patches)
    tokens = torch.cat([tokens, weights["decoder.cls_emb"].expand(batch_size, -1, -1)], dim=1)
    tokens = _timm_layers(weights, "decoder.", tokens, max(1, width // 64), 1e-5)[-1]
    tokens = _norm(weights, "decoder.decoder_norm", tokens, 1e-5)
    patches, classes = tokens[:, :num_patches], tokens[:, num_patches:]
    patches, classes = patches @ weights["decoder.proj_patch"], classes @ weights["decoder.proj_classes"]
    patches, classes = (vectors / vectors.square().sum(-1, keepdim=True).sqrt() for vectors in (patches, classes))
    cosines = torch.einsum("bnd,bkd->bnk", patches, classes)
    return _norm(weights, "decoder.mask_norm", cosines, 1e-5)


@torch.no_grad()
def segmenter_forward(
    weights: Weights, pixel_values: torch.Tensor, *, num_heads: int, patch_size: int, grid: tuple[int, int]
) -> torch.Tensor:
    """
    The released Segmenter in eval mode.

    Returns:
        Logits `(batch_size, num_labels, height, width)` at the size of the input.
    """
    height, width = pixel_values.shape[-2:]
    padded = _pad(pixel_values, patch_size)
    tokens = timm_tokens(
        weights,
        padded,
        num_heads=num_heads,
        patch_size=patch_size,
        grid=grid,
        eps=1e-5,
        mode="bilinear",
        only_by_count=True,
        prefix="encoder.",
    )
    num_prefix_tokens = 2 if "encoder.dist_token" in weights else 1
    masks = _segmenter_masks(weights, tokens[:, num_prefix_tokens:])
    # (batch_size, h * w, K) -> (batch_size, K, h, w) -> (batch_size, K, padded height, padded width)
    masks = masks.mT.reshape(*masks.mT.shape[:2], *(size // patch_size for size in padded.shape[-2:]))
    logits = F.interpolate(masks, size=padded.shape[-2:], mode="bilinear", align_corners=False)
    return logits[..., :height, :width]


# mmsegmentation's names.


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
        grid (`tuple[int, int]`): Rows and columns of the position table; it is resized when the number of patches differs.
        only_by_count (`bool`): Whether only then, or whenever the grid differs.
        halving_layer (`int`, *optional*): Index of a layer whose queries are every second patch of every second row.
        pixel_values, num_heads, patch_size, eps, mode: See [`timm_tokens`].

    Returns:
        A list of `torch.Tensor` of shape `(batch_size, D, h, w)`.
    """
    if "backbone.patch_embed.backbone.stem.conv.weight" in weights:
        projection = weights["backbone.patch_embed.proj.weight"], weights["backbone.patch_embed.proj.bias"]
        patches = F.conv2d(_timm_stem(weights, "backbone.patch_embed.backbone.", pixel_values), *projection)
    else:
        projection = weights["backbone.patch_embed.projection.weight"], weights["backbone.patch_embed.projection.bias"]
        patches = F.conv2d(_pad(pixel_values, patch_size), *projection, stride=patch_size)
    names = [f"backbone.{name}_token" for name in ("cls", "dist")]
    prefix = [weights[name] for name in names if name in weights]
    table = weights["backbone.pos_embed"]
    tokens = _add_positions(patches, prefix, table, grid, mode, only_by_count)
    rows, columns = patches.shape[-2:]
    # (batch_size, num_tokens, D) -> (batch_size, D, h, w)
    outputs = [tokens[:, len(prefix) :].mT.unflatten(2, (rows, columns))]
    while f"backbone.layers.{len(outputs) - 1}.ln1.weight" in weights:
        layer = f"backbone.layers.{len(outputs) - 1}"
        attention = f"{layer}.attn.attn"
        normed = _norm(weights, f"{layer}.ln1", tokens, eps)
        qkv = F.linear(normed, weights[f"{attention}.in_proj_weight"], weights[f"{attention}.in_proj_bias"])
        # (batch_size, num_tokens, 3 * D) -> 3 x (batch_size, num_tokens, num_heads, head_dim)
        query, key, value = qkv.unflatten(2, (3, num_heads, -1)).unbind(2)
        if len(outputs) - 1 == halving_layer:
            number = torch.arange(rows * columns).view(rows, columns)[::2, ::2]
            rows, columns = number.shape
            kept = torch.cat([torch.arange(len(prefix)), len(prefix) + number.flatten()])
            query, tokens = query[:, kept], tokens[:, kept]
        tokens = tokens + _linear(weights, f"{attention}.out_proj", _attend(query, key, value).flatten(2))
        hidden = F.gelu(_linear(weights, f"{layer}.ffn.layers.0.0", _norm(weights, f"{layer}.ln2", tokens, eps)))
        tokens = tokens + _linear(weights, f"{layer}.ffn.layers.1", hidden)
        outputs.append(tokens[:, len(prefix) :].mT.unflatten(2, (rows, columns)))
    return outputs


# RegProxy.


def _conv_norm(weights: Weights, name: str, features: torch.Tensor, eps: float) -> torch.Tensor:
    weight = weights[f"{name}.conv.weight"]
    features = F.conv2d(features, weight, padding=weight.shape[-1] // 2, groups=features.shape[1] // weight.shape[1])
    statistics = (weights[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    mean, variance, scale, shift = (values[:, None, None] for values in statistics)
    return ((features - mean) / (variance + eps).sqrt() * scale + shift).relu()


@torch.no_grad()
def regproxy_forward(
    weights: Weights,
    pixel_values: torch.Tensor,
    *,
    token_head_depth: int,
    cell_size: tuple[int, int],
    eps: float,
    batch_norm_eps: float,
    **encoder: Any,
) -> torch.Tensor:
    """
    The released RegProxy in eval mode.

    Args:
        token_head_depth (`int`): Layers before the affinity head.
        cell_size (`tuple[int, int]`): Predictions for each token, down and across.
        eps, batch_norm_eps (`float`): Epsilon of layer norms and batch norms.
        weights, pixel_values, encoder: See [`mmseg_tokens`].

    Returns:
        Logits `(batch_size, num_labels, height, width)` at the size of the input.
    """
    features = mmseg_tokens(weights, pixel_values, eps=eps, **encoder)
    early, late = features[token_head_depth], features[-1]
    (rows, columns), (cell_height, cell_width) = late.shape[-2:], cell_size
    for part in ("depthwise_conv", "pointwise_conv"):
        early = _conv_norm(weights, f"decode_head.affinity_head.0.{part}", early, batch_norm_eps)
    predictor = "decode_head.affinity_head.1.conv"
    scores = F.conv2d(early, weights[f"{predictor}.weight"], weights[f"{predictor}.bias"])
    scores = _unpack(scores, cell_size)
    tokens = _norm(weights, "backbone.ln1", late.permute(0, 2, 3, 1), eps)
    # (batch_size, H, W, K) -> (batch_size, K, H, W)
    token_logits = _linear(weights, "decode_head.mlp.0.0", tokens).permute(0, 3, 1, 2)

    # each pixel's token is `(row, column)`; neighbors that do not exist take no part
    row = torch.arange(rows * cell_height)[:, None] // cell_height
    column = torch.arange(columns * cell_width)[None] // cell_width
    total, weight_sum = torch.zeros(()), torch.zeros(())
    largest = scores.amax(dim=1, keepdim=True)
    for number, score in enumerate(scores.unbind(1)):
        y, x = row + number // 3 - 1, column + number % 3 - 1
        exists = (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
        weight = (score[:, None] - largest).exp() * exists
        total = total + weight * token_logits[:, :, y.clamp(0, rows - 1), x.clamp(0, columns - 1)]
        weight_sum = weight_sum + weight
    painted = total / weight_sum
    return F.interpolate(painted, size=pixel_values.shape[-2:], mode="bilinear", align_corners=False)


def _unpack(scores: torch.Tensor, cell_size: tuple[int, int]) -> torch.Tensor:
    """`(batch_size, 9 * h * w, H, W)` -> `(batch_size, 9, H * h, W * w)`"""
    rows, columns = (side * cell for side, cell in zip(scores.shape[-2:], cell_size, strict=True))
    # (batch_size, 9, h, w, H, W) -> (batch_size, 9, H, h, W, w)
    cells = scores.unflatten(1, (9, *cell_size)).permute(0, 1, 4, 2, 5, 3)
    return cells.reshape(len(scores), 9, rows, columns)


# SegViT.


def _torch_attention(
    weights: Weights, name: str, query: torch.Tensor, memory: torch.Tensor, heads: int
) -> torch.Tensor:
    """`torch.nn.MultiheadAttention` by its parameters' names: `(batch_size, length, E)` -> the same shape."""
    parts = zip(weights[f"{name}.in_proj_weight"].chunk(3), weights[f"{name}.in_proj_bias"].chunk(3), strict=True)
    projected = [
        F.linear(tokens, weight, bias).unflatten(2, (heads, -1))
        for tokens, (weight, bias) in zip((query, memory, memory), parts, strict=True)
    ]
    return _linear(weights, f"{name}.out_proj", _attend(*projected).flatten(2))


def _mask_attention(
    weights: Weights, name: str, query: torch.Tensor, memory: torch.Tensor, heads: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The attention whose scores `(batch_size, num_queries, num_patches)` are masks."""
    query, key, value = (
        _linear(weights, f"{name}.{part}", tokens).unflatten(2, (heads, -1))
        for part, tokens in (("q", query), ("k", memory), ("v", memory))
    )
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
    attended = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(dim=-1), value)
    return _linear(weights, f"{name}.proj", attended.flatten(2)), scores.mean(dim=1)


def _segvit_stage(
    weights: Weights, name: str, query: torch.Tensor, memory: torch.Tensor, heads: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Queries after all layers of a stage, and the last layer's masks where its attention gives any."""
    number, masks = 0, None
    while f"{name}.layers.{number}.norm1.weight" in weights:
        layer = f"{name}.layers.{number}"
        attended = _torch_attention(weights, f"{layer}.self_attn", query, query, heads)
        query = _norm(weights, f"{layer}.norm1", query + attended, 1e-5)
        if f"{layer}.multihead_attn.q.weight" in weights:
            attended, masks = _mask_attention(weights, f"{layer}.multihead_attn", query, memory, heads)
        else:
            attended = _torch_attention(weights, f"{layer}.multihead_attn", query, memory, heads)
        query = _norm(weights, f"{layer}.norm2", query + attended, 1e-5)
        hidden = _linear(weights, f"{layer}.linear1", query).relu()
        query = _norm(weights, f"{layer}.norm3", query + _linear(weights, f"{layer}.linear2", hidden), 1e-5)
        number += 1
    return query, masks


@torch.no_grad()
def segvit_forward(
    weights: Weights,
    pixel_values: torch.Tensor,
    *,
    taps: list[int],
    decoder_heads: int,
    image_size: int,
    patch_size: int,
    halving_layer: int | None,
    **encoder: Any,
) -> torch.Tensor:
    """
    The released SegViT in eval mode. The original takes squares only; here rows and columns are kept apart.

    Args:
        taps (`list[int]`): Numbers of the layers, from 1, that the decoder sees.
        decoder_heads (`int`): Heads of the decoder's attention.
        image_size (`int`): Side at which masks become probabilities: the training crop.
        halving_layer (`int`, *optional*): Index of the layer that down-samples.
        weights, pixel_values, patch_size, encoder: See [`mmseg_tokens`].

    Returns:
        Scores `(batch_size, num_labels, height, width)` at the size of the input.
    """
    size = pixel_values.shape[-2:]
    padded = _pad(pixel_values, patch_size * (1 if halving_layer is None else 2))
    features = mmseg_tokens(
        weights, padded, patch_size=patch_size, halving_layer=halving_layer, only_by_count=False, **encoder
    )
    head = "decode_head"

    def lateral(stage: int, tap: int) -> torch.Tensor:
        tokens = _linear(weights, f"{head}.input_proj_{stage}", features[tap].flatten(2).mT)
        return _norm(weights, f"{head}.proj_norm_{stage}", tokens, 1e-5)

    def start(name: str) -> torch.Tensor:
        return weights[f"{name}.q.weight"].expand(len(pixel_values), -1, -1)

    query, grid = start(head), tuple(features[taps[0]].shape[-2:])
    masks: Any = 0.0
    if f"{head}.atm.q.weight" in weights:
        side = math.isqrt(query.shape[1])
        grid = (side, side)
        for stage, tap in enumerate(taps, start=1):
            query, _ = _segvit_stage(weights, f"{head}.decoder_{stage}", query, lateral(stage, tap), decoder_heads)
        head = f"{head}.atm"
        query, masks = _segvit_stage(weights, f"{head}.decoder_1", start(head), query, decoder_heads)
    else:
        for stage, tap in enumerate(reversed(taps), start=1):
            memory = lateral(stage, tap)
            query, scores = _segvit_stage(weights, f"{head}.decoder_{stage}", query, memory, decoder_heads)
            masks = masks + scores
    # (batch_size, num_queries, h * w) -> (batch_size, num_queries, image_size, image_size)
    masks = F.interpolate(masks.unflatten(2, grid), size=(image_size, image_size), mode="bilinear", align_corners=False)
    probabilities = _linear(weights, f"{head}.class_embed", query).softmax(dim=-1)[..., :-1]
    scores = torch.einsum("bqc,bqhw->bchw", probabilities, masks.sigmoid())
    return F.interpolate(scores, size=size, mode="bilinear", align_corners=False)


__all__ = [
    "augreg_tokens",
    "mmseg_tokens",
    "regproxy_forward",
    "segmenter_forward",
    "segvit_forward",
    "timm_hidden_states",
    "timm_tokens",
]
