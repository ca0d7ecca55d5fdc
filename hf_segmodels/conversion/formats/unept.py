# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Format of UN-EPT's checkpoints, which mmcv wrote."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from ...plain_vit import PlainViTConfig
from ...resnet_v1c import ResNetV1cConfig
from ...unept import UNEPTConfig, UNEPTForSemanticSegmentation, UNEPTImageProcessorPil
from ..checkpoint_files import ConversionError
from ..checkpoint_format import MappedWeights, Weights
from ..key_mapping import add_prefix, count_parts
from ..mmcv_config import check_config_matches_weights, label_fields, window_fields
from ..reference.unept import unept_forward
from .mmcv import MMCVFormat
from .resnet_v1c import MMSEG_RESNET_V1C
from .vit import TIMM_VIT, infer_config, position_grid, reference_fields


_SAMPLED_ATTENTION = {
    "sampling_offsets.{p}": "sampling_offsets.{p}",
    "attention_weights.{p}": "attention_weights.{p}",
    "value_proj.{p}": "value_proj.{p}",
    "output_proj.{p}": "o_proj.{p}",
}
_FEED_FORWARD = {"linear1.{p}": "feed_forward.fc1.{p}", "linear2.{p}": "feed_forward.fc2.{p}"}
_ENCODER_LAYER = {
    **add_prefix(_SAMPLED_ATTENTION, "self_attn.", "attention."),
    "norm1.{p}": "attention_norm.{p}",
    **_FEED_FORWARD,
    "norm2.{p}": "feed_forward_norm.{p}",
}
_DECODER_LAYER = {
    "self_attn.in_proj_{p}": "self_attention.qkv.{p}",
    "self_attn.out_proj.{p}": "self_attention.o_proj.{p}",
    "norm2.{p}": "self_attention_norm.{p}",
    **add_prefix(_SAMPLED_ATTENTION, "cross_attn.", "cross_attention."),
    "norm1.{p}": "cross_attention_norm.{p}",
    **_FEED_FORWARD,
    "norm3.{p}": "feed_forward_norm.{p}",
}
_BOUNDARY_HEAD = {"0.{p}": "convolution.{p}", "1.{p}": "norm.{p}", "3.{p}": "classifier.{p}"}
UNEPT = {
    **add_prefix(TIMM_VIT, "backbone.", "backbone."),
    **add_prefix(MMSEG_RESNET_V1C, "backbone.", "backbone."),
    "layers.{i}.{p}": "projections.{i}.{p}",
    "spatial_branch.convblock{i}.conv1.{p}": "spatial_branch.convolutions.{i-1}.{p}",
    "spatial_branch.convblock{i}.bn.{p}": "spatial_branch.norms.{i-1}.{p}",
    "context_branch.level_embed": "encoder.level_embeddings",
    **add_prefix(_ENCODER_LAYER, "context_branch.encoder.layers.{i}.", "encoder.layers.{i}."),
    "query_embed.weight": "decoder.query_embeddings",
    **add_prefix(_DECODER_LAYER, "context_branch.decoder.layers.{i}.", "decoder.layers.{i}."),
    **add_prefix(_BOUNDARY_HEAD, "mask_head.", "boundary_head."),
    **add_prefix(_BOUNDARY_HEAD, "dir_head.", "direction_head."),
    "cls.{p}": "classifier.{p}",
}


# The original's data sets: number of classes -> class of the data set, and fields of the image processor.
_DATASET_TYPES = {150: "ADE20KDataset", 60: "PascalContextDataset"}
_PROCESSOR_FIELDS: dict[int, dict[str, Any]] = {
    150: {"size": {"shortest_edge": 512, "longest_edge": 2048}, "do_reduce_labels": True},
    60: {"size": {"shortest_edge": 520, "longest_edge": 520}, "do_reduce_labels": False},
}

