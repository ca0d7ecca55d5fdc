# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Semantic segmentation with plain vision transformers.

Importing the package registers its models with transformers' Auto classes.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.utils import _LazyModule


__version__ = "0.1.0"

_import_structure = {
    "auto": [],
    "conversion": [],
    "data": [],
    "evaluation": [],
    "hub": [],
    "image_processing": [],
    "inference": [],
    "labels": [],
    "losses": [],
    "metrics": [],
    "plain_vit.configuration_plain_vit": ["PlainViTConfig"],
    "plain_vit.modeling_plain_vit": ["PlainViTBackbone"],
    "regproxy.configuration_regproxy": ["RegProxyConfig"],
    "regproxy.image_processing_pil_regproxy": ["RegProxyImageProcessorPil"],
    "regproxy.image_processing_regproxy": ["RegProxyImageProcessor"],
    "regproxy.modeling_regproxy": ["RegProxyForSemanticSegmentation"],
    "resnet_v1c.configuration_resnet_v1c": ["ResNetV1cConfig"],
    "resnet_v1c.modeling_resnet_v1c": ["ResNetV1cBackbone"],
    "segmenter.configuration_segmenter": ["SegmenterConfig"],
    "segmenter.image_processing_pil_segmenter": ["SegmenterImageProcessorPil"],
    "segmenter.image_processing_segmenter": ["SegmenterImageProcessor"],
    "segmenter.modeling_segmenter": ["SegmenterForSemanticSegmentation"],
    "segvit.configuration_segvit": ["SegViTConfig"],
    "segvit.image_processing_pil_segvit": ["SegViTImageProcessorPil"],
    "segvit.image_processing_segvit": ["SegViTImageProcessor"],
    "segvit.modeling_segvit": ["SegViTForSemanticSegmentation"],
    "sparse_attention": [],
    "superpixel_vit.configuration_superpixel_vit": ["SuperpixelViTConfig"],
    "superpixel_vit.image_processing_pil_superpixel_vit": ["SuperpixelViTImageProcessorPil"],
    "superpixel_vit.image_processing_superpixel_vit": ["SuperpixelViTImageProcessor"],
    "superpixel_vit.modeling_superpixel_vit": ["SuperpixelViTForSemanticSegmentation"],
    "training": [],
    "unept.configuration_unept": ["UNEPTConfig"],
    "unept.image_processing_pil_unept": ["UNEPTImageProcessorPil"],
    "unept.image_processing_unept": ["UNEPTImageProcessor"],
    "unept.modeling_unept": ["UNEPTForSemanticSegmentation"],
    "visualization": [],
}

if TYPE_CHECKING:
    from .plain_vit.configuration_plain_vit import PlainViTConfig
    from .plain_vit.modeling_plain_vit import PlainViTBackbone
    from .regproxy.configuration_regproxy import RegProxyConfig
    from .regproxy.image_processing_pil_regproxy import RegProxyImageProcessorPil
    from .regproxy.image_processing_regproxy import RegProxyImageProcessor
    from .regproxy.modeling_regproxy import RegProxyForSemanticSegmentation
    from .resnet_v1c.configuration_resnet_v1c import ResNetV1cConfig
    from .resnet_v1c.modeling_resnet_v1c import ResNetV1cBackbone
    from .segmenter.configuration_segmenter import SegmenterConfig
    from .segmenter.image_processing_pil_segmenter import SegmenterImageProcessorPil
    from .segmenter.image_processing_segmenter import SegmenterImageProcessor
    from .segmenter.modeling_segmenter import SegmenterForSemanticSegmentation
    from .segvit.configuration_segvit import SegViTConfig
    from .segvit.image_processing_pil_segvit import SegViTImageProcessorPil
    from .segvit.image_processing_segvit import SegViTImageProcessor
    from .segvit.modeling_segvit import SegViTForSemanticSegmentation
    from .superpixel_vit.configuration_superpixel_vit import SuperpixelViTConfig
    from .superpixel_vit.image_processing_pil_superpixel_vit import SuperpixelViTImageProcessorPil
    from .superpixel_vit.image_processing_superpixel_vit import SuperpixelViTImageProcessor
    from .superpixel_vit.modeling_superpixel_vit import SuperpixelViTForSemanticSegmentation
    from .unept.configuration_unept import UNEPTConfig
    from .unept.image_processing_pil_unept import UNEPTImageProcessorPil
    from .unept.image_processing_unept import UNEPTImageProcessor
    from .unept.modeling_unept import UNEPTForSemanticSegmentation
else:
    sys.modules[__name__] = _LazyModule(
        __name__, __file__, _import_structure, module_spec=__spec__, extra_objects={"__version__": __version__}
    )
    # the command line registers once its arguments are parsed, so that `--help` answers without importing torch
    if Path(sys.argv[0]).stem != "hf-segmodels":
        import_module(".auto", __name__).register()
