# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""SegViT (https://huggingface.co/papers/2210.05844): masks from the attention between classes and patches; Shrunk."""

import sys
from typing import TYPE_CHECKING

from transformers.utils import _LazyModule


_import_structure = {
    "configuration_segvit": ["SegViTConfig"],
    "image_processing_pil_segvit": ["SegViTImageProcessorPil"],
    "image_processing_segvit": ["SegViTImageProcessor"],
    "loss_segvit": ["attention_to_mask_loss"],
    "modeling_segvit": ["SegViTForSemanticSegmentation", "SegViTOutput", "SegViTPreTrainedModel"],
}

if TYPE_CHECKING:
    from .configuration_segvit import SegViTConfig
    from .image_processing_pil_segvit import SegViTImageProcessorPil
    from .image_processing_segvit import SegViTImageProcessor
    from .loss_segvit import attention_to_mask_loss
    from .modeling_segvit import SegViTForSemanticSegmentation, SegViTOutput, SegViTPreTrainedModel
else:
    sys.modules[__name__] = _LazyModule(__name__, __file__, _import_structure, module_spec=__spec__)
