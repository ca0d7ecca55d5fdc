# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Files as Segmenter's original repository writes them, with weights that need no storage."""

from pathlib import Path
from typing import Any

import torch
from fixtures.procedural_weights import procedural_state_dict

from common.original_shapes import Shapes, pair, timm_layers


def segmenter_shapes(network: dict[str, Any], num_decoder_layers: int | None = None) -> Shapes:
    """Names and shapes of a checkpoint, from the `net_kwargs` of its `variant.yml`."""
    width, patch_size, num_classes = network["d_model"], network["patch_size"], network["n_cls"]
    rows, columns = (size // patch_size for size in network["image_size"])
    distilled = network.get("distilled", False)
    shapes = {
        "encoder.cls_token": (1, 1, width),
        "encoder.pos_embed": (1, 1 + distilled + rows * columns, width),
        "encoder.patch_embed.proj.weight": (width, 3, patch_size, patch_size),
        "encoder.patch_embed.proj.bias": (width,),
        **timm_layers("encoder.blocks", network["n_layers"], width),
        **pair("encoder.norm", width),
        **pair("encoder.head", 1000, width),
    }
    if distilled:
        shapes |= {"encoder.dist_token": (1, 1, width), **pair("encoder.head_dist", 1000, width)}
    if "linear" in network["decoder"]["name"]:
        return shapes | pair("decoder.head", num_classes, width)
    return {
        **shapes,
        "decoder.cls_emb": (1, num_classes, width),
        "decoder.proj_patch": (width, width),
        "decoder.proj_classes": (width, width),
        **timm_layers("decoder.blocks", num_decoder_layers or network["decoder"]["n_layers"], width),
        **pair("decoder.proj_dec", width, width),
        **pair("decoder.decoder_norm", width),
        **pair("decoder.mask_norm", num_classes),
    }


def tiny_network(decoder: str = "mask_transformer", **fields: Any) -> dict[str, Any]:
    """`net_kwargs` of a model that runs in milliseconds."""
    decoder_fields = {"name": decoder, "n_cls": fields.get("n_cls", 5)}
    if "linear" not in decoder:
        decoder_fields |= {"drop_path_rate": 0.0, "dropout": 0.1, "n_layers": 2}
    network = {
        "backbone": "vit_tiny",
        "d_model": 64,
        "decoder": decoder_fields,
        "distilled": False,
        "drop_path_rate": 0.1,
        "dropout": 0.0,
        "image_size": (64, 64),
        "n_cls": 5,
        "n_heads": 2,
        "n_layers": 2,
        "normalization": "vit",
        "patch_size": 16,
    }
    return network | fields


def variant_yml(
    network: dict[str, Any], dataset: str = "ade20k", im_size: int = 512, window: tuple[int, int] | None = None
) -> str:
    """The text of a `variant.yml`: as `yaml.dump` writes it, with Python tuples as tags."""
    import yaml

    window_size, window_stride = window or (network["image_size"][0],) * 2
    variant = {
        "amp": False,
        "dataset_kwargs": {"dataset": dataset, "normalization": network["normalization"], "image_size": im_size},
        "inference_kwargs": {"im_size": im_size, "window_size": window_size, "window_stride": window_stride},
        "net_kwargs": network,
    }
    return yaml.dump(variant)


def write_checkpoint(folder: Path, network: dict[str, Any] | None = None, **variant_fields: Any) -> Path:
    """Writes `checkpoint.pth` and `variant.yml` and gives the path of the first."""
    network = network or tiny_network()
    folder.mkdir(parents=True, exist_ok=True)
    weights = procedural_state_dict(segmenter_shapes(network))
    checkpoint = folder / "checkpoint.pth"
    torch.save({"model": weights, "n_cls": network["n_cls"], "epoch": 63}, checkpoint)
    (folder / "variant.yml").write_text(variant_yml(network, **variant_fields))
    return checkpoint