# The original's models: configuration of the encoder, and shapes of weights that only this encoder has.
_MODELS = (
    (
        {"type": "DeiT", "img_size": 480, "patch_size": 16, "num_heads": 12},
        {"backbone.pos_embed": (1, 902, 768), "backbone.patch_embed.proj.weight": (768, 3, 16, 16)},
    ),
    (
        {"type": "ResNetV1c", "strides": (1, 2, 1, 1), "dilations": (1, 1, 2, 4), "contract_dilation": True},
        {"backbone.stem.0.weight": (32, 3, 3, 3), "backbone.layer4.2.conv3.weight": (2048, 512, 1, 1)},
    ),
)
_CONTEXT_SHAPES = {
    "query_embed.weight": (3600, 256),
    "context_branch.encoder.layers.0.self_attn.attention_weights.weight": (8 * 3 * 16, 256),
}


def _deit_config(weights: Weights, tensors: Weights, encoder: Mapping[str, Any]) -> PlainViTConfig:
    num_layers = count_parts(weights, r"backbone\.blocks\.(\d+)\.")
    step = num_layers // count_parts(weights, r"layers\.(\d+)\.")
    patch_size = weights["backbone.patch_embed.proj.weight"].shape[-1]
    return infer_config(
        tensors,
        prefix="backbone.",
        num_attention_heads=encoder["num_heads"],
        position_grid=position_grid(encoder["img_size"], patch_size),
        image_size=encoder["img_size"],
        final_norm="none",
        out_indices=list(range(step, num_layers + 1, step)),
    )


def _resnet_config(weights: Weights, tensors: Weights, encoder: Mapping[str, Any]) -> ResNetV1cConfig:
    num_stages = count_parts(weights, r"backbone\.layer(\d+)\.")
    if encoder.get("style", "pytorch") != "pytorch":
        raise ConversionError(f"`style` {encoder['style']!r} of the ResNet is not supported: only 'pytorch' is.")
    out_indices: dict[str, Any] = {"out_indices": list(range(2, num_stages + 1))}
    return ResNetV1cConfig(
        num_channels=weights["backbone.stem.0.weight"].shape[1],
        embedding_size=weights["backbone.stem.6.weight"].shape[0],
        hidden_sizes=[weights[f"backbone.layer{stage}.0.conv3.weight"].shape[0] for stage in range(1, num_stages + 1)],
        depths=[count_parts(weights, rf"backbone\.layer{stage}\.(\d+)\.") for stage in range(1, num_stages + 1)],
        strides=list(encoder.get("strides", (1, 2, 2, 2))),
        dilations=list(encoder.get("dilations", (1, 1, 1, 1))),
        contract_dilation=bool(encoder.get("contract_dilation", False)),
        **out_indices,
    )


_ENCODERS = {"DeiT": _deit_config, "ResNetV1c": _resnet_config}


