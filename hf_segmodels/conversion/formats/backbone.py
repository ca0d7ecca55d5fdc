# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Format of encoders pre-trained on ImageNet: AugReg ViT, DeiT and timm state dicts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import image_utils

from ...plain_vit import PlainViTBackbone, PlainViTConfig
from ...segmenter import SegmenterImageProcessorPil
from ..checkpoint_files import ConversionError, OriginalCheckpoint
from ..checkpoint_format import CheckpointFormat, MappedWeights, Weights
from ..key_mapping import KeyMap
from ..mmcv_config import read_config_file
from ..reference.vit import backbone_forward
from .vit import AUGREG, AUGREG_DROPPED, TIMM_DROPPED, TIMM_VIT, infer_config, reference_fields


NORMALIZATIONS = {
    "vit": (image_utils.IMAGENET_STANDARD_MEAN, image_utils.IMAGENET_STANDARD_STD),
    "deit": (image_utils.IMAGENET_DEFAULT_MEAN, image_utils.IMAGENET_DEFAULT_STD),
}

# Prefix of AugReg's keys in a file that was saved with its optimizer.
_OPTIMIZER_PREFIX = "opt/target/"


def _is_augreg(weights: Weights) -> bool:
    return any(key.startswith(("Transformer/", _OPTIMIZER_PREFIX)) for key in weights)


def _augreg_to_torch(name: str, array: torch.Tensor) -> torch.Tensor:
    """An AugReg array, by its original name, in torch's layout."""
    if name.endswith("/kernel"):
        if "/out/" in name:
            array = array.flatten(0, 1)  # (num_heads, head_dim, D) -> (D, D)
        elif "MultiHeadDotProductAttention" in name:
            array = array.flatten(1)  # (D, num_heads, head_dim) -> (D, D)
        # (inputs, outputs) -> (outputs, inputs); (height, width, inputs, outputs) -> (outputs, inputs, height, width)
        return array.permute(3, 2, 0, 1).contiguous() if array.ndim == 4 else array.T.contiguous()
    if name.endswith(("/scale", "/bias")):
        return array.flatten()  # attention biases are (num_heads, head_dim), the stem's are (1, 1, 1, num_channels)
    return array


def _fuse_attention(tensors: Weights) -> dict[str, torch.Tensor]:
    """`attention.{query,key,value}` of each layer -> `attention.qkv`, rows in this order."""
    parts = tuple(f".attention.{part}." for part in ("query", "key", "value"))
    fused = {name: tensor for name, tensor in tensors.items() if not any(part in name for part in parts)}
    for name in (name for name in tensors if parts[0] in name):
        names = [name.replace(parts[0], part) for part in parts]
        if any(other not in tensors for other in names):
            raise ConversionError(f"The checkpoint lacks keys or values beside {name}: it is damaged or cut off.")
        fused[name.replace(parts[0], ".attention.qkv.")] = torch.cat([tensors[other] for other in names])
    return fused


# Fields of a --config file, and other names of two.
_FIELDS = ("num_attention_heads", "position_grid", "layer_norm_eps", "normalization")
_OTHER_NAMES = {"n_heads": "num_attention_heads", "pretrain_grid": "position_grid"}


def _read_fields(path: Path) -> dict[str, Any]:
    values = read_config_file(path, json.loads, "Leave --config out if the weights suffice.")
    if not isinstance(values, dict):
        raise ConversionError(f"{path} must hold an object with any of {', '.join(_FIELDS)}.")
    values = {ours: values[other] for other, ours in _OTHER_NAMES.items() if other in values} | values
    return {name: values[name] for name in _FIELDS if name in values}


class BackboneFormat(CheckpointFormat):
    """
    AugReg's `.npz`, DeiT's `.pth` (`{"model"}`), and timm state dicts of a plain ViT, a DeiT or a hybrid with a ResNetV2
    stem. Position embeddings keep their grid: the model resizes them to each input.
    """

    method = "backbone"
    title = "an ImageNet ViT, DeiT or AugReg ViT"
    signature = ("patch_embed.", "Transformer/", f"{_OPTIMIZER_PREFIX}Transformer/")
    model_class = PlainViTBackbone
    dropped = TIMM_DROPPED + AUGREG_DROPPED

    def read_config(self, checkpoint: OriginalCheckpoint, path: Path | None) -> tuple[dict[str, Any], list[str]]:
        values = {} if path is None else _read_fields(path)
        if "normalization" not in values:
            is_deit = "dist_token" in checkpoint.weights or "deit" in checkpoint.path.name.lower()
            values["normalization"] = "deit" if is_deit else "vit"
        if values["normalization"] not in NORMALIZATIONS:
            raise ConversionError(
                f"`normalization` is {values['normalization']!r}; expected one of {', '.join(NORMALIZATIONS)}."
            )
        return values, []

    def drop_unused(self, weights: Weights, values: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], list[str]]:
        if "patch_embed.backbone.conv.weight" in weights:
            raise ConversionError(
                "The checkpoint is a hybrid whose stem has no stages (R+ViT-Ti/16), which is not supported; the hybrids "
                "R26 and R50 are."
            )
        return {key.removeprefix(_OPTIMIZER_PREFIX): tensor for key, tensor in weights.items()}, []

    def key_map(self, weights: Weights) -> KeyMap:
        return AUGREG if _is_augreg(weights) else TIMM_VIT

    def map_tensors(self, weights: Weights, renamed: Mapping[str, str]) -> dict[str, torch.Tensor]:
        if not _is_augreg(weights):
            return super().map_tensors(weights, renamed)
        return _fuse_attention({ours: _augreg_to_torch(key, weights[key]) for key, ours in renamed.items()})

    def model_config(self, weights: Weights, tensors: Weights, values: Mapping[str, Any]) -> PlainViTConfig:
        fields = {name: value for name, value in values.items() if name != "normalization"}
        query = weights.get("Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/bias")
        if query is not None:
            fields.setdefault("num_attention_heads", query.shape[0])
        return infer_config(tensors, **fields)

    def image_processor(self, config: PlainViTConfig, values: Mapping[str, Any]) -> SegmenterImageProcessorPil:
        mean, std = NORMALIZATIONS[values["normalization"]]
        height, width = self.image_size(config)
        return SegmenterImageProcessorPil(
            size={"height": height, "width": width}, image_mean=list(mean), image_std=list(std)
        )

    def notes(self, mapped: MappedWeights, values: Mapping[str, Any]) -> list[str]:
        mean, std = NORMALIZATIONS[values["normalization"]]
        height, width = self.image_size(mapped.config)
        return [
            f"{mapped.config.num_attention_heads} heads, position embeddings for {height}x{width} pixels, mean "
            f"{list(mean)}, standard deviation {list(std)}; set other values with --config"
        ]

    def reference(self, weights: Weights, config: PlainViTConfig, pixel_values: torch.Tensor) -> torch.Tensor:
        return backbone_forward(weights, pixel_values, **reference_fields(config))

    def model_scores(self, model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
        return model(pixel_values).feature_maps[-1]
