# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Dilated ResNet with a deep stem, the encoder of the smaller UN-EPT model; a transformers backbone."""

from .configuration_resnet_v1c import ResNetV1cConfig
from .modeling_resnet_v1c import ResNetV1cBackbone, ResNetV1cPreTrainedModel


__all__ = ["ResNetV1cBackbone", "ResNetV1cConfig", "ResNetV1cPreTrainedModel"]
