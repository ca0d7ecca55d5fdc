# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Conversion of SegViT's checkpoints: mmcv's `.pth` files, whose `meta` holds the configuration."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...segvit.configuration_segvit import SegViTConfig
from ...segvit.image_processing_pil_segvit import SegViTImageProcessorPil
from ...segvit.modeling_segvit import SegViTForSemanticSegmentation
from ..checkpoint_files import check_method, read_checkpoint_and_meta
from ..converter import Conversion
from ..key_mapping import add_prefix, count_parts, load_strictly, rename
from ..mmcv_config import (
    MMSEG_VIT,
    check_facts,
    find_pipelines,
    has_to_describe,
    image_processor_fields,
    label_fields,
    min_size,
    norm_eps,
    read_config_or_release,
    window_fields,
)
from ..reference.vit import segvit_forward
from .backbone import infer_config


# `{...}.fused.{p}` holds queries, keys and values in one matrix: see `split_attention`.
_LAYER = {
    "self_attn.in_proj_{p}": "self_attention.fused.{p}",
    "self_attn.out_proj.{p}": "self_attention.o_proj.{p}",
    "norm1.{p}": "self_attention_norm.{p}",
    "multihead_attn.in_proj_{p}": "cross_attention.fused.{p}",
    "multihead_attn.out_proj.{p}": "cross_attention.o_proj.{p}",
    "multihead_attn.q.{p}": "cross_attention.q_proj.{p}",
    "multihead_attn.k.{p}": "cross_attention.k_proj.{p}",
    "multihead_attn.v.{p}": "cross_attention.v_proj.{p}",
    "multihead_attn.proj.{p}": "cross_attention.o_proj.{p}",
    "norm2.{p}": "cross_attention_norm.{p}",
    "linear1.{p}": "fc1.{p}",
    "linear2.{p}": "fc2.{p}",
    "norm3.{p}": "mlp_norm.{p}",
}
_STAGES = {
    "input_proj_{s}.{p}": "stages.{s-1}.projection.{p}",
    "proj_norm_{s}.{p}": "stages.{s-1}.norm.{p}",
    **add_prefix(_LAYER, "decoder_{s}.layers.{i}.", "stages.{s-1}.layers.{i}."),
}
_QUERIES = {"q.weight": "class_queries", "class_embed.{p}": "classifier.{p}"}
# The cascade's head, and the Shrunk one's, whose stages up-sample for an inner head with one stage.
SEGVIT = {
    **add_prefix(MMSEG_VIT, "backbone.", "backbone."),
    **add_prefix({**_STAGES, **_QUERIES}, "decode_head.", "decoder."),
}
SEGVIT_SHRUNK = {
    **add_prefix(MMSEG_VIT, "backbone.", "backbone."),
    **add_prefix(_STAGES, "decode_head.", "decoder.query_upsampling."),
    "decode_head.q.weight": "decoder.query_upsampling.queries",
    **add_prefix({**_STAGES, **_QUERIES}, "decode_head.atm.", "decoder."),
}
# The losses' class weights, which the configuration holds.
DROPPED = ("decode_head.loss_decode.criterion.empty_weight", "decode_head.atm.loss_decode.criterion.empty_weight")
# What an earlier version of the original's head predicted masks with; the released code has no such layers.
_MASK_EMBED = re.compile(r"decode_head\.(atm\.)?mask_embed(_\w+)?\..+")
# Learned, but never seen by a layer where the encoder has no class token: mmsegmentation takes it out again.
_CLS_TOKEN = "backbone.cls_token"
_POSITIONS = "backbone.pos_embed"


@dataclass(frozen=True)
class Release:
    """
    A released checkpoint (or one of the paper's that was not released): what tells it from the others, and what its
    weights do not tell.

    Args:
        num_layers, num_labels (`int`): Layers of the encoder, and classes.
        num_stages (`int`): Feature maps that the decoder sees.
        is_shrunk (`bool`): Whether it up-samples queries.
        crop_size (`int`): Its training crop, which is its window as well.
        stride (`int`): Stride of the window.
        short_edge (`int`): Shorter edge of its test images.
        has_min_size (`bool`): Whether their shorter edge never falls below the window.
    """

    num_layers: int
    num_labels: int
    num_stages: int
    is_shrunk: bool
    crop_size: int
    stride: int
    short_edge: int
    has_min_size: bool


