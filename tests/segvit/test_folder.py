# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""A folder that SegViT was converted to: the pipeline, the command `segment`, and sliding windows."""

import gzip
from pathlib import Path

import pytest

from common.converted_folder import ConvertedFolderSuite
from hf_segmodels.cli.main import main
from hf_segmodels.segvit import SegViTForSemanticSegmentation, SegViTImageProcessor


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("segvit") / "converted"
    compressed = Path(__file__).resolve().parents[1] / "fixtures/segvit/slide/checkpoint.pth.gz"
    checkpoint = folder.with_name("checkpoint.pth")
    checkpoint.write_bytes(gzip.decompress(compressed.read_bytes()))
    arguments = ["--method", "segvit", "--checkpoint", str(checkpoint), "--output_dir", str(folder)]
    assert main(["convert", *arguments]) == 0
    processor = SegViTImageProcessor.from_pretrained(folder, size={"shortest_edge": 64}, image_std=[0.1] * 3)
    processor.save_pretrained(folder)
    return folder


class TestSegViTFolder(ConvertedFolderSuite):
    model_class = SegViTForSemanticSegmentation
    processor_class = SegViTImageProcessor
    whole_image_shapes = {
        "masks_queries_logits": (1, 6, 4, 7),
        "auxiliary_masks_queries_logits": (1, 2, 6, 4, 7),
    }
