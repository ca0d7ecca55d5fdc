# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Plain vision transformer, the encoder of all methods."""

from .configuration_plain_vit import PlainViTConfig
from .modeling_plain_vit import PlainViTBackbone, PlainViTPreTrainedModel


__all__ = ["PlainViTBackbone", "PlainViTConfig", "PlainViTPreTrainedModel"]
