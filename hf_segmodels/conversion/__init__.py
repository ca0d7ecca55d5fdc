# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Conversion of the original repositories' checkpoints into folders for `from_pretrained`, with a parity check."""

import sys
from typing import TYPE_CHECKING

from transformers.utils import _LazyModule


_import_structure = {
    "backbone_weights": ["load_backbone_weights"],
    "checkpoint_files": ["ConversionError"],
    "converter": ["CheckpointFormat", "Conversion", "convert"],
    "formats": ["FORMATS"],
}

if TYPE_CHECKING:
    from .backbone_weights import load_backbone_weights as load_backbone_weights
    from .checkpoint_files import ConversionError as ConversionError
    from .converter import CheckpointFormat as CheckpointFormat
    from .converter import Conversion as Conversion
    from .converter import convert as convert
    from .formats import FORMATS as FORMATS
else:
    sys.modules[__name__] = _LazyModule(__name__, __file__, _import_structure, module_spec=__spec__)
