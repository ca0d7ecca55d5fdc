# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Files as UN-EPT's original repository writes them, with weights that need no storage."""

from pathlib import Path
from typing import Any

import torch
from fixtures.procedural_weights import procedural_state_dict

from common.original_shapes import Shapes, batch_norm, pair, timm_layers, torch_attention


# The original's three configurations, with their numbers of parameters.
DEIT = {
    "type": "DeiT",
    "img_size": 480,
    "patch_size": 16,
    "embed_dim": 768,
    "bb_depth": 12,
    "num_heads": 12,
    "mlp_ratio": 4,
}
RESNET = {
    "type": "ResNetV1c",
    "depth": 50,
    "num_stages": 4,
    "dilations": (1, 1, 2, 4),
    "strides": (1, 2, 1, 1),
    "contract_dilation": True,
    "style": "pytorch",
}
CONFIGURATIONS = {
    "deit_unept_ade20k": (DEIT, 150, 94842326),
    "deit_unept_pcontext": (DEIT, 60, 94819196),
    "res50_unept_ade20k": (RESNET, 150, 32357942),
}
TINY_DEIT = {**DEIT, "img_size": 64, "embed_dim": 32, "bb_depth": 6, "num_heads": 2}
TINY_RESNET = {**RESNET, "base_channels": 4, "stem_channels": 8}


def network(backbone: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """`model` of a configuration."""
    sizes = {"feat_dim": 256, "k": 16, "L": 3, "dropout": 0.1, "heads": 8, "hidden_dim": 2048, "depth": 2}
    return {"type": "UN_EPT", "pretrained": None, "backbone_cfg": backbone, **sizes, **fields}


def _conv_norm(conv: str, norm: str, outputs: int, inputs: int, kernel: int = 3) -> Shapes:
    return {f"{conv}.weight": (outputs, inputs, kernel, kernel), **batch_norm(norm, outputs)}


def _deit(config: dict[str, Any]) -> tuple[Shapes, list[int]]:
    width, patch = config["embed_dim"], config["patch_size"]
    shapes: Shapes = {
        "backbone.cls_token": (1, 1, width),
        "backbone.dist_token": (1, 1, width),
        "backbone.pos_embed": (1, 2 + (config["img_size"] // patch) ** 2, width),
        "backbone.patch_embed.proj.weight": (width, 3, patch, patch),
        "backbone.patch_embed.proj.bias": (width,),
    }
    shapes |= timm_layers("backbone.blocks", config["bb_depth"], width)
    return shapes, [width] * 3


def _resnet(config: dict[str, Any]) -> tuple[Shapes, list[int]]:
    stem, base = config.get("stem_channels", 64), config.get("base_channels", 64)
    shapes: Shapes = {}
    for number, outputs, inputs in ((0, stem // 2, 3), (3, stem // 2, stem // 2), (6, stem, stem // 2)):
        shapes |= _conv_norm(f"backbone.stem.{number}", f"backbone.stem.{number + 1}", outputs, inputs)
    inputs = stem
    for stage, depth in enumerate((3, 4, 6, 3)):
        width = base * 2**stage
        for block in range(depth):
            name = f"backbone.layer{stage + 1}.{block}"
            shapes |= _conv_norm(f"{name}.conv1", f"{name}.bn1", width, inputs, 1)
            shapes |= _conv_norm(f"{name}.conv2", f"{name}.bn2", width, width)
            shapes |= _conv_norm(f"{name}.conv3", f"{name}.bn3", 4 * width, width, 1)
            if block == 0:
                shapes |= _conv_norm(f"{name}.downsample.0", f"{name}.downsample.1", 4 * width, inputs, 1)
            inputs = 4 * width
    return shapes, [8 * base, 16 * base, 32 * base]


def _sampled_attention(name: str, width: int, model: dict[str, Any]) -> Shapes:
    points = model["heads"] * model["L"] * model["k"]
    return {
        **pair(f"{name}.sampling_offsets", 2 * points, width),
        **pair(f"{name}.attention_weights", points, width),
        **pair(f"{name}.value_proj", width, width),
        **pair(f"{name}.output_proj", width, width),
    }


def unept_shapes(model: dict[str, Any], num_classes: int, crop_size: int) -> Shapes:
    """Names and shapes of a checkpoint, from the `model` of its configuration."""
    backbone, width = model["backbone_cfg"], model["feat_dim"]
    shapes, channels = (_deit if backbone["type"] == "DeiT" else _resnet)(backbone)
    shapes |= {"cls.weight": (num_classes, width, 1, 1), "cls.bias": (num_classes,)}
    for level, inputs in enumerate(channels):
        shapes |= {f"layers.{level}.weight": (width, inputs, 1, 1), f"layers.{level}.bias": (width,)}
    shapes["context_branch.level_embed"] = (model["L"], width)
    for part, attention, num_norms in (("encoder", "self_attn", 2), ("decoder", "cross_attn", 3)):
        for layer in (f"context_branch.{part}.layers.{number}" for number in range(model["depth"])):
            shapes |= _sampled_attention(f"{layer}.{attention}", width, model)
            if part == "decoder":
                shapes |= torch_attention(f"{layer}.self_attn", width)
            for number in range(1, 1 + num_norms):
                shapes |= pair(f"{layer}.norm{number}", width)
            shapes |= pair(f"{layer}.linear1", model["hidden_dim"], width)
            shapes |= pair(f"{layer}.linear2", width, model["hidden_dim"])
    shapes["query_embed.weight"] = ((crop_size // 8) ** 2, width)
    spatial = (3, 64, 128, width)
    for number in (1, 2, 3):
        name = f"spatial_branch.convblock{number}"
        shapes |= _conv_norm(f"{name}.conv1", f"{name}.bn", spatial[number], spatial[number - 1])
    for name, outputs in (("mask_head", 2), ("dir_head", 8)):
        shapes |= _conv_norm(f"{name}.0", f"{name}.1", width, width, 1)
        shapes[f"{name}.3.weight"] = (outputs, width, 1, 1)
    return shapes


def config_text(model: dict[str, Any], num_classes: int, crop_size: int) -> str:
    """The text that mmcv puts into a checkpoint's `meta`."""
    test_cfg = {
        "mode": "slide",
        "crop_size": (crop_size, crop_size),
        "stride": (crop_size // 3, crop_size // 3),
        "num_classes": num_classes,
        "num_queries": (crop_size // 8) ** 2,
    }
    return f"model = {model!r}\ntest_cfg = {test_cfg!r}\n"


def write_checkpoint(
    folder: Path, backbone: dict[str, Any] = TINY_DEIT, num_classes: int = 5, crop_size: int = 64, **meta: Any
) -> Path:
    """Writes a checkpoint of a small model as mmcv's runner does."""
    folder.mkdir(parents=True, exist_ok=True)
    model = network(backbone, k=2, hidden_dim=64, depth=1)
    weights = procedural_state_dict(unept_shapes(model, num_classes, crop_size))
    meta = {"config": config_text(model, num_classes, crop_size), "mmcv_version": "1.3.13", **meta}
    checkpoint = folder / "checkpoint.pth"
    torch.save({"meta": meta, "state_dict": weights, "optimizer": {}}, checkpoint)
    return checkpoint
