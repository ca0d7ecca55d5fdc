# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""A model for the Hub: what people who have never heard of this package need to use it."""

import sys
from typing import TYPE_CHECKING

from transformers.utils import _LazyModule


_import_structure = {
    "handler": ["EndpointHandler"],
    "model_card": ["create_model_card"],
}

if TYPE_CHECKING:
    from .handler import EndpointHandler as EndpointHandler
    from .model_card import create_model_card as create_model_card
else:
    sys.modules[__name__] = _LazyModule(__name__, __file__, _import_structure, module_spec=__spec__)
