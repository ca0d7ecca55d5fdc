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
"""Configuration of the dilated ResNet with a deep stem (ResNet-V1c)."""

import math

from huggingface_hub.dataclasses import strict
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import PreTrainedConfig
from transformers.utils import auto_docstring


@auto_docstring(
    custom_intro="""
    Configuration of a [`ResNetV1cBackbone`]: a ResNet of bottlenecks whose stem has three 3x3 convolutions, and whose last
    stages are dilated instead of strided. The defaults give ResNet-50 at an output stride of 8. The ResNet of transformers
    has neither a deep stem nor dilation.
    """
)
@strict
class ResNetV1cConfig(BackboneConfigMixin, PreTrainedConfig):
    r"""
    num_channels (`int`, *optional*, defaults to 3):
        Number of channels of the input.
    embedding_size (`int`, *optional*, defaults to 64):
        Output channels of the stem; its first two convolutions have half as many.
    hidden_sizes (`list[int]`, *optional*, defaults to `(256, 512, 1024, 2048)`):
        Output channels of each stage; bottlenecks have a quarter of them.
    depths (`list[int]`, *optional*, defaults to `(3, 4, 6, 3)`):
        Number of bottlenecks of each stage.
    strides (`list[int]`, *optional*, defaults to `(1, 2, 1, 1)`):
        Stride of the 3x3 convolution in the first bottleneck of each stage.
    dilations (`list[int]`, *optional*, defaults to `(1, 1, 2, 4)`):
        Dilation of the 3x3 convolutions of each stage.
    contract_dilation (`bool`, *optional*, defaults to `True`):
        Whether the first bottleneck of a dilated stage has half the dilation.
    out_features (`list[str]`, *optional*):
        Feature maps to return, among `"stem"` (after pooling), `"stage1"`, ..., `"stage4"`. Defaults to the last stage if
        `out_indices` is not given either.
    out_indices (`list[int]`, *optional*):
        Feature maps to return by index: 0 is the stem, i the output of the i-th stage.

    Example:

    ```python
    >>> from hf_segmodels import ResNetV1cBackbone, ResNetV1cConfig

    >>> backbone = ResNetV1cBackbone(ResNetV1cConfig(out_features=["stage2", "stage3", "stage4"]))
    >>> backbone.channels
    [512, 1024, 2048]
    ```
    """

    model_type = "resnet_v1c"

    num_channels: int = 3
    embedding_size: int = 64
    hidden_sizes: list[int] | tuple[int, ...] = (256, 512, 1024, 2048)
    depths: list[int] | tuple[int, ...] = (3, 4, 6, 3)
    strides: list[int] | tuple[int, ...] = (1, 2, 1, 1)
    dilations: list[int] | tuple[int, ...] = (1, 1, 2, 4)
    contract_dilation: bool = True
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        self.stage_names = ["stem"] + [f"stage{index}" for index in range(1, len(self.depths) + 1)]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    @property
    def output_stride(self) -> int:
        """Pixels per cell of the last feature map."""
        return 4 * math.prod(self.strides)

    def validate_architecture(self):
        """Check the fields against each other, as part of the `@strict` validation."""
        stages = {name: len(getattr(self, name)) for name in ("hidden_sizes", "depths", "strides", "dilations")}
        if len(set(stages.values())) != 1 or len(self.depths) == 0:
            raise ValueError(
                f"`hidden_sizes`, `depths`, `strides` and `dilations` must have one entry for each stage, got {stages}."
            )
        if min(*self.depths, *self.strides, *self.dilations, self.num_channels) < 1:
            raise ValueError("`depths`, `strides`, `dilations` and `num_channels` must be at least 1.")
        if self.embedding_size < 2 or self.embedding_size % 2 or any(s < 4 or s % 4 for s in self.hidden_sizes):
            raise ValueError(
                "`embedding_size` must be a multiple of 2 (the stem starts with half) and `hidden_sizes` of 4 (bottlenecks "
                f"have a quarter of the channels), got {self.embedding_size} and {self.hidden_sizes}."
            )


__all__ = ["ResNetV1cConfig"]
