# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""From the original repositories' checkpoints to folders for `from_pretrained`, with a proof of parity."""

import sys
from typing import TYPE_CHECKING

from transformers.utils import _LazyModule


_import_structure = {
    "formats.backbone": ["convert_backbone", "load_backbone_weights"],
    "checkpoint_files": ["ConversionError"],
    "formats.regproxy": ["convert_regproxy"],
    "formats.segmenter": ["convert_segmenter"],
    "formats.segvit": ["convert_segvit"],
    "formats.unept": ["convert_unept"],
}

if TYPE_CHECKING:
    from .checkpoint_files import ConversionError as ConversionError
    from .formats.backbone import convert_backbone as convert_backbone
    from .formats.backbone import load_backbone_weights as load_backbone_weights
    from .formats.regproxy import convert_regproxy as convert_regproxy
    from .formats.segmenter import convert_segmenter as convert_segmenter
    from .formats.segvit import convert_segvit as convert_segvit
    from .formats.unept import convert_unept as convert_unept
else:
    sys.modules[__name__] = _LazyModule(__name__, __file__, _import_structure, module_spec=__spec__)
