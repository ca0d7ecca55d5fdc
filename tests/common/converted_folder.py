# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Tests of a converted folder: the pipeline, the command `segment`, sliding windows."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, PreTrainedModel, pipeline
from transformers.image_processing_utils import BaseImageProcessor

from hf_segmodels.cli.main import main


class ConvertedFolderSuite:
    """
    The tests of a method, beside a fixture `folder` of scope "module": a converted model with windows of 64x64 and classes
    called `class_0` and so on, whose processor makes the shorter edge 64.
    """

    model_class: ClassVar[type[PreTrainedModel]]
    processor_class: ClassVar[type[BaseImageProcessor]]
    whole_image_shapes: ClassVar[dict[str, tuple[int, ...]]]
    """Outputs for the image as a whole, 64 x 97 pixels; windows have no such outputs, None in `outputs`."""

    @pytest.fixture
    def image(self) -> Image.Image:
        small = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        return Image.fromarray(small).resize((97, 64), Image.Resampling.BICUBIC)

    @pytest.fixture
    def labels(self, folder: Path, image: Image.Image) -> np.ndarray:
        """Label map from `predict`, with windows of 64x64 and the checkpoint's own normalization."""
        model = AutoModelForSemanticSegmentation.from_pretrained(folder)
        processor = AutoImageProcessor.from_pretrained(folder)
        assert type(model) is self.model_class
        assert type(processor) is self.processor_class
        pixel_values = processor(image, return_tensors="pt").pixel_values
        assert pixel_values.shape == (1, 3, 64, 97)
        (label_map,) = model.predict(pixel_values, target_sizes=[(image.height, image.width)])
        assert len(label_map.unique()) > 1
        return label_map.numpy()

    def test_pipeline(self, folder: Path, image: Image.Image, labels: np.ndarray):
        segments = pipeline("image-segmentation", model=str(folder))(image)
        masks = {segment["label"]: np.asarray(segment["mask"]) == 255 for segment in segments}
        assert set(masks) == {f"class_{index}" for index in np.unique(labels)}
        for name, mask in masks.items():
            np.testing.assert_array_equal(mask, labels == int(name.removeprefix("class_")))

    def test_segment_command(self, folder: Path, image: Image.Image, labels: np.ndarray, tmp_path: Path):
        image.save(tmp_path / "photo.png")
        arguments = [str(tmp_path / "photo.png"), "--model", str(folder), "--output", str(tmp_path / "results")]
        assert main(["segment", *arguments]) == 0
        np.testing.assert_array_equal(np.array(Image.open(tmp_path / "results" / "photo_labels.png")), labels)
        assert (tmp_path / "results" / "photo_overlay.png").is_file()

    def test_forward_slides_as_predict_does(self, folder: Path, image: Image.Image, labels: np.ndarray):
        model = AutoModelForSemanticSegmentation.from_pretrained(folder)
        processor = AutoImageProcessor.from_pretrained(folder)
        inputs = processor(image, return_tensors="pt")
        with torch.no_grad():
            outputs = model(**inputs)
            whole = model(**inputs, output_hidden_states=True)
        np.testing.assert_array_equal(outputs.logits[0].argmax(0).numpy(), labels)
        for name, shape in self.whole_image_shapes.items():
            assert getattr(outputs, name) is None
            assert getattr(whole, name).shape == shape
        post_processed = processor.post_process_semantic_segmentation(outputs, target_sizes=[(64, 97)])[0]
        np.testing.assert_array_equal(post_processed.numpy(), labels)
