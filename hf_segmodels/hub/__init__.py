# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Export and upload of models to the Hugging Face Hub, with their code, model card and endpoint handler."""

from .cards.card import create_model_card
from .endpoint.handler import EndpointHandler
from .export import RemoteCode, RemoteCodeCallback, export_for_hub
from .remote_code import RemoteCodeError, flatten
from .upload import Publication, publish


__all__ = [
    "EndpointHandler",
    "Publication",
    "RemoteCode",
    "RemoteCodeCallback",
    "RemoteCodeError",
    "create_model_card",
    "export_for_hub",
    "flatten",
    "publish",
]
