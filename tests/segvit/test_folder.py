# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""A folder that SegViT was converted to: the pipeline, the command `segment`, and sliding windows."""

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

from hf_segmodels.cli import main
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


@pytest.fixture
def image() -> Image.Image:
    small = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((97, 64), Image.Resampling.BICUBIC)


@pytest.fixture
def labels(folder: Path, image: Image.Image) -> np.ndarray:
    """What `predict` gives: windows of 64x64."""
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    assert type(model) is SegViTForSemanticSegmentation
    assert type(processor) is SegViTImageProcessor
    pixel_values = processor(image, return_tensors="pt").pixel_values
    assert pixel_values.shape == (1, 3, 64, 97)
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
    assert (tmp_path / "results" / "photo_overlay.png").is_file()


def test_forward_slides_as_predict_does(folder: Path, image: Image.Image, labels: np.ndarray):
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    inputs = processor(image, return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
        whole = model(**inputs, output_hidden_states=True)
    assert outputs.masks_queries_logits is None
    np.testing.assert_array_equal(outputs.logits[0].argmax(0).numpy(), labels)
    assert whole.masks_queries_logits.shape == (1, 6, 4, 7)
    assert whole.auxiliary_masks_queries_logits.shape == (1, 2, 6, 4, 7)
    post_processed = processor.post_process_semantic_segmentation(outputs, target_sizes=[(64, 97)])[0]
    np.testing.assert_array_equal(post_processed.numpy(), labels)
