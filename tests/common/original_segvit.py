# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Files as SegViT's original repository (mmsegmentation) writes them, with weights that need no storage."""

from pathlib import Path
from typing import Any

import torch
from fixtures.procedural_weights import procedural_state_dict

from common.original_shapes import Shapes, mmseg_layers, pair, torch_attention


def segvit_shapes(
    width: int,
    num_layers: int,
    num_classes: int,
    grid: tuple[int, int],
    decoder_width: int,
    num_stages: int,
    shrunk: bool = False,
    decoder_layers: int = 3,
) -> Shapes:
    """Names and shapes of a checkpoint."""

    def decoder(name: str, gives_masks: bool) -> Shapes:
        shapes: Shapes = {}
        for layer in (f"{name}.layers.{number}" for number in range(decoder_layers)):
            shapes |= torch_attention(f"{layer}.self_attn", decoder_width)
            if gives_masks:
                for part in ("q", "k", "v", "proj"):
                    shapes |= pair(f"{layer}.multihead_attn.{part}", decoder_width, decoder_width)
            else:
                shapes |= torch_attention(f"{layer}.multihead_attn", decoder_width)
            shapes |= pair(f"{layer}.linear1", 4 * decoder_width, decoder_width)
            shapes |= pair(f"{layer}.linear2", decoder_width, 4 * decoder_width)
            for number in (1, 2, 3):
                shapes |= pair(f"{layer}.norm{number}", decoder_width)
        return shapes

    shapes = {
        "backbone.cls_token": (1, 1, width),
        "backbone.pos_embed": (1, 1 + grid[0] * grid[1], width),
        **pair("backbone.patch_embed.projection", width, 3, 16, 16),
    }
    shapes |= mmseg_layers("backbone.layers", num_layers, width)
    head = "decode_head"
    for stage in range(1, num_stages + 1):
        shapes |= pair(f"{head}.input_proj_{stage}", decoder_width, width)
        shapes |= pair(f"{head}.proj_norm_{stage}", decoder_width)
        shapes |= decoder(f"{head}.decoder_{stage}", gives_masks=not shrunk)
    shapes[f"{head}.loss_decode.criterion.empty_weight"] = (num_classes + 1,)
    if shrunk:
        shapes[f"{head}.q.weight"] = (grid[0] * grid[1], decoder_width)
        head = f"{head}.atm"
        shapes |= decoder(f"{head}.decoder_1", gives_masks=True)
        shapes[f"{head}.loss_decode.criterion.empty_weight"] = (num_classes + 1,)
    return {
        **shapes,
        f"{head}.q.weight": (num_classes, decoder_width),
        **pair(f"{head}.class_embed", num_classes + 1, decoder_width),
    }


TINY = {"width": 64, "num_layers": 3, "num_classes": 5, "grid": (4, 4), "decoder_width": 32, "decoder_layers": 2}
TINY_CONFIG = """
img_size = 64
model = dict(
    type='EncoderDecoder',
    pretrained=None,
    backbone=dict(
        type='VisionTransformer', img_size=(64, 64), patch_size=16, embed_dims=64, num_layers=3, num_heads=2,
        out_indices=[0, 2], drop_path_rate=0.3, final_norm=False, norm_cfg=dict(type='LN', eps=1e-06),
        with_cls_token=False, interpolate_mode='bicubic'),
    decode_head=dict(
        type='ATMHead', img_size=64, in_channels=64, channels=64, num_classes=5, num_layers=2, num_heads=4,
        use_stages=2, embed_dims=32, loss_decode=dict(type='ATMLoss', num_classes=5, dec_layers=2, loss_weight=1.0)),
    test_cfg=dict(mode='slide', crop_size=(64, 64), stride=(43, 43)))
train_pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', reduce_zero_label=True)]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='MultiScaleFlipAug', img_scale=(256, 48), flip=False,
        transforms=[
            dict(type='Resize', keep_ratio=True, min_size=64),
            dict(type='Normalize', mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], to_rgb=True)])]
"""
SHRUNK_CONFIG = TINY_CONFIG.replace("type='VisionTransformer'", "type='vit_shrink', shrink_idx=1").replace(
    "type='ATMHead'", "type='TPNATMHead'"
)


def write_checkpoint(
    folder: Path, config: str | None = TINY_CONFIG, shrunk: bool = False, num_classes: int = 5, **meta: Any
) -> Path:
    """Writes `checkpoint.pth` of the model that the configuration describes, and gives its path."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pth"
    shapes = segvit_shapes(**{**TINY, "num_classes": num_classes}, num_stages=2, shrunk=shrunk)
    contents = {"mmseg_version": "0.24.0", "CLASSES": tuple("abcde"), **meta}
    if config is not None:
        contents["config"] = config
    weights = procedural_state_dict(shapes)
    torch.save({"meta": contents, "state_dict": weights, "optimizer": {"state": {}}}, checkpoint)
    return checkpoint
