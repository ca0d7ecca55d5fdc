# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""A folder with UN-EPT, as converted and with the paper's refinement: pipeline, command `segment`, sliding windows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

from common.original_unept import write_checkpoint
from hf_segmodels.cli import main
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


@pytest.fixture
def image() -> Image.Image:
    small = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((97, 64), Image.Resampling.BICUBIC)


@pytest.fixture
def labels(folder: Path, image: Image.Image) -> np.ndarray:
    """What `predict` gives in the checkpoint's windows of 64x64."""
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    assert type(processor) is UNEPTImageProcessor
    pixel_values = processor(image, return_tensors="pt").pixel_values
    (label_map,) = model.predict(pixel_values, target_sizes=[(image.height, image.width)])
    assert len(label_map.unique()) > 1
    return label_map.numpy()


def test_pipeline(folder: Path, image: Image.Image, labels: np.ndarray):
    segments = pipeline("image-segmentation", model=str(folder))(image)
    masks = {segment["label"]: np.asarray(segment["mask"]) == 255 for segment in segments}
    assert set(masks) == {f"class_{index}" for index in np.unique(labels)}
    for name, mask in masks.items():
        np.testing.assert_array_equal(mask, labels == int(name.removeprefix("class_")))


def test_segment_command(folder: Path, image: Image.Image, labels: np.ndarray, tmp_path: Path):
    image.save(tmp_path / "photo.png")
    arguments = [str(tmp_path / "photo.png"), "--model", str(folder), "--output", str(tmp_path / "results")]
    assert main(["segment", *arguments]) == 0
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "results" / "photo_labels.png")), labels)


def test_forward_slides_as_predict_does(folder: Path, image: Image.Image, labels: np.ndarray):
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    inputs = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
        whole = model(**inputs, output_hidden_states=True)
    assert outputs.boundary_logits is None
    np.testing.assert_array_equal(outputs.logits[0].argmax(0).numpy(), labels)
    # 64 x 97 pixels are padded to 64 x 112
    assert whole.boundary_logits.shape == (1, 2, 8, 14)
    assert whole.direction_logits.shape == (1, 8, 8, 14)


def test_test_time_augmentation(folder: Path, image: Image.Image):
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    pixel_values = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt").pixel_values
    options = {"scales": (0.5, 1.0), "flip": True, "target_sizes": [(70, 80)]}
    (scores,) = model.predict(pixel_values, return_scores=True, **options)
    (label_map,) = model.predict(pixel_values, **options)
    assert scores.shape == (5, 70, 80)
    torch.testing.assert_close(scores.sum(0), torch.ones(70, 80))
    assert (label_map == scores.argmax(0)).float().mean() > 0.999
