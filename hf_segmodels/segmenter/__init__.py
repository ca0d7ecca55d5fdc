# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Segmenter (https://huggingface.co/papers/2105.05633): ViT encoder, linear or mask transformer decoder."""

from .configuration_segmenter import SegmenterConfig
from .image_processing_pil_segmenter import SegmenterImageProcessorPil
from .image_processing_segmenter import SegmenterImageProcessor
from .modeling_segmenter import SegmenterForSemanticSegmentation, SegmenterOutput, SegmenterPreTrainedModel


__all__ = [
    "SegmenterConfig",
    "SegmenterForSemanticSegmentation",
    "SegmenterImageProcessor",
    "SegmenterImageProcessorPil",
    "SegmenterOutput",
    "SegmenterPreTrainedModel",
]
