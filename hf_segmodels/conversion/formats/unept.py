# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Conversion of UN-EPT's checkpoints, which mmcv wrote."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...plain_vit.configuration_plain_vit import PlainViTConfig
from ...resnet_v1c.configuration_resnet_v1c import ResNetV1cConfig
from ...unept.configuration_unept import UNEPTConfig
from ...unept.image_processing_pil_unept import UNEPTImageProcessorPil
from ...unept.modeling_unept import UNEPTForSemanticSegmentation
from ..checkpoint_files import ConversionError, check_method, read_checkpoint_and_meta
from ..converter import Conversion, full_size_logits
from ..key_mapping import add_prefix, count_parts, load_strictly, rename
from ..mmcv_config import (
    check_facts,
    find_pipelines,
    has_to_describe,
    image_processor_fields,
    label_fields,
    read_config_or_release,
    window_fields,
)
from ..reference.unept import unept_forward
from .backbone import TIMM_VIT
from .resnet_v1c import MMSEG_RESNET_V1C


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


# What images of the original's two data sets are resized to, and whether label 0 means "unlabeled"; by number of classes.
_PROCESSOR_FIELDS: dict[int, dict[str, Any]] = {
    150: {"size": {"shortest_edge": 512, "longest_edge": 2048}, "do_reduce_labels": True},
    60: {"size": {"shortest_edge": 520, "longest_edge": 520}, "do_reduce_labels": False},
}
_DATASET_TYPES = {150: "ADE20KDataset", 60: "PascalContextDataset"}
_DEIT_CONFIG = {"type": "DeiT", "img_size": 480, "patch_size": 16, "num_heads": 12}
_RESNET_CONFIG = {"type": "ResNetV1c", "strides": (1, 2, 1, 1), "dilations": (1, 1, 2, 4), "contract_dilation": True}
_TEST_CONFIG = {"mode": "slide", "crop_size": (480, 480), "stride": (160, 160)}


def recognize(state_dict: Mapping[str, torch.Tensor]) -> dict[str, Any] | None:
    """The original's configuration with these keys and shapes, as far as weights do not tell it; `None` without one."""
    shapes = {key: tuple(tensor.shape) for key, tensor in state_dict.items()}
    context = {
        "query_embed.weight": (3600, 256),
        "context_branch.encoder.layers.0.self_attn.attention_weights.weight": (8 * 3 * 16, 256),
    }
    encoders = (
        ({"backbone.pos_embed": (1, 902, 768), "backbone.patch_embed.proj.weight": (768, 3, 16, 16)}, _DEIT_CONFIG),
        (
            {"backbone.stem.0.weight": (32, 3, 3, 3), "backbone.layer4.2.conv3.weight": (2048, 512, 1, 1)},
            _RESNET_CONFIG,
        ),
    )
    for encoder, backbone in encoders:
        if all(shapes.get(key) == shape for key, shape in {**context, **encoder}.items()):
            return {
                "dataset_type": _DATASET_TYPES.get(shapes.get("cls.bias", (0,))[0]),
                "model": {"backbone_cfg": backbone, "heads": 8, "dropout": 0.1},
                "test_cfg": _TEST_CONFIG,
            }
    return None


def _from_flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON file with all values on one level, in the original's terms."""
    backbone = {"type": fields["backbone"], "num_heads": fields.get("bb_heads"), **fields}
    test = {"mode": "slide", "crop_size": fields.get("crop_size"), "stride": fields.get("stride")}
    return {"model": {**fields, "backbone_cfg": backbone}, "test_cfg": test if test["crop_size"] else {}}


def _read_config(
    config: Path | None, meta: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor]
) -> tuple[dict[str, Any], list[str]]:
    if config is not None and config.suffix == ".json" and config.is_file():
        try:
            fields = json.loads(config.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError):
            fields = None  # refused below
        if isinstance(fields, dict) and isinstance(fields.get("backbone"), str):
            return _from_flat(fields), []
    known = recognize(state_dict)
    name = None if known is None else f"the original's model on {known['model']['backbone_cfg']['type']}"
    return read_config_or_release(config, meta, name, lambda: known or {})


