# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Superpixel pilot model of RegProxy (https://huggingface.co/papers/2203.14043, section 3): a ViT on superpixel tokens."""

import sys
from typing import TYPE_CHECKING

from transformers.utils import _LazyModule


_import_structure = {
    "configuration_superpixel_vit": ["SuperpixelViTConfig"],
    "image_processing_pil_superpixel_vit": ["SuperpixelViTImageProcessorPil"],
    "image_processing_superpixel_vit": ["SuperpixelViTImageProcessor"],
    "modeling_superpixel_vit": [
        "SuperpixelViTForSemanticSegmentation",
        "SuperpixelViTOutput",
        "SuperpixelViTPreTrainedModel",
    ],
}

if TYPE_CHECKING:
    from .configuration_superpixel_vit import SuperpixelViTConfig
    from .image_processing_pil_superpixel_vit import SuperpixelViTImageProcessorPil
    from .image_processing_superpixel_vit import SuperpixelViTImageProcessor
    from .modeling_superpixel_vit import (
        SuperpixelViTForSemanticSegmentation,
        SuperpixelViTOutput,
        SuperpixelViTPreTrainedModel,
    )
else:
    sys.modules[__name__] = _LazyModule(__name__, __file__, _import_structure, module_spec=__spec__)
