# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""ViT encoders: key maps of timm (DeiT and Segmenter, too), AugReg and mmsegmentation, and configuration by the weights."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...plain_vit import PlainViTConfig
from ..checkpoint_files import ConversionError
from ..key_mapping import add_prefix, count_parts


# timm, DeiT and Segmenter.
TRANSFORMER_LAYER = {
    "norm1.{p}": "layernorm_before.{p}",
    "attn.qkv.{p}": "attention.qkv.{p}",
    "attn.proj.{p}": "attention.o_proj.{p}",
    "norm2.{p}": "layernorm_after.{p}",
    "mlp.fc1.{p}": "mlp.fc1.{p}",
    "mlp.fc2.{p}": "mlp.fc2.{p}",
}
STEM = "embeddings.patch_embeddings.stem."
# The hybrids' convolutional stem, the same in timm and mmsegmentation.
_HYBRID_STEM = {
    "patch_embed.backbone.stem.conv.{p}": STEM + "embedder.convolution.{p}",
    "patch_embed.backbone.stem.norm.{p}": STEM + "embedder.norm.{p}",
    "patch_embed.backbone.stages.{s}.blocks.{b}.{layer}.{p}": STEM + "encoder.stages.{s}.layers.{b}.{layer}.{p}",
    "patch_embed.backbone.stages.{s}.blocks.{b}.downsample.{layer}.{p}": (
        STEM + "encoder.stages.{s}.layers.{b}.downsample.{layer}.{p}"
    ),
    "patch_embed.proj.{p}": "embeddings.patch_embeddings.projection.{p}",
}
_TOKENS = {
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "pos_embed": "embeddings.position_embeddings",
}
TIMM_VIT = {
    **_TOKENS,
    **_HYBRID_STEM,  # holds the plain ViT's projection, too
    **add_prefix(TRANSFORMER_LAYER, "blocks.{i}.", "encoder.layers.{i}."),
    "norm.{p}": "layernorm.{p}",
}
# ImageNet classifiers and the layers that exist only for them.
TIMM_DROPPED = ("head.{p}", "head_dist.{p}", "pre_logits.fc.{p}", "fc_norm.{p}")

# AugReg. Arrays also change their layout, and queries, keys and values become one matrix: see `formats/backbone.py`.
_AUGREG_LAYER = {
    "LayerNorm_0/scale": "layernorm_before.weight",
    "LayerNorm_0/bias": "layernorm_before.bias",
    "MultiHeadDotProductAttention_1/out/kernel": "attention.o_proj.weight",
    "MultiHeadDotProductAttention_1/out/bias": "attention.o_proj.bias",
    "MultiHeadDotProductAttention_1/{part}/kernel": "attention.{part}.weight",
    "MultiHeadDotProductAttention_1/{part}/bias": "attention.{part}.bias",
    "LayerNorm_2/scale": "layernorm_after.weight",
    "LayerNorm_2/bias": "layernorm_after.bias",
    "MlpBlock_3/Dense_0/kernel": "mlp.fc1.weight",
    "MlpBlock_3/Dense_0/bias": "mlp.fc1.bias",
    "MlpBlock_3/Dense_1/kernel": "mlp.fc2.weight",
    "MlpBlock_3/Dense_1/bias": "mlp.fc2.bias",
}
_AUGREG_STEM_BLOCK = {
    "conv{n}/kernel": "conv{n}.weight",
    "gn{n}/scale": "norm{n}.weight",
    "gn{n}/bias": "norm{n}.bias",
}
AUGREG = {
    "cls": "embeddings.cls_token",
    "Transformer/posembed_input/pos_embedding": "embeddings.position_embeddings",
    "embedding/kernel": "embeddings.patch_embeddings.projection.weight",
    "embedding/bias": "embeddings.patch_embeddings.projection.bias",
    **add_prefix(_AUGREG_LAYER, "Transformer/encoderblock_{i}/", "encoder.layers.{i}."),
    "Transformer/encoder_norm/scale": "layernorm.weight",
    "Transformer/encoder_norm/bias": "layernorm.bias",
    # the hybrids' stem; stages and blocks count from 1
    "conv_root/kernel": STEM + "embedder.convolution.weight",
    "gn_root/scale": STEM + "embedder.norm.weight",
    "gn_root/bias": STEM + "embedder.norm.bias",
    "block{s}/unit{b}/conv_proj/kernel": STEM + "encoder.stages.{s-1}.layers.{b-1}.downsample.conv.weight",
    "block{s}/unit{b}/gn_proj/scale": STEM + "encoder.stages.{s-1}.layers.{b-1}.downsample.norm.weight",
    "block{s}/unit{b}/gn_proj/bias": STEM + "encoder.stages.{s-1}.layers.{b-1}.downsample.norm.bias",
    **add_prefix(_AUGREG_STEM_BLOCK, "block{s}/unit{b}/", STEM + "encoder.stages.{s-1}.layers.{b-1}."),
}
AUGREG_DROPPED = ("head/{p}", "pre_logits/{p}")

