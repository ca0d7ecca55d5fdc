# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Configuration of a ViT encoder from the names and shapes of its weights."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...plain_vit.configuration_plain_vit import PlainViTConfig
from ..checkpoint_files import ConversionError
from ..key_mapping import count_parts
from .vit_keys import STEM


# Hidden sizes whose heads do not have 64 channels each: hidden size -> number of heads.
_NUM_HEADS = {1280: 16}  # ViT-H


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
    Derive the configuration of an encoder from its weights.

    Args:
        tensors (`Mapping[str, torch.Tensor]`): Tensors by the names of a [`PlainViTBackbone`]; only shapes count.
        num_attention_heads (`int`, *optional*): Number of heads; defaults to one for every 64 channels (ViT-H: 16).
        position_grid (`Sequence[int]`, *optional*): Rows and columns of the position embeddings; defaults to a square.
        layer_norm_eps (`float`, defaults to 1e-6): Epsilon of the layer norms.
        prefix (`str`, *optional*, defaults to `""`): Beginning of the encoder's names; other names are ignored.
        fields: Other fields of the configuration; they replace the derived ones.

    Raises:
        ConversionError: if the position embeddings have another number of patches than `position_grid`.
        KeyError: if a tensor is missing.
    """
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    projection = tensors["embeddings.patch_embeddings.projection.weight"]
    positions = tensors["embeddings.position_embeddings"]
    hidden_size = projection.shape[0]
    if num_attention_heads is None:
        num_attention_heads = _NUM_HEADS.get(hidden_size, max(1, hidden_size // 64))
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
