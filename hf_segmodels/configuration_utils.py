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
"""What the configurations of the four models share."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig
from transformers.utils import auto_docstring

from .inference.window_grid import check_windows
from .plain_vit.configuration_plain_vit import PlainViTConfig
from .resnet_v1c.configuration_resnet_v1c import ResNetV1cConfig


# known without transformers' mapping: code from the Hub registers nothing
_OWN_BACKBONES = {config_class.model_type: config_class for config_class in (PlainViTConfig, ResNetV1cConfig)}


@auto_docstring(
    custom_intro="""
    Base of the four configurations: an encoder behind `backbone_config`, and how images are cut into windows. A method
    says its own defaults, and gives its paper's encoder in `_default_backbone_config`.
    """
)
@strict
class SegmentationConfig(PreTrainedConfig):
    r"""
    freeze_backbone (`bool`, *optional*, defaults to `False`):
        Whether the encoder gets no gradients and stays in eval mode while training.
    window_size (`int` or pair, *optional*):
        Sliding window `(height, width)` for `predict` and for `forward` in eval mode; none when not given.
    window_stride (`int` or pair, *optional*):
        Stride of the window; the window size when not given.
    small_image_mode (`"upscale"`, `"pad"` or `"none"`, *optional*, defaults to `"none"`):
        What happens to images smaller than the window: scaled up until the short side fills it, padded with zeros at
        the bottom and right, or nothing.
    """

    sub_configs = {"backbone_config": AutoConfig}

    backbone_config: dict | PreTrainedConfig | None = None
    freeze_backbone: bool = False
    semantic_loss_ignore_index: int = 255
    window_size: int | list[int] | tuple[int, int] | None = None
    window_stride: int | list[int] | tuple[int, int] | None = None
    small_image_mode: Literal["upscale", "pad", "none"] = "none"
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if self.backbone_config is None:
            self.backbone_config = self._default_backbone_config()
        elif isinstance(self.backbone_config, dict):
            fields = dict(self.backbone_config)
            model_type = fields.pop("model_type", PlainViTConfig.model_type)
            if model_type not in _OWN_BACKBONES and model_type not in CONFIG_MAPPING:
                raise ValueError(
                    f"`backbone_config` has `model_type` {model_type!r}, which transformers does not know."
                )
            config_class = _OWN_BACKBONES.get(model_type) or CONFIG_MAPPING[model_type]
            self.backbone_config = config_class(**fields)
        if self.id2label is None:
            kwargs.setdefault("num_labels", 150)
        super().__post_init__(**kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """
        See `PreTrainedConfig.from_pretrained`. Where the encoder's code comes with the model, its configuration is told where
        that is: `AutoBackbone.from_config` looks there.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        config: Any = loaded[0] if isinstance(loaded, tuple) else loaded
        if getattr(config.backbone_config, "auto_map", None):
            config.backbone_config.name_or_path = pretrained_model_name_or_path
        return loaded

    def to_diff_dict(self) -> dict[str, Any]:
        """
        As in the base class, which leaves out two classes with default names: they are not the default here. It also leaves
        out where the model, but not where the encoder is from.
        """
        fields = super().to_diff_dict() | {"id2label": self.id2label, "label2id": self.label2id}
        fields["backbone_config"].pop("_name_or_path", None)
        return fields

    @staticmethod
    def _default_backbone_config() -> PlainViTConfig:
        """The encoder where none is given."""
        return PlainViTConfig()

    def validate_windows(self) -> None:
        """Part of the `@strict` validation: checks the window's fields against each other."""
        check_windows(self.window_size, self.window_stride)

    def _check_at_least_one(self, *names: str) -> None:
        for name in ("num_labels", *names):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")


__all__ = ["SegmentationConfig"]
