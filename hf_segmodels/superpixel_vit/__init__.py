# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Superpixel pilot model of RegProxy (https://huggingface.co/papers/2203.14043, section 3): a ViT on superpixel tokens."""

from .configuration_superpixel_vit import SuperpixelViTConfig
from .image_processing_pil_superpixel_vit import SuperpixelViTImageProcessorPil
from .image_processing_superpixel_vit import SuperpixelViTImageProcessor
from .modeling_superpixel_vit import (
    SuperpixelViTForSemanticSegmentation,
    SuperpixelViTOutput,
    SuperpixelViTPreTrainedModel,
)


__all__ = [
    "SuperpixelViTConfig",
    "SuperpixelViTForSemanticSegmentation",
    "SuperpixelViTImageProcessor",
    "SuperpixelViTImageProcessorPil",
    "SuperpixelViTOutput",
    "SuperpixelViTPreTrainedModel",
]
