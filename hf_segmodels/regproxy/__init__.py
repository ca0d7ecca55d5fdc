# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""RegProxy (https://huggingface.co/papers/2203.14043): a ViT on learned regions, and one linear classifier for them."""

import sys
from typing import TYPE_CHECKING

from transformers.utils import _LazyModule


_import_structure = {
    "configuration_regproxy": ["RegProxyConfig"],
    "image_processing_pil_regproxy": ["RegProxyImageProcessorPil"],
    "image_processing_regproxy": ["RegProxyImageProcessor"],
    "loss_regproxy": ["homogeneity_loss", "region_histograms"],
    "modeling_regproxy": ["RegProxyForSemanticSegmentation", "RegProxyOutput", "RegProxyPreTrainedModel"],
    "painting": ["paint"],
}

if TYPE_CHECKING:
    from .configuration_regproxy import RegProxyConfig
    from .image_processing_pil_regproxy import RegProxyImageProcessorPil
    from .image_processing_regproxy import RegProxyImageProcessor
    from .loss_regproxy import homogeneity_loss, region_histograms
    from .modeling_regproxy import RegProxyForSemanticSegmentation, RegProxyOutput, RegProxyPreTrainedModel
    from .painting import paint
else:
    sys.modules[__name__] = _LazyModule(__name__, __file__, _import_structure, module_spec=__spec__)
