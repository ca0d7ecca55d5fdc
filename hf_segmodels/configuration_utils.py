# Copyright the hf_segmodels authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Base class of the configurations of all methods. This module and all configuration modules import no torch."""

import operator
from collections.abc import Sequence
from inspect import cleandoc
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig
from transformers.utils import auto_docstring

from .plain_vit.configuration_plain_vit import PlainViTConfig
from .resnet_v1c.configuration_resnet_v1c import ResNetV1cConfig


# Found here without transformers' mapping: code that is loaded from the Hub does not register its classes.
_OWN_BACKBONES = {config_class.model_type: config_class for config_class in (PlainViTConfig, ResNetV1cConfig)}


def as_pair(value: int | Sequence[int], name: str, minimum: int = 0) -> tuple[int, int]:
    """
    Return `(height, width)` for an integer or a pair. Errors refer to the value by its `name`.

    Raises:
        ValueError: if `value` is neither an integer nor a pair of integers, or an integer is below `minimum`.
    """
    try:
        height, width = map(operator.index, value if isinstance(value, Sequence) else (value, value))
    except (TypeError, ValueError):
        height = width = minimum - 1
    if min(height, width) < minimum:
        raise ValueError(f"`{name}` must be an integer or (height, width), each at least {minimum}, got {value}.")
    return height, width


def check_windows(
    window_size: int | Sequence[int] | None, window_stride: int | Sequence[int] | None
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """
    Return window and stride as pairs `(height, width)`, or `None` for inference without windows.

    Args:
        window_size (`int` or pair, *optional*): Window in pixels; `None` and 0 mean no windows.
        window_stride (`int` or pair, *optional*): Stride of the window. Defaults to `window_size`.

    Raises:
        ValueError: if a value is not a size, `window_stride` exceeds `window_size`, or there is a stride without a window.
    """
    if window_size is None or as_pair(window_size, "window_size") == (0, 0):
        if window_stride is not None:
            raise ValueError(f"`window_stride` {window_stride} needs a `window_size`: set it or remove the stride.")
        return None
    window = as_pair(window_size, "window_size")
    stride = as_pair(window if window_stride is None else window_stride, "window_stride")
    if min(window) < 1 or any(not 1 <= step <= side for step, side in zip(stride, window, strict=True)):
        raise ValueError(
            f"`window_stride` {stride} must be from 1 to `window_size` {window}: a larger stride skips pixels."
        )
    return window, stride


@auto_docstring(
    custom_intro="""
    Base class of the configurations of all methods: the encoder, its freezing, and sliding windows. Subclasses document
    their own fields and the defaults that differ. `_default_backbone_config` is the encoder of the paper.
    """
)
@strict
class SegmentationConfig(PreTrainedConfig):
    r"""
    backbone_config (`PreTrainedConfig` or `dict`, *optional*):
        Configuration of the encoder: a [`PlainViTConfig`] or the configuration of a transformers backbone. Defaults to the
        encoder of the paper.
    freeze_backbone (`bool`, *optional*, defaults to `False`):
        Whether the encoder gets no gradients and stays in eval mode during training.
    semantic_loss_ignore_index (`int`, *optional*, defaults to 255):
        Label of pixels that do not count in the loss.
    window_size (`int` or pair, *optional*):
        Sliding window `(height, width)` in pixels for `predict`, and for `forward` in eval mode. Defaults to `None` (no
        sliding window). The released models use their training crop.
    window_stride (`int` or pair, *optional*):
        Stride of the window in pixels. Defaults to `window_size`.
    small_image_mode (`"upscale"`, `"pad"` or `"none"`, *optional*, defaults to `"none"`):
        How images smaller than the window are enlarged: `"upscale"` resizes them until the window fits, `"pad"` adds zeros
        at the bottom and right, `"none"` leaves them unchanged.
    initializer_range (`float`, *optional*, defaults to 0.02):
        Standard deviation of the truncated normal that initializes linear layers.
    """

    _shared_docs = __doc__
    # the terms are not predictions: the Trainer must not gather them
    keys_to_ignore_at_inference = ["loss_dict"]
    sub_configs = {"backbone_config": AutoConfig}

    backbone_config: dict | PreTrainedConfig | None = None
    freeze_backbone: bool = False
    semantic_loss_ignore_index: int = 255
    window_size: int | list[int] | tuple[int, int] | None = None
    window_stride: int | list[int] | tuple[int, int] | None = None
    small_image_mode: Literal["upscale", "pad", "none"] = "none"
    initializer_range: float = 0.02

    def __init_subclass__(cls, *args: Any, **kwargs: Any) -> None:
        super().__init_subclass__(*args, **kwargs)
        # `auto_docstring` reads the docstring of the subclass alone. A field that the subclass documents comes last and wins.
        cls.__doc__ = f"{cleandoc(SegmentationConfig._shared_docs or '')}\n{cleandoc(cls.__doc__ or '')}"

    def __post_init__(self, **kwargs: Any) -> None:
        if self.backbone_config is None:
            self.backbone_config = self._default_backbone_config()
        elif isinstance(self.backbone_config, dict):
            fields = dict(self.backbone_config)
            model_type = fields.pop("model_type", PlainViTConfig.model_type)
            if model_type not in _OWN_BACKBONES and model_type not in CONFIG_MAPPING:
                raise ValueError(
                    f"`backbone_config` has `model_type` {model_type!r}, which transformers does not know: use a model type "
                    "of transformers, or one of " + ", ".join(map(repr, _OWN_BACKBONES)) + "."
                )
            config_class = _OWN_BACKBONES.get(model_type) or CONFIG_MAPPING[model_type]
            self.backbone_config = config_class(**fields)
        if self.id2label is None:
            kwargs.setdefault("num_labels", 150)
        super().__post_init__(**kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """
        See `PreTrainedConfig.from_pretrained`. An encoder whose code comes with the model also gets the model's location,
        where `AutoBackbone.from_config` looks for that code.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        config: Any = loaded[0] if isinstance(loaded, tuple) else loaded
        if getattr(config.backbone_config, "auto_map", None):
            config.backbone_config.name_or_path = pretrained_model_name_or_path
        return loaded

    def to_diff_dict(self) -> dict[str, Any]:
        """
        See `PreTrainedConfig.to_diff_dict`. Also keep two classes with default names, since two is not the default here, and
        leave out the location of the encoder, as the base class does for the model.
        """
        fields = super().to_diff_dict() | {"id2label": self.id2label, "label2id": self.label2id}
        fields["backbone_config"].pop("_name_or_path", None)
        return fields

    @staticmethod
    def _default_backbone_config() -> PlainViTConfig:
        """Return the encoder that `backbone_config=None` stands for."""
        return PlainViTConfig()

    def validate_windows(self) -> None:
        """Check `window_size` against `window_stride`, as part of the `@strict` validation."""
        check_windows(self.window_size, self.window_stride)

    def _check_at_least_one(self, *names: str) -> None:
        for name in ("num_labels", *names):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")


__all__ = ["SegmentationConfig", "as_pair", "check_windows"]
