# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""A folder that RegProxy was converted to: the pipeline, the command `segment`, and sliding windows."""

from pathlib import Path

import pytest

from common.converted_folder import ConvertedFolderSuite
from hf_segmodels.cli.main import main
from hf_segmodels.regproxy import RegProxyForSemanticSegmentation, RegProxyImageProcessor


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("regproxy") / "converted"
    checkpoint = Path(__file__).resolve().parents[1] / "fixtures/regproxy/slide_pad_smaller_than_window/checkpoint.pth"
    arguments = ["--method", "regproxy", "--checkpoint", str(checkpoint), "--output_dir", str(folder)]
    assert main(["convert", *arguments]) == 0
    processor = RegProxyImageProcessor.from_pretrained(folder, size={"shortest_edge": 64, "longest_edge": 256})
    processor.save_pretrained(folder)
    return folder


class TestRegProxyFolder(ConvertedFolderSuite):
    model_class = RegProxyForSemanticSegmentation
    processor_class = RegProxyImageProcessor
    whole_image_shapes = {"affinity": (1, 9, 4, 4, 4, 7)}
