# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""RegProxy (https://huggingface.co/papers/2203.14043): a ViT on learned regions, and one linear classifier for them."""

from .configuration_regproxy import RegProxyConfig
from .image_processing_pil_regproxy import RegProxyImageProcessorPil
from .image_processing_regproxy import RegProxyImageProcessor
from .loss_regproxy import homogeneity_loss, region_histograms
from .modeling_regproxy import RegProxyForSemanticSegmentation, RegProxyOutput, RegProxyPreTrainedModel
from .painting import paint


__all__ = [
    "RegProxyConfig",
    "RegProxyForSemanticSegmentation",
    "RegProxyImageProcessor",
    "RegProxyImageProcessorPil",
    "RegProxyOutput",
    "RegProxyPreTrainedModel",
    "homogeneity_loss",
    "paint",
    "region_histograms",
]
