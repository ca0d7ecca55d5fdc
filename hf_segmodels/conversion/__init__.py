# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""From the original repositories' checkpoints to folders for `from_pretrained`, with a proof of parity."""

import sys
from typing import TYPE_CHECKING

from transformers.utils import _LazyModule


_import_structure = {
    "backbone": ["convert_backbone", "load_backbone_weights"],
    "checkpoints": ["ConversionError"],
    "command": ["main"],
    "regproxy": ["convert_regproxy"],
    "segmenter": ["convert_segmenter"],
    "segvit": ["convert_segvit"],
    "unept": ["convert_unept"],
}

if TYPE_CHECKING:
    from .backbone import convert_backbone as convert_backbone
    from .backbone import load_backbone_weights as load_backbone_weights
    from .checkpoints import ConversionError as ConversionError
    from .command import main as main
    from .regproxy import convert_regproxy as convert_regproxy
    from .segmenter import convert_segmenter as convert_segmenter
    from .segvit import convert_segvit as convert_segvit
    from .unept import convert_unept as convert_unept
else:
    sys.modules[__name__] = _LazyModule(__name__, __file__, _import_structure, module_spec=__spec__)
