# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Small models of every kind, and a check that a process without the package loads their exported folders."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import Dinov2Config, PreTrainedModel, pipeline
from transformers.image_processing_utils import BaseImageProcessor

import hf_segmodels
from common.model_tester import TINY, TINY_RESNET_V1C, TINY_SEGVIT, TINY_UNEPT
from hf_segmodels import PlainViTConfig, ResNetV1cConfig


CLASS_NAMES = {0: "sky", 1: "road", 2: "tree"}
SIZE = {"height": 64, "width": 80}


def _vit(**fields) -> PlainViTConfig:
    return PlainViTConfig(**{**TINY, "image_size": 64, **fields})


# class name without "Config", and fields of the configuration
MODELS: dict[str, Callable[[], tuple[str, dict]]] = {
    "segmenter-linear": lambda: ("Segmenter", {"backbone_config": _vit(), "decoder_type": "linear", "window_size": 48}),
    "segmenter-mask": lambda: ("Segmenter", {"backbone_config": _vit(), "decoder_num_hidden_layers": 1}),
    "segmenter-dinov2": lambda: (
        "Segmenter",
        {"backbone_config": Dinov2Config(**TINY, image_size=56, patch_size=14), "decoder_type": "linear"},
    ),
    "segvit": lambda: (
        "SegViT",
        {**TINY_SEGVIT, "backbone_config": _vit(use_cls_token=False, final_norm="none", out_indices=[1, 2])},
    ),
    "segvit-shrunk": lambda: (
        "SegViT",
        {
            **TINY_SEGVIT,
            "decoder_type": "shrunk",
            "backbone_config": _vit(
                use_cls_token=False, final_norm="none", out_indices=[1, 2], query_downsampling_layer=1
            ),
        },
    ),
    "unept": lambda: (
        "UNEPT",
        {**TINY_UNEPT, "image_size": 64, "backbone_config": _vit(final_norm="none", out_indices=[1, 2])},
    ),
    "unept-resnet": lambda: (
        "UNEPT",
        {**TINY_UNEPT, "image_size": 64, "backbone_config": ResNetV1cConfig(**TINY_RESNET_V1C)},
    ),
    "regproxy": lambda: ("RegProxy", {"backbone_config": _vit(use_distillation_token=True), "token_head_depth": 1}),
    "superpixel-vit": lambda: (
        "SuperpixelViT",
        {"backbone_config": _vit(position_embedding_interpolation="bilinear")},
    ),
}


def make_model(name: str) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Create one of `MODELS`, with random weights that predict several classes, and its image processor."""
    prefix, fields = MODELS[name]()
    config = getattr(hf_segmodels, f"{prefix}Config")(**fields, id2label=CLASS_NAMES)
    model = getattr(hf_segmodels, f"{prefix}ForSemanticSegmentation")(config).eval()
    image_processor = getattr(hf_segmodels, f"{prefix}ImageProcessor")(size=SIZE)
    inputs = image_processor(make_image(), return_tensors="pt")
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.1, generator=generator)
            if len(model.predict(**inputs)[0].unique()) > 1:
                break
    return model, image_processor


def make_image() -> Image.Image:
    small = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((80, 64), Image.Resampling.BICUBIC)


def masks_of(segments: list[dict]) -> dict[str, np.ndarray]:
    return {segment["label"]: np.asarray(segment["mask"]) for segment in segments}


def write_expected(model: PreTrainedModel, image_processor: BaseImageProcessor, folder: Path) -> None:
    """Write the outputs of a model in this process, for [`run_clean_process`]."""
    image = make_image()
    inputs = image_processor(image, return_tensors="pt")
    with torch.no_grad():
        expected = {
            "logits": model(**inputs).logits,
            "labels": model.predict(**inputs, target_sizes=[(51, 77)])[0],
            **{f"input_{name}": tensor for name, tensor in inputs.items()},
        }
    segments = pipeline("image-segmentation", model=model, image_processor=image_processor)(image)
    for name, mask in masks_of(segments).items():
        expected[f"mask_{name}"] = mask
    folder.mkdir(parents=True)
    image.save(folder / "image.png")
    np.savez(folder / "expected.npz", **{name: np.asarray(value) for name, value in expected.items()})


def run_clean_process(
    cases: Mapping[str, tuple[str | Path, Path]],
    cache: Path,
    blocked: tuple[str, ...] = (),
    push: Mapping[str, str] | None = None,
    **environment: str,
) -> str:
    """
    Load models in a process that can import neither `hf_segmodels` nor `blocked`, and compare their outputs.

    Args:
        cases: By name, the folder or repository of a model, and the folder of [`write_expected`].
        cache: Folder for transformers' caches.
        blocked: Packages that the process cannot import.
        push: By name, the repository that a `Trainer` pushes a model to afterwards.
        environment: Environment variables of the process.

    Returns:
        Standard error of the process, with its log.
    """
    script = Path(__file__).with_name("clean_process.py")
    arguments = {
        "blocked": ["hf_segmodels", *blocked],
        "cases": {name: [str(model), str(expected)] for name, (model, expected) in cases.items()},
        "push": dict(push or {}),
    }
    variables = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    process = subprocess.run(
        [sys.executable, "-I", str(script), json.dumps(arguments)],
        env={**variables, "HF_HUB_OFFLINE": "1", "HF_HOME": str(cache), "OMP_NUM_THREADS": "1", **environment},
        cwd=cache,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stdout.split() == sorted(cases)
    return process.stderr
