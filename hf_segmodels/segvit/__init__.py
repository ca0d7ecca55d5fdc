# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""SegViT (https://huggingface.co/papers/2210.05844): masks from the attention between classes and patches; Shrunk."""

from .configuration_segvit import SegViTConfig
from .image_processing_pil_segvit import SegViTImageProcessorPil
from .image_processing_segvit import SegViTImageProcessor
from .loss_segvit import attention_to_mask_loss
from .modeling_segvit import SegViTForSemanticSegmentation, SegViTOutput, SegViTPreTrainedModel


__all__ = [
    "SegViTConfig",
    "SegViTForSemanticSegmentation",
    "SegViTImageProcessor",
    "SegViTImageProcessorPil",
    "SegViTOutput",
    "SegViTPreTrainedModel",
    "attention_to_mask_loss",
]
