# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""`pipeline("image-segmentation")` with each of the four methods: lists, batches, data types, devices, windows, memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

from common.tiny_models import METHODS, save_tiny_model, smooth_image
from common.tiny_segmenter import CLASS_NAMES


FIXED = {"height": 48, "width": 64}
WINDOWS = {"window_size": 32, "window_stride": 16}
SIZES = [(90, 60), (40, 70), (64, 48), (33, 33), (50, 40)]


@pytest.fixture(scope="module", params=METHODS)
def folder(request, tmp_path_factory) -> Path:
    """A model with windows, smaller than the one size that its processor gives."""
    return save_tiny_model(request.param, tmp_path_factory.mktemp(request.param), FIXED, **WINDOWS)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [smooth_image(*size, seed=seed) for seed, size in enumerate(SIZES)]


def to_label_map(segments: list[dict]) -> np.ndarray:
    """The masks as one label map; fails unless each pixel is in exactly one."""
    masks = np.stack([np.asarray(segment["mask"]) == 255 for segment in segments])
    assert (masks.sum(axis=0) == 1).all()
    return np.array([CLASS_NAMES.index(segment["label"]) for segment in segments])[masks.argmax(axis=0)]


def agreement(found: list[list[dict]], expected: list[list[dict]]) -> float:
    """Share of equal pixels in the image with the fewest."""
    pairs = zip(map(to_label_map, found), map(to_label_map, expected), strict=True)
    return min(float((left == right).mean()) for left, right in pairs)


def test_labels_are_those_of_predict(folder):
    """Nothing is resized here: the pipeline resizes logits, `predict` what they are made of."""
    image = smooth_image(FIXED["width"], FIXED["height"], seed=7)
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    inputs = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")
    (expected,) = model.predict(**inputs)
    assert len(expected.unique()) > 1
    found = to_label_map(pipeline("image-segmentation", model=str(folder))(image))
    assert (found == expected.numpy()).mean() > 0.999
    (whole,) = model.predict(**inputs, window_size=0)
    assert (found != whole.numpy()).mean() > 0.001


def test_lists_and_batches(folder, images):
    """Of any kind and size; results have the sizes and the order of the images."""
    segmenter = pipeline("image-segmentation", model=str(folder))
    one_by_one = [segmenter(image) for image in images]
    assert [segments[0]["mask"].size for segments in one_by_one] == SIZES
    assert agreement(segmenter(images), one_by_one) == 1
    for batch_size in (2, len(images)):
        assert agreement(segmenter(images, batch_size=batch_size), one_by_one) > 0.999
    assert agreement(list(segmenter((image for image in images), batch_size=2)), one_by_one) > 0.999


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_data_types(folder, images, dtype):
    segmenter = pipeline("image-segmentation", model=str(folder), dtype=dtype)
    assert {parameter.dtype for parameter in segmenter.model.parameters()} == {dtype}
    expected = pipeline("image-segmentation", model=str(folder), dtype=torch.float32)(images)
    assert agreement(segmenter(images), expected) > 0.8
    assert agreement(segmenter(images, batch_size=2), expected) > 0.8


@pytest.mark.parametrize("device_map", ["auto", "cpu"])
def test_device_maps(folder, images, device_map):
    pytest.importorskip("accelerate")
    segmenter = pipeline("image-segmentation", model=str(folder), device_map=device_map)
    assert segmenter.model.device.type == ("cpu" if device_map == "cpu" or not torch.cuda.is_available() else "cuda")
    expected = pipeline("image-segmentation", model=str(folder), device="cpu")(images)
    # graphics processors round otherwise
    assert agreement(segmenter(images, batch_size=2), expected) > 0.98


MEMORY = """
import sys, json
import torch
from transformers import AutoModelForSemanticSegmentation, ImageSegmentationPipeline, AutoImageProcessor
import hf_segmodels
from common.tiny_models import save_tiny_model, smooth_image
from segment_image import peak_memory_over_start

folder, way, window, stride, side = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
torch.set_num_threads(1)
model = AutoModelForSemanticSegmentation.from_pretrained(folder, window_size=window, window_stride=stride)
processor = AutoImageProcessor.from_pretrained(folder)
if way == "pipeline":
    segmenter = ImageSegmentationPipeline(model=model, image_processor=processor)
    work = lambda image: segmenter(image)
else:
    work = lambda image: model.predict(**processor(image, return_tensors="pt"))
work(smooth_image(2 * window, 2 * window))  # what is loaded at the first use does not count
print(peak_memory_over_start(lambda: work(smooth_image(side, side))))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("method", METHODS)
def test_memory_of_windows_is_bounded(method, tmp_path, repository):
    """
    768 x 768 pixels, 60 classes, windows of 64 side by side or overlapping by a third: scores of the image take 142 MB.
    `predict` stays below that, RegProxy with its grids of a quarter of the image's resolution, which overlap too, below
    twice that; the pipeline, whose model has to return them, holds them and one copy.
    """
    side, num_labels = 768, 60
    scores = 4 * num_labels * side**2
    names = [f"class {index}" for index in range(num_labels)]
    folder = save_tiny_model(method, tmp_path, {"shortest_edge": side}, class_names=names)
    paths = [str(repository), str(repository / "tests"), str(repository / "benchmarks")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}

    def peak(way: str, stride: int) -> int:
        arguments = [str(folder), way, "64", str(stride), str(side)]
        command = [sys.executable, "-c", MEMORY, *arguments]
        process = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout)

    # 144 windows and 324
    assert max(peak("predict", 64), peak("predict", 43)) < scores * (2 if method == "RegProxy" else 1)
    few, many = peak("pipeline", 64), peak("pipeline", 43)
    assert max(few, many) < 3 * scores
    assert many < 1.25 * few
