# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Checkpoint formats of the original repositories, one module for each method."""

from ..checkpoint_format import CheckpointFormat
from .backbone import BackboneFormat
from .regproxy import RegProxyFormat
from .segmenter import SegmenterFormat
from .segvit import SegViTFormat
from .unept import UNEPTFormat


FORMATS: tuple[CheckpointFormat, ...] = (
    SegmenterFormat(),
    SegViTFormat(),
    UNEPTFormat(),
    RegProxyFormat(),
    BackboneFormat(),
)


__all__ = ["FORMATS"]
