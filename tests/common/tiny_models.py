# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Folders with a tiny model of each of the four methods, for the tests of whatever takes any of them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import hf_segmodels
from common.model_tester import TINY, TINY_SEGVIT, TINY_UNEPT
from common.tiny_segmenter import CLASS_NAMES, save_tiny_segmenter
from hf_segmodels import PlainViTConfig


_VIT = {**TINY, "image_size": 32, "patch_size": 8}
_FIELDS = {
    "RegProxy": lambda: {"backbone_config": PlainViTConfig(**_VIT), "token_head_depth": 1},
    "SegViT": lambda: {
        **TINY_SEGVIT,
        "backbone_config": PlainViTConfig(**_VIT, use_cls_token=False, final_norm="none", out_indices=[1, 2]),
    },
    "UNEPT": lambda: {
        **TINY_UNEPT,
        "backbone_config": PlainViTConfig(**_VIT, final_norm="none", out_indices=[1, 2]),
        "image_size": 32,
    },
}
METHODS = ["Segmenter", *_FIELDS]


def save_tiny_model(
    method: str, folder: Path, size: dict[str, int] | None = None, class_names: list[str] = CLASS_NAMES, **overrides
) -> Path:
    """
    Saves model and image processor, with random weights that give label maps of several classes.

    Args:
        method: One of `METHODS`.
        folder: Where to.
        size: For the image processor; the shorter edge to 32 pixels if unset.
        class_names: Its classes.
        overrides: For the method's configuration.
    """
    if method == "Segmenter":
        return save_tiny_segmenter(folder, size, class_names, **overrides)
    torch.manual_seed(0)
    id2label = dict(enumerate(class_names))
    config = getattr(hf_segmodels, f"{method}Config")(id2label=id2label, **{**_FIELDS[method](), **overrides})
    model = getattr(hf_segmodels, f"{method}ForSemanticSegmentation")(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and not name.startswith("backbone."):
            torch.nn.init.normal_(parameter, std=2 * parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    processor: Callable = getattr(hf_segmodels, f"{method}ImageProcessor")
    processor(size=size or {"shortest_edge": 32, "longest_edge": 128}).save_pretrained(folder)
    return folder


def smooth_image(width: int = 50, height: int = 40, seed: int = 0) -> Image.Image:
    """Random blobs of colors."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
