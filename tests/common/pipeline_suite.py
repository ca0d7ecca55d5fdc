# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
The pipeline suite of transformers, set up for our models.

`PipelineTesterMixin` loads tiny models from the Hub and hands them to one test class per task; neither is part of the
source distribution. Here it gets a tiny model made on the spot, and `ImageSegmentationPipelineTests`.
"""

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import TestCase, mock

import numpy as np
from PIL import Image
from transformers import ImageSegmentationPipeline
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers_tests import test_pipeline_mixin as suite


TASK = "image-segmentation"


class ImageSegmentationPipelineTests(TestCase):
    """What a semantic segmentation model has to give in the pipeline, under the names that the suite calls."""

    def get_test_pipeline(self, model: Any, tokenizer: None, image_processor: Any, dtype: str) -> tuple:
        pipeline = ImageSegmentationPipeline(model=model, image_processor=image_processor, dtype=dtype)
        noise = np.random.default_rng(0).integers(0, 256, (40, 56, 4), dtype=np.uint8)
        rgb, rgba, gray = noise[..., :3], noise, noise[:33, :17, 0]
        return pipeline, [Image.fromarray(image) for image in (rgb, rgba, gray)]

    def run_pipeline_test(self, pipeline: ImageSegmentationPipeline, examples: list[Image.Image]) -> None:
        names = set(pipeline.model.config.id2label.values())
        for image in examples:
            segments = pipeline(image)
            self.assertLessEqual({segment["label"] for segment in segments}, names)
            # each pixel belongs to exactly one class
            masks = np.stack([np.asarray(segment["mask"]) == 255 for segment in segments])
            self.assertEqual(masks.shape[1:], (image.height, image.width))
            np.testing.assert_array_equal(masks.sum(axis=0), 1)


class SegmentationPipelineSuite(suite.PipelineTesterMixin):
    """`PipelineTesterMixin` for a segmentation model; its tests of other tasks are dropped."""

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        for name in dir(suite.PipelineTesterMixin):
            if name.startswith("test_pipeline_") and not name.startswith("test_pipeline_image_segmentation"):
                setattr(cls, name, None)

    @property
    def pipeline_model_mapping(self) -> dict[str, tuple]:
        return {TASK: self.all_model_classes}

    def run_task_tests(self, task: str, dtype: str = "float32") -> None:
        config = self.model_tester.get_config()
        size = {"height": self.model_tester.image_size, "width": self.model_tester.image_size}
        processors = {cls.__name__: cls for cls in IMAGE_PROCESSOR_MAPPING[type(config)].values()}
        test = ImageSegmentationPipelineTests
        if isinstance(suite.pipeline_test_mapping[TASK]["test"], str):  # from transformers 5.23 on
            test = f"{test.__module__}.{test.__name__}"
        with tempfile.TemporaryDirectory() as root:
            summary = {}
            for model_class in self.all_model_classes:
                name = model_class.__name__
                folder = Path(root) / config.model_type / name
                model_class(config).save_pretrained(folder)
                for processor_class in processors.values():
                    processor_class(size=size).save_pretrained(folder)
                summary[name] = {"tokenizer_classes": [], "processor_classes": list(processors)}
            with (
                mock.patch.multiple(
                    suite,
                    TRANSFORMERS_TINY_MODEL_PATH=root,
                    tiny_model_summary=summary,
                    transformers_module=SimpleNamespace(**processors),
                ),
                mock.patch.dict(suite.pipeline_test_mapping[TASK], test=test),
            ):
                super().run_task_tests(task, dtype)
