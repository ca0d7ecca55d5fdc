# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Segmenter (https://huggingface.co/papers/2105.05633): ViT encoder, linear or mask transformer decoder."""

import sys
from typing import TYPE_CHECKING

from transformers.utils import _LazyModule


_import_structure = {
    "configuration_segmenter": ["SegmenterConfig"],
    "image_processing_pil_segmenter": ["SegmenterImageProcessorPil"],
    "image_processing_segmenter": ["SegmenterImageProcessor"],
    "modeling_segmenter": ["SegmenterForSemanticSegmentation", "SegmenterOutput", "SegmenterPreTrainedModel"],
}

if TYPE_CHECKING:
    from .configuration_segmenter import SegmenterConfig
    from .image_processing_pil_segmenter import SegmenterImageProcessorPil
    from .image_processing_segmenter import SegmenterImageProcessor
    from .modeling_segmenter import SegmenterForSemanticSegmentation, SegmenterOutput, SegmenterPreTrainedModel
else:
    sys.modules[__name__] = _LazyModule(__name__, __file__, _import_structure, module_spec=__spec__)
