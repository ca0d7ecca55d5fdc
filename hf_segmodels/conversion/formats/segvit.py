# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Format of SegViT's checkpoints: mmcv's `.pth` files, whose `meta` holds the configuration."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ...segvit import SegViTConfig, SegViTForSemanticSegmentation, SegViTImageProcessorPil
from ..checkpoint_format import MappedWeights, Weights
from ..key_mapping import KeyMap, add_prefix, count_parts
from ..mmcv_config import check_config_matches_weights, label_fields, min_size, window_fields
from ..reference.segvit import segvit_forward
from .mmcv import MMCVFormat, mmseg_vit_config, num_patches
from .vit import MMSEG_VIT, reference_fields


# `{...}.fused.{p}` holds queries, keys and values in one matrix: see `_split_attention`.
_LAYER = {
    "self_attn.in_proj_{p}": "self_attention.fused.{p}",
    # names for messages only
    "self_attn.in_proj_{p} (queries)": "self_attention.q_proj.{p}",
    "self_attn.in_proj_{p} (keys)": "self_attention.k_proj.{p}",
    "self_attn.in_proj_{p} (values)": "self_attention.v_proj.{p}",
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
# Heads of the cascade, and of the Shrunk model, whose stages up-sample queries for an inner head with one stage.
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
# The head of an earlier version of the original predicted masks with these layers; the released code has none.
_MASK_EMBED = re.compile(r"decode_head\.(atm\.)?mask_embed(_\w+)?\..+")
_CLS_TOKEN = "backbone.cls_token"
_POSITIONS = "backbone.pos_embed"


class Release(NamedTuple):
    """
    A released checkpoint, or one of the paper's that was not released: properties by which it is recognized, and
    properties that its weights do not hold.
    """

    num_layers: int  # of the encoder
    num_labels: int
    num_stages: int  # feature maps that the decoder attends to
    is_shrunk: bool  # whether the decoder up-samples queries
    crop_size: int  # training crop, also the size of the window
    stride: int  # of the window

    @property
    def is_large(self) -> bool:
        return self.num_layers == 24

    @property
    def hidden_size(self) -> int:
        return 1024 if self.is_large else 768

    def config(self) -> dict[str, Any]:
        """The parts of the configuration that the weights do not hold, in mmsegmentation's terms."""
        num_heads = self.hidden_size // 64
        layers = [7, 15, 23] if self.is_large else [5, 7, 11]
        encoder = {
            "img_size": [self.crop_size] * 2,
            "patch_size": _PATCH_SIZE,
            "num_heads": num_heads,
            "drop_path_rate": 0.3 if self.is_large else 0.1,
            "out_indices": layers[::2] if self.is_shrunk else layers[-self.num_stages :],
            "shrink_idx": layers[0] + 1 if self.is_shrunk else None,
            "norm_cfg": {"type": "LN", "eps": 1e-6},
            "with_cls_token": False,
            "interpolate_mode": "bicubic",
        }
        # the shorter edge of test images is at least the window, except for ADE20K
        bound = None if self.num_labels == 150 else self.crop_size
        resize = {"type": "Resize", "keep_ratio": True, "min_size": bound}
        scale = [520, 520] if self.num_labels in (59, 60) else [2048, self.crop_size]
        dataset_type, reduce_labels = _DATASETS[self.num_labels]
        return {
            "dataset_type": dataset_type,
            "model": {"backbone": encoder, "decode_head": {"img_size": self.crop_size, "num_heads": num_heads}},
            "test_cfg": {"mode": "slide", "crop_size": [self.crop_size] * 2, "stride": [self.stride] * 2},
            "test_pipeline": [{"img_scale": scale, "transforms": [resize]}],
            "train_pipeline": [{"type": "LoadAnnotations", "reduce_zero_label": reduce_labels}],
        }


RELEASES = {
    "segvit-vit-b-ade20k": Release(12, 150, 3, False, 512, 341),
    "segvit-vit-b-single-ade20k": Release(12, 150, 1, False, 512, 341),
    "segvit-vit-b-shrunk-ade20k": Release(12, 150, 2, True, 512, 341),
    "segvit-vit-l-ade20k": Release(24, 150, 3, False, 640, 608),
    "segvit-vit-l-shrunk-ade20k": Release(24, 150, 2, True, 640, 608),
    "segvit-vit-l-coco-stuff10k": Release(24, 171, 3, False, 512, 341),
    "segvit-vit-l-shrunk-coco-stuff10k": Release(24, 171, 2, True, 512, 341),
    "segvit-vit-l-pascal-context59": Release(24, 59, 3, False, 480, 320),
    "segvit-vit-l-pascal-context60": Release(24, 60, 3, False, 480, 320),
    "segvit-vit-l-shrunk-pascal-context59": Release(24, 59, 2, True, 480, 320),
    "segvit-vit-l-shrunk-pascal-context60": Release(24, 60, 2, True, 480, 320),
}
_PATCH_SIZE = 16
# The original's data sets: number of classes -> (class of the data set, whether 0 means "unlabeled" in label maps).
_DATASETS = {
    150: ("ADE20KDataset", True),
    171: ("COCOStuffDataset", True),
    59: ("PascalContextDataset59", True),
    60: ("PascalContextDataset", False),
}


def _is_shrunk(weights: Weights) -> bool:
    return "decode_head.atm.q.weight" in weights


def _num_labels(weights: Weights) -> int:
    return weights[f"decode_head.{'atm.' if _is_shrunk(weights) else ''}class_embed.weight"].shape[0] - 1


def _num_stages(weights: Weights) -> int:
    return count_parts(weights, r"decode_head\.input_proj_(\d+)\.")


def _split_attention(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`{...}.fused.{weight,bias}`, with rows of queries, keys and values, -> one parameter for each."""
    split: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        parts = zip("qkv", tensor.chunk(3), strict=True) if ".fused." in name else [("", tensor)]
        split |= {name.replace(".fused.", f".{part}_proj."): rows for part, rows in parts}
    return split


class SegViTFormat(MMCVFormat):
    """
    mmcv's `.pth` files with an Attention-to-Mask head. The model takes images of any size; the code that trained the
    checkpoint takes squares only.
    """

    method = "segvit"
    title = "SegViT"
    signature = ("decode_head.q.", "decode_head.atm.")
    model_class = SegViTForSemanticSegmentation
    image_processor_class = SegViTImageProcessorPil
    # the class weights of the losses, which the configuration holds
    dropped = (
        "decode_head.loss_decode.criterion.empty_weight",
        "decode_head.atm.loss_decode.criterion.empty_weight",
    )

    def key_map(self, weights: Weights) -> KeyMap:
        return SEGVIT_SHRUNK if _is_shrunk(weights) else SEGVIT

    def map_tensors(self, weights: Weights, renamed: Mapping[str, str]) -> dict[str, torch.Tensor]:
        return _split_attention(super().map_tensors(weights, renamed))

    def recognize(self, weights: Weights) -> tuple[str, dict[str, Any]] | None:
        try:
            num_labels, hidden_size = _num_labels(weights), weights[_POSITIONS].shape[2]
            patches = num_patches(weights)
        except (KeyError, IndexError):
            return None
        num_layers = count_parts(weights, r"backbone\.layers\.(\d+)\.")
        found = (num_layers, num_labels, _num_stages(weights), _is_shrunk(weights), hidden_size, patches)
        for name, release in RELEASES.items():
            if (*release[:4], release.hidden_size, (release.crop_size // _PATCH_SIZE) ** 2) == found:
                return name, release.config()
        return None

    def drop_unused(self, weights: Weights, values: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], list[str]]:
        used, dropped = dict(weights), []
        encoder = values["model"].get("backbone") or {}
        # mmsegmentation learns a class token and takes it out again before the first layer
        if not encoder.get("with_cls_token", True) and _CLS_TOKEN in used and _POSITIONS in used:
            del used[_CLS_TOKEN]
            # (1, 1 + num_patches, D) -> (1, num_patches, D)
            used[_POSITIONS] = used[_POSITIONS][:, 1:]
            dropped += [_CLS_TOKEN, f"{_POSITIONS}[:, :1]"]
        mask_embed = [key for key in used if _MASK_EMBED.fullmatch(key)]
        return {key: used[key] for key in used if key not in mask_embed}, dropped + mask_embed

    def model_config(self, weights: Weights, tensors: Weights, values: Mapping[str, Any]) -> SegViTConfig:
        encoder, head = values["model"]["backbone"], values["model"]["decode_head"]
        is_shrunk, num_labels, num_stages = _is_shrunk(weights), _num_labels(weights), _num_stages(weights)
        num_layers = count_parts(weights, r"backbone\.layers\.(\d+)\.")
        out_indices = [index % num_layers + 1 for index in encoder["out_indices"]]
        backbone_config = mmseg_vit_config(
            tensors, encoder, query_downsampling_layer=encoder.get("shrink_idx"), out_indices=out_indices
        )
        prefix = "decode_head.atm." if is_shrunk else "decode_head."
        decoder_hidden_size = weights[f"{prefix}q.weight"].shape[1]
        num_decoder_layers = count_parts(weights, re.escape(prefix) + r"decoder_1\.layers\.(\d+)\.")
        side = head["img_size"]
        rows = side // backbone_config.patch_size
        check_config_matches_weights(
            ("number of out_indices", len(out_indices), num_stages),
            ("use_stages", head.get("use_stages"), num_stages),
            ("num_layers of the head", head.get("num_layers"), num_decoder_layers),
            ("embed_dims of the head", head.get("embed_dims"), decoder_hidden_size),
            ("CE_loss", head.get("CE_loss") or None, False),
            ("crop_train", head.get("crop_train") or None, False),
        )
        if is_shrunk:
            check_config_matches_weights(("rows of `q` in the head", rows**2, weights["decode_head.q.weight"].shape[0]))
        loss = head.get("loss_decode") or {}
        loss_weight = loss.get("loss_weight", 1.0)
        return SegViTConfig(
            backbone_config=backbone_config,
            decoder_type="shrunk" if is_shrunk else "cascade",
            decoder_hidden_size=decoder_hidden_size,
            decoder_num_hidden_layers=num_decoder_layers,
            decoder_num_attention_heads=head["num_heads"],
            decoder_intermediate_size=weights["decode_head.decoder_1.layers.0.linear1.weight"].shape[0],
            query_grid=[rows, rows] if is_shrunk else None,
            # as the code that trained the checkpoint; a fresh model differs in these three
            prediction_size=[side, side],
            odd_size_mode="resize",
            small_image_mode="none",
            use_auxiliary_loss=loss.get("dec_layers", num_stages) > 1,
            class_loss_weight=loss_weight * loss.get("cls_weight", 1.0),
            mask_loss_weight=loss_weight * loss.get("mask_weight", 20.0),
            dice_loss_weight=loss_weight * loss.get("dice_weight", 1.0),
            min_scaled_size=min_size(values),
            **window_fields(values.get("test_cfg") or {}),
            **label_fields(num_labels, values.get("CLASSES") or (), values),
        )

    def processor_fields(self, config: SegViTConfig, values: Mapping[str, Any]) -> dict[str, Any]:
        fields = super().processor_fields(config, values)
        if _differing_num_classes(config, values) is not None and config.num_labels in _DATASETS:
            _, fields["do_reduce_labels"] = _DATASETS[config.num_labels]
        return fields

    def notes(self, mapped: MappedWeights, values: Mapping[str, Any]) -> list[str]:
        notes = super().notes(mapped, values)
        if (configured := _differing_num_classes(mapped.config, values)) is not None:
            notes.append(
                f"the weights have {mapped.config.num_labels} classes, the configuration {configured}: the number of the "
                "weights is used"
            )
        if any(_MASK_EMBED.fullmatch(key) for key in mapped.dropped_keys):
            notes.append(
                "`mask_embed` layers are left out: the released code has none (SegVit#8). The checkpoint comes from "
                "another version of the code, so scores may be below those reported; evaluate before you rely on it"
            )
        return notes

    def reference(self, weights: Weights, config: SegViTConfig, pixel_values: torch.Tensor) -> torch.Tensor:
        backbone = config.backbone_config
        return segvit_forward(
            weights,
            pixel_values,
            feature_layers=list(backbone.out_indices),
            halving_layer=backbone.query_downsampling_layer,
            decoder_heads=config.decoder_num_attention_heads,
            image_size=config.fixed_prediction_size[0],
            **reference_fields(backbone),
        )

    def model_scores(self, model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
        return model(pixel_values).logits


def _differing_num_classes(config: SegViTConfig, values: Mapping[str, Any]) -> int | None:
    """`num_classes` of the original's configuration if the weights have another number."""
    configured = values["model"]["decode_head"].get("num_classes")
    return None if configured == config.num_labels else configured
