# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""A folder with a SuperpixelViT in the pipeline, in the pieces of the README, and on the command line."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

from hf_segmodels import (
    PlainViTConfig,
    SuperpixelViTConfig,
    SuperpixelViTForSemanticSegmentation,
    SuperpixelViTImageProcessor,
)
from hf_segmodels.inference.predictor import load_predictor


pytest.importorskip("skimage", reason="scikit-image is part of the `superpixels` and `dev` extras")

CLASS_NAMES = ["sky", "building", "pole", "road", "tree"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("superpixel_vit")
    torch.manual_seed(0)
    encoder = PlainViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, image_size=32, patch_size=8)
    config = SuperpixelViTConfig(backbone_config=encoder, id2label=dict(enumerate(CLASS_NAMES)))
    model = SuperpixelViTForSemanticSegmentation(config)
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(folder)
    SuperpixelViTImageProcessor(size={"shortest_edge": 48}, pixels_per_segment=64).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def image() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((90, 60), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def labels(folder, image) -> np.ndarray:
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    inputs = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")
    labels = model.predict(**inputs, target_sizes=[(60, 90)])[0].numpy()
    assert len(np.unique(labels)) > 1
    return labels


def test_pipeline(folder, image, labels):
    segments = pipeline("image-segmentation", model=str(folder))(image)
    assert len(segments) == len(np.unique(labels))
    for segment in segments:
        mask = np.asarray(segment["mask"]) == 255
        np.testing.assert_array_equal(mask, labels == CLASS_NAMES.index(segment["label"]))


def test_pipeline_in_batches_of_one_size(folder, image):
    image_processor = AutoImageProcessor.from_pretrained(folder, size={"height": 40, "width": 56})
    segmenter = pipeline("image-segmentation", model=str(folder), image_processor=image_processor)
    # with different numbers of superpixels
    images = [image, image.resize((31, 77)), Image.new("RGB", (50, 20), "red")]
    for picture, segments in zip(images, segmenter(images, batch_size=3), strict=True):
        masks = np.stack([np.asarray(segment["mask"]) == 255 for segment in segments])
        alone = np.stack([np.asarray(segment["mask"]) == 255 for segment in segmenter(picture)])
        np.testing.assert_array_equal(masks, alone)
        assert masks.shape[1:] == (picture.height, picture.width)


def test_model_and_processor_in_hand(folder, image, labels):
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    image_processor = AutoImageProcessor.from_pretrained(folder)
    with torch.inference_mode():
        outputs = model(**image_processor(image, return_tensors="pt"))
    found = image_processor.post_process_semantic_segmentation(outputs, target_sizes=[(60, 90)])[0]
    np.testing.assert_array_equal(found, labels)


def test_command(folder, image, labels):
    np.testing.assert_array_equal(load_predictor(str(folder), device="cpu")(image), labels)
