# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""The public classes of the package, and their registration with transformers' Auto classes."""

from typing import Any

from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.utils import is_torchvision_available

from .plain_vit import PlainViTBackbone, PlainViTConfig
from .regproxy import (
    RegProxyConfig,
    RegProxyForSemanticSegmentation,
    RegProxyImageProcessor,
    RegProxyImageProcessorPil,
)
from .resnet_v1c import ResNetV1cBackbone, ResNetV1cConfig
from .segmenter import (
    SegmenterConfig,
    SegmenterForSemanticSegmentation,
    SegmenterImageProcessor,
    SegmenterImageProcessorPil,
)
from .segvit import SegViTConfig, SegViTForSemanticSegmentation, SegViTImageProcessor, SegViTImageProcessorPil
from .superpixel_vit import (
    SuperpixelViTConfig,
    SuperpixelViTForSemanticSegmentation,
    SuperpixelViTImageProcessor,
    SuperpixelViTImageProcessorPil,
)
from .unept import UNEPTConfig, UNEPTForSemanticSegmentation, UNEPTImageProcessor, UNEPTImageProcessorPil


_BACKBONES = ((PlainViTConfig, PlainViTBackbone), (ResNetV1cConfig, ResNetV1cBackbone))
_MODELS = (
    (RegProxyConfig, RegProxyForSemanticSegmentation, RegProxyImageProcessorPil, RegProxyImageProcessor),
    (SegmenterConfig, SegmenterForSemanticSegmentation, SegmenterImageProcessorPil, SegmenterImageProcessor),
    (SegViTConfig, SegViTForSemanticSegmentation, SegViTImageProcessorPil, SegViTImageProcessor),
    (
        SuperpixelViTConfig,
        SuperpixelViTForSemanticSegmentation,
        SuperpixelViTImageProcessorPil,
        SuperpixelViTImageProcessor,
    ),
    (UNEPTConfig, UNEPTForSemanticSegmentation, UNEPTImageProcessorPil, UNEPTImageProcessor),
)


def register() -> None:
    """Register the models of the package with transformers' Auto classes. Calling it again changes nothing."""
    for backbone_config_class, backbone_class in _BACKBONES:
        AutoConfig.register(backbone_config_class.model_type, backbone_config_class, exist_ok=True)
        AutoBackbone.register(backbone_config_class, backbone_class, exist_ok=True)
    for config_class, model_class, pil_class, torchvision_class in _MODELS:
        processor_classes: dict[str, Any] = {"pil": pil_class}
        if is_torchvision_available():
            processor_classes["torchvision"] = torchvision_class
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModelForSemanticSegmentation.register(config_class, model_class, exist_ok=True)
        AutoImageProcessor.register(config_class, image_processor_classes=processor_classes, exist_ok=True)
        # the pipeline reads this table of names only, and would log that the model is not supported
        MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES.setdefault(config_class.model_type, model_class.__name__)