# mmsegmentation.
_MMSEG_LAYER = {
    "ln1.{p}": "layernorm_before.{p}",
    "attn.attn.in_proj_{p}": "attention.qkv.{p}",
    "attn.attn.out_proj.{p}": "attention.o_proj.{p}",
    "ln2.{p}": "layernorm_after.{p}",
    "ffn.layers.0.0.{p}": "mlp.fc1.{p}",
    "ffn.layers.1.{p}": "mlp.fc2.{p}",
}
MMSEG_VIT = {
    **_TOKENS,
    **_HYBRID_STEM,
    "patch_embed.projection.{p}": "embeddings.patch_embeddings.projection.{p}",
    **add_prefix(_MMSEG_LAYER, "layers.{i}.", "encoder.layers.{i}."),
    "ln1.{p}": "layernorm.{p}",
}


def position_grid(image_size: int | Sequence[int], patch_size: int) -> list[int]:
    """Rows and columns of the position embeddings of a model trained on images of this size."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return [height // patch_size, width // patch_size]


def infer_config(
    tensors: Mapping[str, torch.Tensor],
    num_attention_heads: int | None = None,
    position_grid: Sequence[int] | None = None,
    layer_norm_eps: float = 1e-6,
    prefix: str = "",
    **fields: Any,
) -> PlainViTConfig:
    """
    Derive the configuration of an encoder from its tensors, which have the names of a [`PlainViTBackbone`] after `prefix`.
    Attention has one head for every 64 channels (ViT-H: 16) and position embeddings a square grid by default; `fields` are
    other fields of the configuration, and replace the derived ones.

    Raises:
        ConversionError: if the position embeddings have another number of patches than `position_grid`.
        KeyError: if a tensor is missing.
    """
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    projection = tensors["embeddings.patch_embeddings.projection.weight"]
    positions = tensors["embeddings.position_embeddings"]
    hidden_size = projection.shape[0]
    if num_attention_heads is None:
        # heads have 64 channels each, in ViT-H 80
        num_attention_heads = 16 if hidden_size == 1280 else max(1, hidden_size // 64)
    use_cls_token, use_distillation_token = (
        f"embeddings.{name}" in tensors for name in ("cls_token", "distillation_token")
    )
    stem: dict[str, Any] = {}
    patch_size = projection.shape[-1]
    if STEM + "embedder.convolution.weight" in tensors:
        stages = re.escape(STEM) + r"encoder\.stages\."
        num_stages = count_parts(tensors, stages + r"(\d+)\.")
        last = STEM + "encoder.stages.{}.layers.0.conv3.weight"
        stem = {
            "stem_type": "resnetv2",
            "stem_depths": [count_parts(tensors, stages + rf"{stage}\.layers\.(\d+)\.") for stage in range(num_stages)],
            "stem_hidden_sizes": [tensors[last.format(stage)].shape[0] for stage in range(num_stages)],
            "stem_embedding_size": tensors[STEM + "embedder.convolution.weight"].shape[0],
        }
        patch_size = 4 * 2 ** (num_stages - 1)
    rows, columns = _check_grid(positions.shape[1] - use_cls_token - use_distillation_token, position_grid)
    derived = {
        "hidden_size": hidden_size,
        "num_hidden_layers": count_parts(tensors, r"encoder\.layers\.(\d+)\."),
        "num_attention_heads": num_attention_heads,
        "intermediate_size": tensors["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "layer_norm_eps": layer_norm_eps,
        "qkv_bias": "encoder.layers.0.attention.qkv.bias" in tensors,
        "image_size": [rows * patch_size, columns * patch_size],
        "patch_size": patch_size,
        "num_channels": tensors.get(STEM + "embedder.convolution.weight", projection).shape[1],
        "use_cls_token": use_cls_token,
        "use_distillation_token": use_distillation_token,
        "final_norm": "last" if "layernorm.weight" in tensors else "none",
        **stem,
    }
    return PlainViTConfig(**{**derived, **fields})


def _check_grid(num_patches: int, grid: Sequence[int] | None) -> tuple[int, int]:
    if grid is None:
        grid = (math.isqrt(num_patches),) * 2
    if not isinstance(grid, (list, tuple)) or len(grid) != 2 or not all(isinstance(count, int) for count in grid):
        raise ConversionError(f"`position_grid` is {grid!r}; expected [ROWS, COLUMNS].")
    rows, columns = grid
    if rows * columns != num_patches:
        raise ConversionError(
            f"The position embeddings are of {num_patches} patches, which is not {rows} x {columns}. Give their rows and "
            'columns in a JSON file with --config: {"position_grid": [ROWS, COLUMNS]}.'
        )
    return rows, columns


def reference_fields(config: Any) -> dict[str, Any]:
    """Arguments of the forward passes in `reference/vit.py` for an encoder with a [`PlainViTConfig`]."""
    return {
        "num_heads": config.num_attention_heads,
        "patch_size": config.patch_size,
        "grid": config.position_grid,
        "mode": config.position_embedding_interpolation,
        "eps": config.layer_norm_eps,
    }
