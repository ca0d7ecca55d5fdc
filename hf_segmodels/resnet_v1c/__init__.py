# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Dilated ResNet with a deep stem, the encoder of the smaller UN-EPT model; a transformers backbone."""

import sys
from typing import TYPE_CHECKING

from transformers.utils import _LazyModule


_import_structure = {
    "configuration_resnet_v1c": ["ResNetV1cConfig"],
    "modeling_resnet_v1c": ["ResNetV1cBackbone", "ResNetV1cPreTrainedModel"],
}

if TYPE_CHECKING:
    from .configuration_resnet_v1c import ResNetV1cConfig
    from .modeling_resnet_v1c import ResNetV1cBackbone, ResNetV1cPreTrainedModel
else:
    sys.modules[__name__] = _LazyModule(__name__, __file__, _import_structure, module_spec=__spec__)