def _deit_config(encoder: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor]) -> PlainViTConfig:
    projection = state_dict["backbone.patch_embed.proj.weight"]
    num_layers = count_parts(state_dict, r"backbone\.blocks\.(\d+)\.")
    step = num_layers // count_parts(state_dict, r"layers\.(\d+)\.")
    out_indices: dict[str, Any] = {"out_indices": list(range(step, num_layers + 1, step))}
    return PlainViTConfig(
        hidden_size=projection.shape[0],
        num_hidden_layers=num_layers,
        num_attention_heads=encoder["num_heads"],
        intermediate_size=state_dict["backbone.blocks.0.mlp.fc1.weight"].shape[0],
        image_size=encoder["img_size"],
        patch_size=projection.shape[-1],
        num_channels=projection.shape[1],
        use_distillation_token="backbone.dist_token" in state_dict,
        final_norm="none",
        **out_indices,
    )


def _resnet_config(encoder: Mapping[str, Any], state_dict: Mapping[str, torch.Tensor]) -> ResNetV1cConfig:
    num_stages = count_parts(state_dict, r"backbone\.layer(\d+)\.")
    if encoder.get("style", "pytorch") != "pytorch":
        raise ConversionError(f"`style` {encoder['style']!r} of the ResNet is not supported: only 'pytorch' is.")
    out_indices: dict[str, Any] = {"out_indices": list(range(2, num_stages + 1))}
    return ResNetV1cConfig(
        num_channels=state_dict["backbone.stem.0.weight"].shape[1],
        embedding_size=state_dict["backbone.stem.6.weight"].shape[0],
        hidden_sizes=[state_dict[f"backbone.layer{s}.0.conv3.weight"].shape[0] for s in range(1, num_stages + 1)],
        depths=[count_parts(state_dict, rf"backbone\.layer{stage}\.(\d+)\.") for stage in range(1, num_stages + 1)],
        strides=list(encoder.get("strides", (1, 2, 2, 2))),
        dilations=list(encoder.get("dilations", (1, 1, 1, 1))),
        contract_dilation=bool(encoder.get("contract_dilation", False)),
        **out_indices,
    )


