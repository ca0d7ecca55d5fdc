# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Conversion of RegProxy's checkpoints, which mmsegmentation wrote."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...regproxy.configuration_regproxy import RegProxyConfig
from ...regproxy.image_processing_pil_regproxy import RegProxyImageProcessorPil
from ...regproxy.modeling_regproxy import RegProxyForSemanticSegmentation
from ..checkpoint_files import check_method, read_checkpoint_and_meta
from ..converter import Conversion, full_size_logits
from ..key_mapping import add_prefix, load_strictly, rename
from ..mmcv_config import (
    MMSEG_VIT,
    check_facts,
    find_pipelines,
    has_to_describe,
    image_processor_fields,
    label_fields,
    norm_eps,
    read_config_or_release,
    window_fields,
)
from ..reference.vit import regproxy_forward
from .backbone import infer_config


_AFFINITY_HEAD = {
    "0.depthwise_conv.conv.{p}": "spatial_conv.convolution.{p}",
    "0.depthwise_conv.bn.{p}": "spatial_conv.normalization.{p}",
    "0.pointwise_conv.conv.{p}": "pointwise_conv.convolution.{p}",
    "0.pointwise_conv.bn.{p}": "pointwise_conv.normalization.{p}",
    "1.conv.{p}": "predictor.{p}",
}
REGPROXY = {
    **add_prefix(MMSEG_VIT, "backbone.", "backbone."),
    **add_prefix(_AFFINITY_HEAD, "decode_head.affinity_head.", "decoder.affinity_head."),
    "decode_head.mlp.0.0.{p}": "decoder.classifier.{p}",
}


@dataclass(frozen=True)
class Release:
    """
    A released checkpoint: what tells it from the others, and what its weights do not tell.

    Args:
        hidden_size, num_layers, num_labels (`int`): Width and layers of the encoder, and classes.
        is_hybrid (`bool`): Whether its stem is a ResNet.
        crop_size (`int`): Its training crop, which is its window as well.
        token_head_depth (`int`): Layers before the affinity head.
    """

    hidden_size: int
    num_layers: int
    num_labels: int
    is_hybrid: bool
    crop_size: int
    token_head_depth: int


RELEASES = {
    "regproxy-ti16-ade20k": Release(192, 12, 150, False, 512, 5),
    "regproxy-s16-ade20k": Release(384, 12, 150, False, 512, 5),
    "regproxy-b16-ade20k": Release(768, 12, 150, False, 512, 5),
    "regproxy-l16-ade20k": Release(1024, 24, 150, False, 640, 10),
    "regproxy-r26-s32-ade20k": Release(384, 12, 150, True, 512, 0),
    "regproxy-r50-l32-ade20k": Release(1024, 24, 150, True, 640, 0),
    "regproxy-ti16-cityscapes": Release(192, 12, 19, False, 768, 3),
    "regproxy-s16-cityscapes": Release(384, 12, 19, False, 768, 3),
    "regproxy-b16-cityscapes": Release(768, 12, 19, False, 768, 3),
    "regproxy-l16-cityscapes": Release(1024, 24, 19, False, 768, 6),
}


def recognize(state_dict: Mapping[str, torch.Tensor]) -> str | None:
    """The name of the released checkpoint that has these keys and shapes, or `None`."""
    try:
        num_layers = len({key.split(".")[2] for key in state_dict if key.startswith("backbone.layers.")})
        num_patches = state_dict["backbone.pos_embed"].shape[1] - sum(
            f"backbone.{token}_token" in state_dict for token in ("cls", "dist")
        )
        num_labels, hidden_size = state_dict["decode_head.mlp.0.0.weight"].shape
        num_scores = state_dict["decode_head.affinity_head.1.conv.weight"].shape[0]
    except KeyError:
        return None
    is_hybrid = "backbone.patch_embed.proj.weight" in state_dict
    for name, release in RELEASES.items():
        side = release.crop_size // (32 if release.is_hybrid else 16)
        known = (release.hidden_size, release.num_layers, release.num_labels, release.is_hybrid, side**2, 9 * 4 * 4)
        if known == (hidden_size, num_layers, num_labels, is_hybrid, num_patches, num_scores):
            return name
    return None


def _release_as_config(release: Release) -> dict[str, Any]:
    """A released checkpoint's configuration, as far as the weights do not tell it, in mmsegmentation's terms."""
    is_ade20k = release.num_labels == 150
    stride = release.crop_size if is_ade20k else 512
    return {
        "dataset_type": "ADE20KDataset" if is_ade20k else "CityscapesDataset",
        "model": {
            "backbone": {
                "img_size": release.crop_size,
                "patch_size": 32 if release.is_hybrid else 16,
                "out_indices": [release.token_head_depth - 1, release.num_layers - 1],
                "drop_path_rate": 0.1,
                "norm_cfg": {"type": "LN", "eps": 1e-6},
                "interpolate_mode": "bicubic",
            },
            "decode_head": {"in_index": [-2, -1], "region_res": [4, 4]},
        },
        "test_cfg": {"mode": "slide", "crop_size": [release.crop_size] * 2, "stride": [stride] * 2},
        "test_pipeline": [{"img_scale": [2048, release.crop_size if is_ade20k else 1024]}],
        "train_pipeline": [{"type": "LoadAnnotations", "reduce_zero_label": is_ade20k}],
    }


