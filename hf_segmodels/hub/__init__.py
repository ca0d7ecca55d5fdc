# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Export and upload of models to the Hugging Face Hub, with their code, model card and endpoint handler."""

import sys
from typing import TYPE_CHECKING

from transformers.utils import _LazyModule


_import_structure = {
    "export": ["RemoteCode", "RemoteCodeCallback", "export_for_hub"],
    "endpoint.handler": ["EndpointHandler"],
    "cards.card": ["create_model_card"],
    "remote_code": ["RemoteCodeError", "flatten"],
    "upload": ["Publication", "publish"],
}

if TYPE_CHECKING:
    from .cards.card import create_model_card as create_model_card
    from .endpoint.handler import EndpointHandler as EndpointHandler
    from .export import RemoteCode as RemoteCode
    from .export import RemoteCodeCallback as RemoteCodeCallback
    from .export import export_for_hub as export_for_hub
    from .remote_code import RemoteCodeError as RemoteCodeError
    from .remote_code import flatten as flatten
    from .upload import Publication as Publication
    from .upload import publish as publish
else:
    sys.modules[__name__] = _LazyModule(__name__, __file__, _import_structure, module_spec=__spec__)
