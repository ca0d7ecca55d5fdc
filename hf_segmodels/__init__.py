# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Semantic segmentation with plain vision transformers.

Importing the package registers its models with transformers' Auto classes.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any


__version__ = "0.1.0"

# The command line registers the models once its arguments are parsed, so that `--help` answers without importing torch.
if TYPE_CHECKING or Path(sys.argv[0]).stem != "hf-segmodels":
    from .auto import (
        PlainViTBackbone,
        PlainViTConfig,
        RegProxyConfig,
        RegProxyForSemanticSegmentation,
        RegProxyImageProcessor,
        RegProxyImageProcessorPil,
        ResNetV1cBackbone,
        ResNetV1cConfig,
        SegmenterConfig,
        SegmenterForSemanticSegmentation,
        SegmenterImageProcessor,
        SegmenterImageProcessorPil,
        SegViTConfig,
        SegViTForSemanticSegmentation,
        SegViTImageProcessor,
        SegViTImageProcessorPil,
        SuperpixelViTConfig,
        SuperpixelViTForSemanticSegmentation,
        SuperpixelViTImageProcessor,
        SuperpixelViTImageProcessorPil,
        UNEPTConfig,
        UNEPTForSemanticSegmentation,
        UNEPTImageProcessor,
        UNEPTImageProcessorPil,
        register,
    )

    register()


def __getattr__(name: str) -> Any:
    """Import a subpackage, or a class within the command line, on first access."""
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return import_module(f".{name}", __name__)
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
    return getattr(import_module(".auto", __name__), name)