def unept_config(
    values: Mapping[str, Any],
    state_dict: Mapping[str, torch.Tensor],
    path: Path,
    class_names: list[str] | tuple[str, ...] = (),
) -> UNEPTConfig:
    """
    Configuration of a checkpoint; the model then behaves as the code that trained it: self-attention over the batch,
    coarse scores at inference. What weights tell is taken from them.

    Args:
        values (`Mapping[str, Any]`): The original's configuration, with `model` and `test_cfg`.
        state_dict (`Mapping[str, torch.Tensor]`): The weights by their original names; only names and shapes count.
        path (`Path`): Where they come from, for messages.
        class_names (`list[str]`, *optional*): Names of the classes, used where their number fits.

    Raises:
        ConversionError: if a value is missing, not supported, or contradicts the weights.
    """
    with has_to_describe(path):
        network, test = values["model"], values.get("test_cfg") or {}
        encoder = network["backbone_cfg"]
        builders = {"DeiT": _deit_config, "ResNetV1c": _resnet_config}
        if encoder["type"] not in builders:
            raise ConversionError(
                f"The backbone {encoder['type']!r} of {path} is not known: expected DeiT or ResNetV1c."
            )
        num_labels, hidden_size = state_dict["cls.weight"].shape[:2]
        num_levels = count_parts(state_dict, r"layers\.(\d+)\.")
        num_scores = state_dict["context_branch.encoder.layers.0.self_attn.attention_weights.weight"].shape[0]
        num_queries, heads = state_dict["query_embed.weight"].shape[0], network["heads"]
        # the original's grid is square
        side = math.isqrt(num_queries)
        check_facts(
            ("L", network.get("L"), num_levels),
            ("k", network.get("k"), num_scores // (num_levels * heads)),
            ("num_classes", test.get("num_classes", network.get("num_classes")), num_labels),
            ("num_queries", test.get("num_queries", network.get("num_queries")), num_queries),
            ("the square of the rows of queries", side**2, num_queries),
        )
        return UNEPTConfig(
            backbone_config=builders[encoder["type"]](encoder, state_dict),
            num_feature_levels=num_levels,
            hidden_size=hidden_size,
            encoder_num_hidden_layers=count_parts(state_dict, r"context_branch\.encoder\.layers\.(\d+)\."),
            decoder_num_hidden_layers=count_parts(state_dict, r"context_branch\.decoder\.layers\.(\d+)\."),
            num_attention_heads=heads,
            num_points=num_scores // (num_levels * heads),
            intermediate_size=state_dict["context_branch.encoder.layers.0.linear1.weight"].shape[0],
            hidden_dropout_prob=network.get("dropout", 0.1),
            attention_probs_dropout_prob=network.get("dropout", 0.1),
            spatial_hidden_sizes=[state_dict[f"spatial_branch.convblock{i}.conv1.weight"].shape[0] for i in (1, 2)],
            image_size=8 * side,
            decoder_self_attention="across_batch",
            refine_at_inference=False,
            **window_fields(test),
            **label_fields(num_labels, class_names, values),
        )


def convert_unept(checkpoint: Path, config: Path | None = None) -> Conversion:
    """
    Converts a checkpoint of the original repository; it then behaves as the code that trained it.

    Args:
        checkpoint (`Path`): The `.pth` file.
        config (`Path`, *optional*): Its configuration, as JSON or self-contained Python. By default the text inside the
            checkpoint, or what is known of the original's three configurations.

    Returns:
        [`Conversion`]: model in eval mode, image processor, and what a check of parity needs.

    Raises:
        ConversionError: if a file is missing, damaged or of another method, or a weight missing, left over or of
            another shape.
    """
    state_dict, meta = read_checkpoint_and_meta(checkpoint)
    check_method(state_dict, "unept", checkpoint)
    values, notes = _read_config(config, meta, state_dict)
    model_config = unept_config(values, state_dict, checkpoint, meta.get("CLASSES") or ())
    renamed, dropped = rename(list(state_dict), UNEPT)
    with torch.device("meta"):
        model = UNEPTForSemanticSegmentation(model_config)
    load_strictly(model, {ours: state_dict[original] for original, ours in renamed.items()}, UNEPT)

    num_labels = model_config.num_labels
    # a configuration without pipelines is one of the original's two data sets
    processor_fields = image_processor_fields(find_pipelines(values, meta)) or _PROCESSOR_FIELDS.get(num_labels, {})
    rows, columns = model_config.query_grid
    originals = {key: tensor.float() for key, tensor in state_dict.items()}
    return Conversion(
        method="unept",
        model=model.eval(),
        image_processor=UNEPTImageProcessorPil(num_labels=num_labels, **processor_fields),
        dropped_keys=dropped,
        image_size=(8 * rows, 8 * columns),
        reference=lambda pixel_values: unept_forward(originals, pixel_values, **_reference_fields(model_config)),
        model_scores=full_size_logits,
        notes=[
            *notes,
            "behaves as the released code: its decoder attends over the images of a batch, and logits are not refined "
            "(`decoder_self_attention`, `refine_at_inference`)",
        ],
    )


def _reference_fields(config: UNEPTConfig) -> dict[str, Any]:
    backbone = config.backbone_config
    fields: dict[str, Any] = {
        "query_grid": config.query_grid,
        "num_heads": config.num_attention_heads,
        "taps": list(backbone.out_indices),
    }
    if isinstance(backbone, ResNetV1cConfig):
        resnet = {name: getattr(backbone, name) for name in ("strides", "dilations", "contract_dilation")}
        return {**fields, "patch_size": math.lcm(8, backbone.output_stride), "resnet": resnet}
    return {
        **fields,
        "patch_size": backbone.patch_size,
        "encoder_heads": backbone.num_attention_heads,
        "grid": backbone.position_grid,
        "eps": backbone.layer_norm_eps,
        "mode": backbone.position_embedding_interpolation,
    }


__all__ = ["UNEPT", "convert_unept", "recognize", "unept_config"]
