# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""From a model to what the Hugging Face Hub and its Inference Endpoints serve."""

import sys
from typing import TYPE_CHECKING

from transformers.utils import _LazyModule


_import_structure = {
    "export": ["RemoteCode", "RemoteCodeCallback", "export_for_hub"],
    "remote_code": ["RemoteCodeError", "flatten"],
    "upload": ["Publication", "publish"],
}

if TYPE_CHECKING:
    from .export import RemoteCode, RemoteCodeCallback, export_for_hub
    from .remote_code import RemoteCodeError, flatten
    from .upload import Publication, publish
else:
    sys.modules[__name__] = _LazyModule(__name__, __file__, _import_structure, module_spec=__spec__)
