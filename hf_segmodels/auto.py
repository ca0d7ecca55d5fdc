# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Registration of the models with transformers' Auto classes."""

from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation
from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
from transformers.utils import is_torchvision_available

from . import plain_vit, regproxy, resnet_v1c, segmenter, segvit, superpixel_vit, unept


_BACKBONES = {"PlainViT": plain_vit, "ResNetV1c": resnet_v1c}
_MODELS = {
    "RegProxy": regproxy,
    "Segmenter": segmenter,
    "SegViT": segvit,
    "SuperpixelViT": superpixel_vit,
    "UNEPT": unept,
}


def register() -> None:
    """Register all models of the package with transformers' Auto classes. Calling it again changes nothing."""
    for name, module in _BACKBONES.items():
        config_class = getattr(module, f"{name}Config")
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoBackbone.register(config_class, getattr(module, f"{name}Backbone"), exist_ok=True)
    for name, module in _MODELS.items():
        config_class, model_class = getattr(module, f"{name}Config"), getattr(module, f"{name}ForSemanticSegmentation")
        processor_classes = {"pil": getattr(module, f"{name}ImageProcessorPil")}
        if is_torchvision_available():
            processor_classes["torchvision"] = getattr(module, f"{name}ImageProcessor")
        AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        AutoModelForSemanticSegmentation.register(config_class, model_class, exist_ok=True)
        AutoImageProcessor.register(config_class, image_processor_classes=processor_classes, exist_ok=True)
        # the pipeline reads this table of names only, and would log that the model is not supported
        MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES.setdefault(config_class.model_type, model_class.__name__)