def regproxy_config(
    config: Mapping[str, Any],
    state_dict: Mapping[str, torch.Tensor],
    path: Path,
    class_names: list[str] | tuple[str, ...] = (),
) -> RegProxyConfig:
    """
    Configuration of a checkpoint; the model then behaves as the code that trained it.

    Args:
        config (`Mapping[str, Any]`): What [`read_mmseg_config`] gives.
        state_dict (`Mapping[str, torch.Tensor]`): The weights by their original names; only names and shapes count.
        path (`Path`): Where they come from, for messages.
        class_names (`list[str]`, *optional*): Names of the classes, used where their number fits.

    Raises:
        ConversionError: if a value is missing, not supported, or contradicts the weights.
    """
    with has_to_describe(path):
        encoder, head = config["model"]["backbone"], config["model"]["decode_head"]
        num_labels = state_dict["decode_head.mlp.0.0.weight"].shape[0]
        num_scores = state_dict["decode_head.affinity_head.1.conv.weight"].shape[0]
        renamed, _ = rename([key for key in state_dict if key.startswith("backbone.")], REGPROXY)
        shapes = {ours.removeprefix("backbone."): state_dict[key] for key, ours in renamed.items()}
        image_size, patch_size = encoder["img_size"], encoder["patch_size"]
        image_size = (image_size, image_size) if isinstance(image_size, int) else image_size
        fields: dict[str, Any] = {
            "position_grid": [side // patch_size for side in image_size],
            "layer_norm_eps": norm_eps(encoder.get("norm_cfg")),
        }
        if "num_heads" in encoder:
            fields["num_attention_heads"] = encoder["num_heads"]
        backbone_config = infer_config(shapes, fields, path)
        backbone_config.hidden_dropout_prob = encoder.get("drop_rate", 0.0)
        backbone_config.attention_probs_dropout_prob = encoder.get("attn_drop_rate", 0.0)
        backbone_config.drop_path_rate = encoder.get("drop_path_rate", 0.0)
        backbone_config.position_embedding_interpolation = encoder.get("interpolate_mode", "bicubic")
        # what the code that trained it does; a fresh model compares grids
        backbone_config.position_embedding_resize_rule = "token_count"

        out_indices = list(encoder["out_indices"])
        early, late = (out_indices[index] for index in head.get("in_index", (-2, -1)))
        cell_height, cell_width = head["region_res"]
        check_facts(
            ("num_layers", encoder.get("num_layers"), backbone_config.num_hidden_layers),
            ("embed_dims", encoder.get("embed_dims"), backbone_config.hidden_size),
            ("patch_size", patch_size, backbone_config.patch_size),
            ("the last of out_indices", late, backbone_config.num_hidden_layers - 1),
            ("num_classes", head.get("num_classes"), num_labels),
            ("9 times the area of region_res", 9 * cell_height * cell_width, num_scores),
            ("align_corners", head.get("align_corners") or None, False),
        )
        return RegProxyConfig(
            backbone_config=backbone_config,
            token_head_depth=early + 1,
            region_resolution=[cell_height, cell_width],
            batch_norm_eps=norm_eps(head.get("norm_cfg")),
            odd_size_mode="resize",
            **window_fields(config.get("test_cfg") or {}),
            **label_fields(num_labels, class_names, config),
        )


def convert_regproxy(checkpoint: Path, config: Path | None = None) -> Conversion:
    """
    Converts a checkpoint of the original repository; it then behaves as the code that trained it.

    Args:
        checkpoint (`Path`): The `.pth` file.
        config (`Path`, *optional*): Its configuration, as JSON or self-contained Python. By default the text inside the
            checkpoint, or what is known of the released checkpoint with the same keys and shapes.

    Returns:
        [`Conversion`]: model in eval mode, image processor, and what a check of parity needs.

    Raises:
        ConversionError: if a file is missing, damaged or of another method, or a weight missing, left over or of
            another shape.
    """
    state_dict, meta = read_checkpoint_and_meta(checkpoint)
    check_method(state_dict, "regproxy", checkpoint)
    name = recognize(state_dict)
    values, notes = read_config_or_release(
        config, meta, name, lambda: _release_as_config(RELEASES[name]) if name is not None else {}
    )
    class_names = meta.get("CLASSES") or ()
    model_config = regproxy_config(values, state_dict, checkpoint, class_names)
    renamed, dropped = rename(list(state_dict), REGPROXY)
    with torch.device("meta"):
        model = RegProxyForSemanticSegmentation(model_config)
    load_strictly(model, {ours: state_dict[original] for original, ours in renamed.items()}, REGPROXY)

    fields = image_processor_fields(find_pipelines(values, meta))
    if not fields:
        notes.append(
            "the configuration has no pipelines: images are resized and normalized as for ADE20K, 0 is a class"
        )
    backbone = model_config.backbone_config
    return Conversion(
        method="regproxy",
        model=model.eval(),
        image_processor=RegProxyImageProcessorPil(num_labels=model_config.num_labels, **fields),
        dropped_keys=dropped,
        image_size=tuple(backbone.image_size),
        reference=lambda pixel_values: regproxy_forward(
            state_dict,
            pixel_values,
            num_heads=backbone.num_attention_heads,
            patch_size=backbone.patch_size,
            grid=backbone.position_grid,
            mode=backbone.position_embedding_interpolation,
            eps=backbone.layer_norm_eps,
            token_head_depth=model_config.token_head_depth,
            cell_size=model_config.cell_size,
            batch_norm_eps=model_config.batch_norm_eps,
        ),
        model_scores=full_size_logits,
        notes=notes,
    )


__all__ = ["REGPROXY", "RELEASES", "convert_regproxy", "recognize", "regproxy_config"]
