# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""`pipeline("image-segmentation", model=FOLDER)`: what users get, and that it says nothing that is not so."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

import hf_segmodels  # noqa: F401 - registers the models
from common.tiny_segmenter import CLASS_NAMES, save_tiny_segmenter
from hf_segmodels.image_processing import read_image


FLEXIBLE = {"shortest_edge": 32, "longest_edge": 128}
FIXED = {"height": 32, "width": 48}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny_segmenter(tmp_path_factory.mktemp("flexible"), size=FLEXIBLE)


@pytest.fixture(scope="module")
def fixed_size_folder(tmp_path_factory) -> Path:
    return save_tiny_segmenter(tmp_path_factory.mktemp("fixed"), size=FIXED)


@pytest.fixture(scope="module")
def image_files(tmp_path_factory) -> dict[str, Path]:
    """Files of several kinds and sizes."""
    folder = tmp_path_factory.mktemp("images")
    small = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((90, 60), Image.Resampling.BICUBIC)
    image.save(folder / "photo.jpg")
    transparent = image.resize((64, 64))
    transparent.putalpha(200)
    transparent.save(folder / "transparent.png")
    image.resize((51, 77)).convert("L").save(folder / "gray.png")
    return {path.stem: path for path in folder.iterdir()}


def to_label_map(segments: list[dict]) -> np.ndarray:
    """The masks as one label map; fails unless each pixel is in exactly one."""
    masks = np.stack([np.asarray(segment["mask"]) for segment in segments])
    assert set(np.unique(masks)) <= {0, 255}
    assert ((masks == 255).sum(axis=0) == 1).all()
    indices = np.array([CLASS_NAMES.index(segment["label"]) for segment in segments])
    return indices[(masks == 255).argmax(axis=0)]


def predict(folder: Path, image: Image.Image, **options) -> np.ndarray:
    model = AutoModelForSemanticSegmentation.from_pretrained(folder).eval()
    pixel_values = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt").pixel_values
    with torch.no_grad():
        return model.predict(pixel_values, target_sizes=[(image.height, image.width)], **options)[0].numpy()


@pytest.mark.parametrize("name", ["photo", "transparent", "gray"])
@pytest.mark.parametrize("as_path", [True, False])
def test_masks_have_the_size_of_the_image_and_nearly_the_labels_of_predict(folder, image_files, name, as_path):
    image = Image.open(image_files[name])
    segmenter = pipeline("image-segmentation", model=str(folder))
    segments = segmenter(str(image_files[name]) if as_path else image)
    assert len(segments) > 1
    for segment in segments:
        assert (segment["mask"].mode, segment["mask"].size) == ("L", image.size)
        assert segment["score"] is None
    # `predict` resizes twice, as the original does: to the network's input size, then to the image's. The pipeline
    # drops transparency before the image processor sees the image.
    assert (to_label_map(segments) == predict(folder, image.convert("RGB"))).mean() > 0.97


@pytest.mark.parametrize("size", [(32, 48), (32, 45)])
def test_masks_are_those_of_predict_where_nothing_is_resized(folder, image_files, size):
    height, width = size
    image = Image.open(image_files["photo"]).resize((width, height))
    segments = pipeline("image-segmentation", model=str(folder))(image)
    assert (to_label_map(segments) == predict(folder, image)).all()


def test_16_bit_grays(folder, image_files, tmp_path):
    """The pipeline itself cuts values above 255 off; `read_image` does not."""
    gray = Image.open(image_files["gray"])
    Image.fromarray(np.asarray(gray).astype(np.uint16) * 257).save(tmp_path / "scan.png")
    segmenter = pipeline("image-segmentation", model=str(folder))
    expected = to_label_map(segmenter(gray))
    assert len(np.unique(expected)) > 1
    assert (to_label_map(segmenter(read_image(tmp_path / "scan.png"))) == expected).all()


def test_window_of_the_configuration_is_used(tmp_path, image_files):
    folder = save_tiny_segmenter(tmp_path, window_size=32, window_stride=16)
    image = Image.open(image_files["photo"])
    found = to_label_map(pipeline("image-segmentation", model=str(folder))(image))
    assert (found == predict(folder, image)).all()
    assert (found != predict(folder, image, window_size=0)).any()


def test_subtask_semantic_is_the_default(folder, image_files):
    segmenter = pipeline("image-segmentation", model=str(folder))
    default, semantic = (segmenter(str(image_files["photo"]), **options) for options in ({}, {"subtask": "semantic"}))
    assert (to_label_map(default) == to_label_map(semantic)).all()
    with pytest.raises(ValueError, match="panoptic"):
        segmenter(str(image_files["photo"]), subtask="panoptic")


class TestBatches:
    def files(self, image_files: dict[str, Path]) -> list[str]:
        return [str(image_files[name]) for name in ("photo", "transparent", "gray", "photo", "gray")]

    def test_images_of_different_sizes_with_a_fixed_size(self, fixed_size_folder, image_files):
        files = self.files(image_files)
        segmenter = pipeline("image-segmentation", model=str(fixed_size_folder))
        batched = segmenter(files, batch_size=4)
        assert len(batched) == len(files)
        for file, segments in zip(files, batched, strict=True):
            assert segments[0]["mask"].size == Image.open(file).size
            assert (to_label_map(segments) == to_label_map(segmenter(file))).mean() > 0.999

    def test_a_size_for_one_call_of_a_flexible_processor(self, folder, image_files):
        image_processor = AutoImageProcessor.from_pretrained(folder, size=FIXED)
        segmenter = pipeline("image-segmentation", model=str(folder), image_processor=image_processor)
        files = self.files(image_files)
        assert [len(segments) > 0 for segments in segmenter(files, batch_size=4)] == [True] * len(files)

    def test_a_list_without_batch_size_runs_one_by_one(self, folder, image_files):
        files = self.files(image_files)
        sizes = [segments[0]["mask"].size for segments in pipeline("image-segmentation", model=str(folder))(files)]
        assert sizes == [Image.open(file).size for file in files]

    def test_images_that_come_out_at_different_sizes_are_refused(self, folder, image_files):
        segmenter = pipeline("image-segmentation", model=str(folder))
        with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
            segmenter(self.files(image_files), batch_size=4)
