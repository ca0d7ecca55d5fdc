# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""A folder with UN-EPT, as converted and with the paper's refinement: pipeline, command `segment`, sliding windows."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from common.converted_folder import ConvertedFolderSuite
from common.original_unept import write_checkpoint
from hf_segmodels.cli.main import main
from hf_segmodels.unept import UNEPTForSemanticSegmentation, UNEPTImageProcessor


@pytest.fixture(scope="module", params=[False, True], ids=["coarse", "refined"])
def folder(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unept") / "converted"
    checkpoint = write_checkpoint(folder.parent, CLASSES=[f"class_{index}" for index in range(5)])
    arguments = ["--method", "unept", "--checkpoint", str(checkpoint), "--output_dir", str(folder)]
    assert main(["convert", *arguments]) == 0
    if request.param:
        UNEPTForSemanticSegmentation.from_pretrained(folder, refine_at_inference=True).save_pretrained(folder)
    UNEPTImageProcessor.from_pretrained(folder, size={"shortest_edge": 64}).save_pretrained(folder)
    return folder


class TestUNEPTFolder(ConvertedFolderSuite):
    model_class = UNEPTForSemanticSegmentation
    processor_class = UNEPTImageProcessor
    # padded to 64 x 112
    whole_image_shapes = {"boundary_logits": (1, 2, 8, 14), "direction_logits": (1, 8, 8, 14)}

    def test_test_time_augmentation(self, folder: Path, image: Image.Image):
        model = AutoModelForSemanticSegmentation.from_pretrained(folder)
        pixel_values = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt").pixel_values
        options = {"scales": (0.5, 1.0), "flip": True, "target_sizes": [(70, 80)]}
        (scores,) = model.predict(pixel_values, return_scores=True, **options)
        (label_map,) = model.predict(pixel_values, **options)
        assert scores.shape == (5, 70, 80)
        torch.testing.assert_close(scores.sum(0), torch.ones(70, 80))
        assert (label_map == scores.argmax(0)).float().mean() > 0.999
