# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Base of the formats that mmcv writes: weights and the text of the configuration."""

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import ImageProcessingMixin

from ...plain_vit import PlainViTConfig
from ..checkpoint_files import ConversionError, OriginalCheckpoint
from ..checkpoint_format import CheckpointFormat, MappedWeights, Weights
from ..mmcv_config import (
    check_config_matches_weights,
    complete_config,
    image_processor_fields,
    norm_eps,
    read_mmseg_config,
)
from .vit import infer_config, position_grid


class MMCVFormat(CheckpointFormat):
    """Format of mmcv's `.pth` files. A subclass also sets `image_processor_class`."""

    image_processor_class: ClassVar[type[ImageProcessingMixin]]

    @abstractmethod
    def recognize(self, weights: Weights) -> tuple[str, dict[str, Any]] | None:
        """Name and configuration of the released checkpoint with these keys and shapes; `None` if there is none."""

    def read_config(self, checkpoint: OriginalCheckpoint, path: Path | None) -> tuple[dict[str, Any], list[str]]:
        notes: list[str] = []
        release = self.recognize(checkpoint.weights)
        try:
            values = read_mmseg_config(path, checkpoint.meta, self.expand)
        except ConversionError:
            if path is not None or release is None:
                raise
            values = None
        if values is None:
            if release is None:
                raise ConversionError(
                    f"{checkpoint.path} holds no configuration, and no released checkpoint has its keys and shapes. Give "
                    "its configuration (JSON, or self-contained Python) with --config."
                )
            name, values = release
            notes.append(f"recognized as {name} by its keys and shapes")
        return complete_config(values, checkpoint.meta), notes

    def expand(self, values: Any) -> Any:
        """The contents of a configuration file in mmsegmentation's layout."""
        return values

    def processor_fields(self, config: Any, values: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of the image processor that the configuration sets."""
        return image_processor_fields(values)

    def image_processor(self, config: Any, values: Mapping[str, Any]) -> ImageProcessingMixin:
        return self.image_processor_class(num_labels=config.num_labels, **self.processor_fields(config, values))

    def notes(self, mapped: MappedWeights, values: Mapping[str, Any]) -> list[str]:
        if image_processor_fields(values):
            return []
        return ["the configuration has no pipelines: images are resized and normalized as for ADE20K, 0 is a class"]


def mmseg_vit_config(tensors: Weights, encoder: Mapping[str, Any], **fields: Any) -> PlainViTConfig:
    """
    Configuration of mmsegmentation's `VisionTransformer` from its original configuration `encoder` and the tensors of the
    whole model by this package's names. `fields` are further fields.

    Raises:
        ConversionError: if a value contradicts the weights.
    """
    config = infer_config(
        tensors,
        prefix="backbone.",
        num_attention_heads=encoder.get("num_heads"),
        position_grid=position_grid(encoder["img_size"], encoder["patch_size"]),
        layer_norm_eps=norm_eps(encoder.get("norm_cfg")),
        hidden_dropout_prob=encoder.get("drop_rate", 0.0),
        attention_probs_dropout_prob=encoder.get("attn_drop_rate", 0.0),
        drop_path_rate=encoder.get("drop_path_rate", 0.0),
        position_embedding_interpolation=encoder.get("interpolate_mode", "bicubic"),
        **fields,
    )
    check_config_matches_weights(
        ("num_layers of the encoder", encoder.get("num_layers"), config.num_hidden_layers),
        ("embed_dims of the encoder", encoder.get("embed_dims"), config.hidden_size),
        ("patch_size of the encoder", encoder["patch_size"], config.patch_size),
    )
    return config


def num_patches(weights: Weights) -> int:
    """Number of patches that the position embeddings of mmsegmentation's `VisionTransformer` are of."""
    positions: torch.Tensor = weights["backbone.pos_embed"]
    return positions.shape[1] - sum(f"backbone.{token}_token" in weights for token in ("cls", "dist"))
