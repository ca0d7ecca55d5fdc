# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Plain vision transformer, the encoder of all methods."""

import sys
from typing import TYPE_CHECKING

from transformers.utils import _LazyModule


_import_structure = {
    "configuration_plain_vit": ["PlainViTConfig"],
    "modeling_plain_vit": ["PlainViTBackbone", "PlainViTPreTrainedModel"],
}

if TYPE_CHECKING:
    from .configuration_plain_vit import PlainViTConfig
    from .modeling_plain_vit import PlainViTBackbone, PlainViTPreTrainedModel
else:
    sys.modules[__name__] = _LazyModule(__name__, __file__, _import_structure, module_spec=__spec__)
