# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Tiny models for the page: a Segmenter, and one of each other method."""

from pathlib import Path

import pytest
import torch

from common.images import make_image
from common.tiny_segmenter import CLASS_NAMES, save_tiny_segmenter
from hf_segmodels import (
    PlainViTConfig,
    RegProxyConfig,
    RegProxyForSemanticSegmentation,
    RegProxyImageProcessor,
    SegmenterConfig,
    SegmenterForSemanticSegmentation,
    SegmenterImageProcessor,
    SegViTConfig,
    SegViTForSemanticSegmentation,
    SegViTImageProcessor,
    UNEPTConfig,
    UNEPTForSemanticSegmentation,
    UNEPTImageProcessor,
)


@pytest.fixture
def photo(tmp_path) -> Path:
    return make_image(tmp_path / "photo.png", 60, 40)


@pytest.fixture(scope="session")
def segmenter_folder(tmp_path_factory) -> Path:
    """A Segmenter with a model card that specifies a license."""
    folder = save_tiny_segmenter(tmp_path_factory.mktemp("models") / "tiny_segmenter")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\n")
    return folder


@pytest.fixture(scope="session")
def mask_folder(tmp_path_factory) -> Path:
    """A Segmenter with a mask transformer."""
    folder = tmp_path_factory.mktemp("models") / "mask_transformer"
    return save_tiny_mask_transformer(folder)


def save_tiny_mask_transformer(folder: Path) -> Path:
    config = SegmenterConfig(
        backbone_config=tiny_encoder(), decoder_num_attention_heads=2, id2label=dict(enumerate(CLASS_NAMES))
    )
    return save(folder, SegmenterForSemanticSegmentation, config, SegmenterImageProcessor)


def tiny_encoder(**options) -> PlainViTConfig:
    return PlainViTConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8, **options
    )


def save(folder: Path, model_class, config, processor_class) -> Path:
    torch.manual_seed(0)
    model_class(config).save_pretrained(folder)
    processor_class(size={"shortest_edge": 32, "longest_edge": 128}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def method_folders(tmp_path_factory, mask_folder) -> dict[str, Path]:
    """A model of each method, by its name."""
    root = tmp_path_factory.mktemp("methods")
    names = dict(enumerate(CLASS_NAMES))
    segvit = SegViTConfig(
        backbone_config=tiny_encoder(out_indices=[1, 3], query_downsampling_layer=1),
        decoder_type="shrunk",
        decoder_hidden_size=16,
        decoder_num_attention_heads=2,
        id2label=names,
    )
    regproxy = RegProxyConfig(backbone_config=tiny_encoder(), token_head_depth=1, id2label=names)
    unept = UNEPTConfig(
        backbone_config=tiny_encoder(out_indices=[1, 3]),
        hidden_size=16,
        num_attention_heads=4,
        num_points=3,
        image_size=32,
        id2label=names,
    )
    return {
        "segmenter": mask_folder,
        "segvit": save(root / "segvit", SegViTForSemanticSegmentation, segvit, SegViTImageProcessor),
        "regproxy": save(root / "regproxy", RegProxyForSemanticSegmentation, regproxy, RegProxyImageProcessor),
        "unept": save(root / "unept", UNEPTForSemanticSegmentation, unept, UNEPTImageProcessor),
    }