RELEASES = {
    "segvit-vit-b-ade20k": Release(12, 150, 3, False, 512, 341, 512, False),
    "segvit-vit-b-single-ade20k": Release(12, 150, 1, False, 512, 341, 512, False),
    "segvit-vit-b-shrunk-ade20k": Release(12, 150, 2, True, 512, 341, 512, False),
    "segvit-vit-l-ade20k": Release(24, 150, 3, False, 640, 608, 640, False),
    "segvit-vit-l-shrunk-ade20k": Release(24, 150, 2, True, 640, 608, 640, False),
    "segvit-vit-l-coco-stuff10k": Release(24, 171, 3, False, 512, 341, 512, True),
    "segvit-vit-l-shrunk-coco-stuff10k": Release(24, 171, 2, True, 512, 341, 512, True),
    "segvit-vit-l-pascal-context59": Release(24, 59, 3, False, 480, 320, 520, True),
    "segvit-vit-l-pascal-context60": Release(24, 60, 3, False, 480, 320, 520, True),
    "segvit-vit-l-shrunk-pascal-context59": Release(24, 59, 2, True, 480, 320, 520, True),
    "segvit-vit-l-shrunk-pascal-context60": Release(24, 60, 2, True, 480, 320, 520, True),
}
# Of the original's classes, number -> whether 0 means "unlabeled" in label maps.
_REDUCED = {150: True, 171: True, 59: True, 60: False}
_DATASET_TYPES = {
    150: "ADE20KDataset",
    171: "COCOStuffDataset",
    59: "PascalContextDataset59",
    60: "PascalContextDataset",
}


def _is_shrunk(state_dict: Mapping[str, torch.Tensor]) -> bool:
    return "decode_head.atm.q.weight" in state_dict


def _num_labels(state_dict: Mapping[str, torch.Tensor]) -> int:
    return state_dict[f"decode_head.{'atm.' if _is_shrunk(state_dict) else ''}class_embed.weight"].shape[0] - 1


