# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""A folder with a Segmenter so small that loading it is most of the work, for the tests of whatever takes a folder."""

from pathlib import Path

import torch

from hf_segmodels import (
    PlainViTConfig,
    SegmenterConfig,
    SegmenterForSemanticSegmentation,
    SegmenterImageProcessor,
)


CLASS_NAMES = ["sky", "building", "pole", "road", "tree"]


def save_tiny_segmenter(
    folder: Path, size: dict[str, int] | None = None, class_names: list[str] = CLASS_NAMES, **overrides
) -> Path:
    """
    Saves model and image processor, with random weights that give label maps of several classes.

    Args:
        folder: Where to.
        size: For the image processor; the shorter edge to 32 pixels if unset.
        class_names: Its classes.
        overrides: For `SegmenterConfig`.
    """
    torch.manual_seed(0)
    encoder = PlainViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, image_size=32, patch_size=8)
    config = SegmenterConfig(
        backbone_config=encoder, decoder_type="linear", id2label=dict(enumerate(class_names)), **overrides
    )
    model = SegmenterForSemanticSegmentation(config)
    torch.nn.init.normal_(model.decoder.classifier.weight)
    model.save_pretrained(folder)
    size = size or {"shortest_edge": 32, "longest_edge": 128}
    SegmenterImageProcessor(size=size).save_pretrained(folder)
    return folder