class UNEPTFormat(MMCVFormat):
    """mmcv's `.pth` files with a context and a spatial branch; the encoder is a DeiT or a ResNet-V1c."""

    method = "unept"
    title = "UN-EPT"
    signature = ("context_branch.",)
    model_class = UNEPTForSemanticSegmentation
    keys = UNEPT
    image_processor_class = UNEPTImageProcessorPil

    def recognize(self, weights: Weights) -> tuple[str, dict[str, Any]] | None:
        shapes = {key: tuple(tensor.shape) for key, tensor in weights.items()}
        for encoder, encoder_shapes in _MODELS:
            if all(shapes.get(key) == shape for key, shape in {**_CONTEXT_SHAPES, **encoder_shapes}.items()):
                return f"the original's model on {encoder['type']}", {
                    "dataset_type": _DATASET_TYPES.get(shapes.get("cls.bias", (0,))[0]),
                    "model": {"backbone_cfg": encoder, "heads": 8, "dropout": 0.1},
                    "test_cfg": {"mode": "slide", "crop_size": (480, 480), "stride": (160, 160)},
                }
        return None

    def expand(self, values: Any) -> Any:
        # a file may have all values on one level, with the name of the encoder
        if not isinstance(values, dict) or not isinstance(values.get("backbone"), str):
            return values
        encoder = {"type": values["backbone"], "num_heads": values.get("bb_heads"), **values}
        test = {"mode": "slide", "crop_size": values.get("crop_size"), "stride": values.get("stride")}
        return {"model": {**values, "backbone_cfg": encoder}, "test_cfg": test if test["crop_size"] else {}}

    def model_config(self, weights: Weights, tensors: Weights, values: Mapping[str, Any]) -> UNEPTConfig:
        network, test = values["model"], values.get("test_cfg") or {}
        encoder = network["backbone_cfg"]
        if encoder["type"] not in _ENCODERS:
            raise ConversionError(
                f"The encoder {encoder['type']!r} is not supported: expected one of {', '.join(_ENCODERS)}."
            )
        num_labels, hidden_size = weights["cls.weight"].shape[:2]
        num_levels = count_parts(weights, r"layers\.(\d+)\.")
        num_scores = weights["context_branch.encoder.layers.0.self_attn.attention_weights.weight"].shape[0]
        num_queries, num_heads = weights["query_embed.weight"].shape[0], network["heads"]
        num_points = num_scores // (num_levels * num_heads)
        # the original's grid of queries is a square
        side = math.isqrt(num_queries)
        check_config_matches_weights(
            ("L", network.get("L"), num_levels),
            ("k", network.get("k"), num_points),
            ("num_classes", test.get("num_classes", network.get("num_classes")), num_labels),
            ("num_queries", test.get("num_queries", network.get("num_queries")), num_queries),
            ("the square of the rows of queries", side**2, num_queries),
        )
        dropout = network.get("dropout", 0.1)
        return UNEPTConfig(
            backbone_config=_ENCODERS[encoder["type"]](weights, tensors, encoder),
            num_feature_levels=num_levels,
            hidden_size=hidden_size,
            encoder_num_hidden_layers=count_parts(weights, r"context_branch\.encoder\.layers\.(\d+)\."),
            decoder_num_hidden_layers=count_parts(weights, r"context_branch\.decoder\.layers\.(\d+)\."),
            num_attention_heads=num_heads,
            num_points=num_points,
            intermediate_size=weights["context_branch.encoder.layers.0.linear1.weight"].shape[0],
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
            spatial_hidden_sizes=[weights[f"spatial_branch.convblock{i}.conv1.weight"].shape[0] for i in (1, 2)],
            image_size=8 * side,
            # as the released code
            decoder_self_attention="across_batch",
            refine_at_inference=False,
            **window_fields(test),
            **label_fields(num_labels, values.get("CLASSES") or (), values),
        )

    def processor_fields(self, config: UNEPTConfig, values: Mapping[str, Any]) -> dict[str, Any]:
        # a configuration without pipelines is of one of the original's two data sets
        return super().processor_fields(config, values) or _PROCESSOR_FIELDS.get(config.num_labels, {})

    def notes(self, mapped: MappedWeights, values: Mapping[str, Any]) -> list[str]:
        return [
            "behaves as the released code: its decoder attends over the images of a batch, and logits are not refined "
            "(`decoder_self_attention`, `refine_at_inference`)"
        ]

    def image_size(self, config: UNEPTConfig) -> tuple[int, int]:
        rows, columns = config.query_grid
        return 8 * rows, 8 * columns

    def reference(self, weights: Weights, config: UNEPTConfig, pixel_values: torch.Tensor) -> torch.Tensor:
        backbone = config.backbone_config
        if isinstance(backbone, ResNetV1cConfig):
            names = ("strides", "dilations", "contract_dilation")
            patch_size, encoder = math.lcm(8, backbone.output_stride), {name: getattr(backbone, name) for name in names}
        else:
            patch_size, encoder = backbone.patch_size, reference_fields(backbone)
        return unept_forward(
            weights,
            pixel_values,
            query_grid=config.query_grid,
            num_heads=config.num_attention_heads,
            patch_size=patch_size,
            feature_layers=list(backbone.out_indices),
            encoder=encoder,
        )