def recognize(state_dict: Mapping[str, torch.Tensor]) -> str | None:
    """The name of the released checkpoint that has these keys and shapes, or `None`."""
    try:
        num_labels, width = _num_labels(state_dict), state_dict[_POSITIONS].shape[2]
        num_patches = state_dict[_POSITIONS].shape[1] - (_CLS_TOKEN in state_dict)
    except KeyError:
        return None
    num_layers = count_parts(state_dict, r"backbone\.layers\.(\d+)\.")
    num_stages = count_parts(state_dict, r"decode_head\.input_proj_(\d+)\.")
    for name, release in RELEASES.items():
        known = (release.num_layers, release.num_labels, release.num_stages, release.is_shrunk)
        grid = ({12: 768, 24: 1024}[release.num_layers], (release.crop_size // 16) ** 2)
        if (*known, *grid) == (num_layers, num_labels, num_stages, _is_shrunk(state_dict), width, num_patches):
            return name
    return None


def _release_as_config(release: Release) -> dict[str, Any]:
    """A released checkpoint's configuration, as far as the weights do not tell it, in mmsegmentation's terms."""
    is_large = release.num_layers == 24
    if release.is_shrunk:
        taps = [7, 23] if is_large else [5, 11]
    else:
        taps = ([7, 15, 23] if is_large else [5, 7, 11])[-release.num_stages :]
    encoder = {
        "img_size": [release.crop_size] * 2,
        "patch_size": 16,
        "num_heads": 16 if is_large else 12,
        "drop_path_rate": 0.3 if is_large else 0.1,
        "out_indices": taps,
        "norm_cfg": {"type": "LN", "eps": 1e-6},
        "with_cls_token": False,
        "interpolate_mode": "bicubic",
    }
    if release.is_shrunk:
        encoder["shrink_idx"] = 8 if is_large else 6
    resize = {"type": "Resize", "keep_ratio": True}
    if release.has_min_size:
        resize["min_size"] = release.crop_size
    is_pascal = release.num_labels in (59, 60)
    image_size = [520, 520] if is_pascal else [2048, release.short_edge]
    return {
        "dataset_type": _DATASET_TYPES[release.num_labels],
        "model": {
            "backbone": encoder,
            "decode_head": {"img_size": release.crop_size, "num_heads": 16 if is_large else 12},
        },
        "test_cfg": {"mode": "slide", "crop_size": [release.crop_size] * 2, "stride": [release.stride] * 2},
        "test_pipeline": [{"img_scale": image_size, "transforms": [resize]}],
        "train_pipeline": [{"type": "LoadAnnotations", "reduce_zero_label": _REDUCED[release.num_labels]}],
    }


def drop_unused(
    state_dict: Mapping[str, torch.Tensor], with_cls_token: bool
) -> tuple[dict[str, torch.Tensor], list[str], list[str]]:
    """
    Leaves out what no layer of the released code sees.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`): The weights by their original names.
        with_cls_token (`bool`): Whether the encoder's layers see a class token.

    Returns:
        The weights that are left, the names of those left out, and notes for the user.
    """
    weights, dropped, notes = dict(state_dict), [], []
    if not with_cls_token and _CLS_TOKEN in weights and _POSITIONS in weights:
        del weights[_CLS_TOKEN]
        # (1, 1 + num_patches, D) -> (1, num_patches, D)
        weights[_POSITIONS] = weights[_POSITIONS][:, 1:]
        dropped += [_CLS_TOKEN, f"{_POSITIONS}[:, :1]"]
    leftovers = [key for key in weights if _MASK_EMBED.fullmatch(key)]
    if leftovers:
        for key in leftovers:
            del weights[key]
        dropped += leftovers
        notes.append(
            "`mask_embed` layers are left out: the released code has none (SegVit#8). The checkpoint comes from another "
            "version of it, so scores may be below those reported; evaluate before you rely on it"
        )
    return weights, dropped, notes


def split_attention(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`{...}.fused.{weight,bias}`, in rows of queries, keys and values, -> one parameter for each."""
    split: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        attention, fused, part = name.rpartition(".fused.")
        if fused:
            split |= {
                f"{attention}.{projection}_proj.{part}": rows
                for projection, rows in zip("qkv", tensor.chunk(3), strict=True)
            }
        else:
            split[name] = tensor
    return split


def _part_names(table: Mapping[str, str]) -> dict[str, str]:
    """What parts of a parameter that was split are called in messages."""
    return {
        f"{original} ({part})": ours.replace(".fused.", f".{part[0]}_proj.")
        for original, ours in table.items()
        if ".fused." in ours
        for part in ("queries", "keys", "values")
    }


def segvit_config(
    config: Mapping[str, Any],
    state_dict: Mapping[str, torch.Tensor],
    path: Path,
    class_names: list[str] | tuple[str, ...] = (),
    min_scaled_size: int | None = None,
) -> SegViTConfig:
    """
    Configuration of a checkpoint; the model then behaves as the code that trained it, on squares, which is all that code
    can take.

    Args:
        config (`Mapping[str, Any]`): What [`read_mmseg_config`] gives.
        state_dict (`Mapping[str, torch.Tensor]`): What [`drop_unused`] leaves; only names and shapes count.
        path (`Path`): Where they come from, for messages.
        class_names (`list[str]`, *optional*): Names of the classes, used where their number fits.
        min_scaled_size (`int`, *optional*): The field of that name.

    Raises:
        ConversionError: if a value is missing, not supported, or contradicts the weights.
    """
    with has_to_describe(path):
        encoder, head = config["model"]["backbone"], config["model"]["decode_head"]
        is_shrunk, num_labels = _is_shrunk(state_dict), _num_labels(state_dict)
        renamed, _ = rename([key for key in state_dict if key.startswith("backbone.")], SEGVIT)
        shapes = {ours.removeprefix("backbone."): state_dict[key] for key, ours in renamed.items()}
        image_size, patch_size = encoder["img_size"], encoder["patch_size"]
        image_size = (image_size, image_size) if isinstance(image_size, int) else image_size
        fields: dict[str, Any] = {
            "position_grid": [side // patch_size for side in image_size],
            "layer_norm_eps": norm_eps(encoder.get("norm_cfg")),
        }
        if "num_heads" in encoder:
            fields["num_attention_heads"] = encoder["num_heads"]
        inferred = infer_config(shapes, fields, path)
        num_layers = inferred.num_hidden_layers
        taps = [index % num_layers for index in encoder["out_indices"]]
        backbone_config = type(inferred)(
            **{
                **inferred.to_dict(),
                "hidden_dropout_prob": encoder.get("drop_rate", 0.0),
                "attention_probs_dropout_prob": encoder.get("attn_drop_rate", 0.0),
                "drop_path_rate": encoder.get("drop_path_rate", 0.0),
                "position_embedding_interpolation": encoder.get("interpolate_mode", "bicubic"),
                "query_downsampling_layer": encoder.get("shrink_idx"),
                "out_indices": [index + 1 for index in taps],
                "out_features": None,
            }
        )
        prefix = r"decode_head\.atm\." if is_shrunk else r"decode_head\."
        num_stages = count_parts(state_dict, r"decode_head\.input_proj_(\d+)\.")
        classes = state_dict["decode_head.atm.q.weight" if is_shrunk else "decode_head.q.weight"]
        hidden = "decode_head.decoder_1.layers.0.linear1.weight"
        num_decoder_layers = count_parts(state_dict, prefix + r"decoder_1\.layers\.(\d+)\.")
        loss = head.get("loss_decode") or {}
        side = head["img_size"]
        check_facts(
            ("num_layers of the encoder", encoder.get("num_layers"), num_layers),
            ("embed_dims of the encoder", encoder.get("embed_dims"), inferred.hidden_size),
            ("patch_size", patch_size, inferred.patch_size),
            ("number of out_indices", len(taps), num_stages),
            ("use_stages", head.get("use_stages"), num_stages),
            ("num_layers of the head", head.get("num_layers"), num_decoder_layers),
            ("embed_dims of the head", head.get("embed_dims"), classes.shape[1]),
            ("CE_loss", head.get("CE_loss") or None, False),
            ("crop_train", head.get("crop_train") or None, False),
        )
        if is_shrunk:
            check_facts(("rows of `q` in the head", (side // 16) ** 2, state_dict["decode_head.q.weight"].shape[0]))
        weight = loss.get("loss_weight", 1.0)
        return SegViTConfig(
            backbone_config=backbone_config,
            decoder_type="shrunk" if is_shrunk else "cascade",
            decoder_hidden_size=classes.shape[1],
            decoder_num_hidden_layers=num_decoder_layers,
            decoder_num_attention_heads=head["num_heads"],
            decoder_intermediate_size=state_dict[hidden].shape[0],
            query_grid=[side // 16] * 2 if is_shrunk else None,
            # the three quirks of the original
            prediction_size=[side, side],
            odd_size_mode="resize",
            small_image_mode="none",
            use_auxiliary_loss=loss.get("dec_layers", num_stages) > 1,
            class_loss_weight=weight * loss.get("cls_weight", 1.0),
            mask_loss_weight=weight * loss.get("mask_weight", 20.0),
            dice_loss_weight=weight * loss.get("dice_weight", 1.0),
            min_scaled_size=min_scaled_size,
            **window_fields(config.get("test_cfg") or {}),
            **label_fields(num_labels, class_names, config),
        )


def convert_segvit(checkpoint: Path, config: Path | None = None) -> Conversion:
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
    check_method(state_dict, "segvit", checkpoint)
    name = recognize(state_dict)
    values, notes = read_config_or_release(
        config, meta, name, lambda: _release_as_config(RELEASES[name]) if name is not None else {}
    )
    encoder = values["model"].get("backbone") or {}
    # mmsegmentation's default
    weights, unused, more_notes = drop_unused(state_dict, encoder.get("with_cls_token", True))
    pipelines = find_pipelines(values, meta)
    model_config = segvit_config(values, weights, checkpoint, meta.get("CLASSES") or (), min_size(pipelines))
    table = SEGVIT_SHRUNK if model_config.decoder_type == "shrunk" else SEGVIT
    renamed, dropped = rename(list(weights), table, DROPPED)
    with torch.device("meta"):
        model = SegViTForSemanticSegmentation(model_config)
    tensors = split_attention({ours: weights[original] for original, ours in renamed.items()})
    load_strictly(model, tensors, {**table, **_part_names(table)})

    processor_fields = image_processor_fields(pipelines)
    if not processor_fields:
        notes.append(
            "the configuration has no pipelines: images are resized and normalized as for ADE20K, 0 is a class"
        )
    num_labels = model_config.num_labels
    said = values["model"]["decode_head"].get("num_classes")
    if said is not None and said != num_labels:
        notes.append(f"the weights have {num_labels} classes, the configuration says {said}: the weights count")
        if num_labels in _REDUCED:
            processor_fields["do_reduce_labels"] = _REDUCED[num_labels]
    backbone = model_config.backbone_config
    prediction_size = model_config.fixed_prediction_size
    return Conversion(
        method="segvit",
        model=model.eval(),
        image_processor=SegViTImageProcessorPil(num_labels=num_labels, **processor_fields),
        dropped_keys=unused + dropped,
        image_size=tuple(backbone.image_size),
        reference=lambda pixel_values: segvit_forward(
            weights,
            pixel_values,
            num_heads=backbone.num_attention_heads,
            patch_size=backbone.patch_size,
            grid=backbone.position_grid,
            mode=backbone.position_embedding_interpolation,
            eps=backbone.layer_norm_eps,
            taps=list(backbone.out_indices),
            halving_layer=backbone.query_downsampling_layer,
            decoder_heads=model_config.decoder_num_attention_heads,
            image_size=prediction_size[0],
        ),
        model_scores=lambda model, pixel_values: model(pixel_values).logits,
        notes=notes + more_notes,
    )


__all__ = [
    "DROPPED",
    "RELEASES",
    "SEGVIT",
    "SEGVIT_SHRUNK",
    "convert_segvit",
    "drop_unused",
    "recognize",
    "segvit_config",
    "split_attention",
]
