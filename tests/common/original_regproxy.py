# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Files as RegProxy's original repository (mmsegmentation) writes them, with weights that need no storage."""

from pathlib import Path
from typing import Any

import torch
from fixtures.procedural_weights import procedural_state_dict

from common.original_shapes import Shapes, batch_norm, mmseg_layers, pair


STEMS = {"R26": (2, 2, 2, 2), "R50": (3, 4, 6, 3)}


def regproxy_shapes(
    width: int,
    num_layers: int,
    num_classes: int,
    grid: tuple[int, int],
    region_res: tuple[int, int] = (4, 4),
    distilled: bool = False,
    stem: str | None = None,
    stem_channels: tuple[int, tuple[int, ...]] = (64, (256, 512, 1024, 2048)),
) -> Shapes:
    """Names and shapes of a checkpoint."""
    shapes = {
        "backbone.cls_token": (1, 1, width),
        "backbone.pos_embed": (1, 1 + distilled + grid[0] * grid[1], width),
    }
    if distilled:
        shapes["backbone.dist_token"] = (1, 1, width)
    if stem is None:
        shapes |= pair("backbone.patch_embed.projection", width, 3, 16, 16)
    else:
        first, channels = stem_channels
        prefix = "backbone.patch_embed.backbone"
        shapes[f"{prefix}.stem.conv.weight"] = (first, 3, 7, 7)
        shapes |= pair(f"{prefix}.stem.norm", first)
        inputs = first
        for stage, (depth, outputs) in enumerate(zip(STEMS[stem], channels, strict=True)):
            for block in (f"{prefix}.stages.{stage}.blocks.{number}" for number in range(depth)):
                if block.endswith(".0"):
                    shapes[f"{block}.downsample.conv.weight"] = (outputs, inputs, 1, 1)
                    shapes |= pair(f"{block}.downsample.norm", outputs)
                middle = outputs // 4
                for number, shape in enumerate(
                    ((middle, inputs, 1, 1), (middle, middle, 3, 3), (outputs, middle, 1, 1)), start=1
                ):
                    shapes[f"{block}.conv{number}.weight"] = shape
                    shapes |= pair(f"{block}.norm{number}", shape[0])
                inputs = outputs
        shapes |= pair("backbone.patch_embed.proj", width, inputs, 1, 1)
    shapes |= mmseg_layers("backbone.layers", num_layers, width)
    head = "decode_head.affinity_head"
    return {
        **shapes,
        **pair("backbone.ln1", width),
        **pair("decode_head.mlp.0.0", num_classes, width),
        f"{head}.0.depthwise_conv.conv.weight": (width, 1, 3, 3),
        **batch_norm(f"{head}.0.depthwise_conv.bn", width),
        f"{head}.0.pointwise_conv.conv.weight": (width, width, 1, 1),
        **batch_norm(f"{head}.0.pointwise_conv.bn", width),
        **pair(f"{head}.1.conv", 9 * region_res[0] * region_res[1], width, 1, 1),
    }


TINY_CONFIG = """
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    pretrained=None,
    backbone=dict(
        type='VisionTransformer', img_size=(64, 48), patch_size=16, embed_dims=64, num_layers=3, num_heads=2,
        out_indices=(0, 2), drop_path_rate=0.1, norm_cfg=dict(type='LN', eps=1e-06), interpolate_mode='bicubic'),
    decode_head=dict(
        type='ProxyHead', in_index=(-2, -1), num_classes=5, norm_cfg=dict(type='SyncBN', requires_grad=True),
        region_res=(4, 2)),
    test_cfg=dict(mode='slide', crop_size=(64, 48), stride=(32, 48)))
train_pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', reduce_zero_label=True)]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='MultiScaleFlipAug', img_scale=(256, 64), flip=False,
        transforms=[
            dict(type='Resize', keep_ratio=True),
            dict(type='Normalize', mean=[51.0, 102.0, 127.5], std=[25.5, 51.0, 63.75], to_rgb=True)])]
"""


def write_checkpoint(folder: Path, config: str | None = TINY_CONFIG, **meta: Any) -> Path:
    """Writes `checkpoint.pth` of the model that `TINY_CONFIG` describes, and gives its path."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pth"
    weights = procedural_state_dict(regproxy_shapes(64, 3, 5, (4, 3), region_res=(4, 2)))
    contents = {"mmseg_version": "0.17.0", "CLASSES": tuple("abcde"), **meta}
    if config is not None:
        contents["config"] = config
    torch.save({"meta": contents, "state_dict": weights, "optimizer": {"state": {}}}, checkpoint)
    return checkpoint
