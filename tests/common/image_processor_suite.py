# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""The common image processor suite of transformers, set up for our processors: a new one's file states its sizes."""

import textwrap
from typing import Any, ClassVar
from unittest import mock

from transformers import PreTrainedConfig
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
from transformers_tests import test_image_processing_common as suite


class SegmentationProcessorTester(suite.ImageProcessingTester):
    """Sizes of the test images, and settings of the processor under their own names."""

    config_class: ClassVar[type[PreTrainedConfig]]

    def __init__(self, parent: Any, **kwargs: Any):
        kwargs.setdefault("num_labels", 5)
        kwargs.setdefault("size", {"height": 20, "width": 24})
        super().__init__(parent, **kwargs)

    def _get_image_processing_classes(self) -> dict[str, type]:
        # the suite looks for its own models by the name of the test file's folder
        return dict(IMAGE_PROCESSOR_MAPPING[self.config_class])


class SegmentationProcessorSuite(suite.ImageProcessingTestMixin, suite.PostProcessSemanticSegmentationTestMixin):
    """`ImageProcessingTestMixin` for processors outside transformers."""

    # both backends share their resizing, so they agree far better than the suite asks for
    backend_equivalence_atol = 1e-5

    def test_pil_can_run_without_torchvision(self):
        def dedent_and_register(script: str) -> str:
            return textwrap.dedent(script).replace("from transformers", "import hf_segmodels\nfrom transformers", 1)

        # the suite runs a script in a fresh interpreter, in which transformers has not heard of our processors
        with mock.patch.object(suite, "textwrap", mock.Mock(dedent=dedent_and_register)):
            super().test_pil_can_run_without_torchvision()
