# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Conversion of the original repositories' checkpoints into folders for `from_pretrained`, with a parity check."""

from .backbone_weights import load_backbone_weights
from .checkpoint_files import ConversionError
from .converter import CheckpointFormat, Conversion, convert
from .formats import FORMATS


__all__ = ["FORMATS", "CheckpointFormat", "Conversion", "ConversionError", "convert", "load_backbone_weights"]
