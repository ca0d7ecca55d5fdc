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
"""Dilated ResNet with a deep stem (ResNet-V1c), the encoder of the smaller UN-EPT model."""

import torch
from torch import nn
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import BackboneOutput
from transformers.modeling_utils import PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple

from ..plain_vit.embeddings import check_channels
from .configuration_resnet_v1c import ResNetV1cConfig


# trf-ignore: TRF041 config.contract_dilation


class ResNetV1cConvNorm(nn.Module):
    """Convolution without bias, followed by batch norm."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, dilation: int = 1):
        super().__init__()
        self.convolution = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size // 2),
            dilation=dilation,
            bias=False,
        )
        self.normalization = nn.BatchNorm2d(out_channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.normalization(self.convolution(hidden_states))


class ResNetV1cStem(nn.Module):
    """
    Three 3x3 convolutions instead of one 7x7 convolution, and max pooling: `(batch_size, num_channels, height, width)` ->
    `(batch_size, embedding_size, ceil(height / 4), ceil(width / 4))`.
    """

    def __init__(self, config: ResNetV1cConfig):
        super().__init__()
        self.num_channels = config.num_channels
        half = config.embedding_size // 2
        self.layers = nn.ModuleList(
            [
                ResNetV1cConvNorm(config.num_channels, half, stride=2),
                ResNetV1cConvNorm(half, half),
                ResNetV1cConvNorm(half, config.embedding_size),
            ]
        )
        self.pooler = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        check_channels(pixel_values, self.num_channels)
        hidden_states = pixel_values.to(self.layers[0].convolution.weight.dtype)
        for layer in self.layers:
            hidden_states = layer(hidden_states).relu()
        return self.pooler(hidden_states)


class ResNetV1cBottleneck(nn.Module):
    """Bottleneck of a 1x1, a 3x3 and a 1x1 convolution with a shortcut; the 3x3 convolution has the stride."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dilation: int, has_projection: bool):
        super().__init__()
        hidden_channels = out_channels // 4
        self.reduction = ResNetV1cConvNorm(in_channels, hidden_channels, kernel_size=1)
        self.spatial = ResNetV1cConvNorm(hidden_channels, hidden_channels, stride=stride, dilation=dilation)
        self.expansion = ResNetV1cConvNorm(hidden_channels, out_channels, kernel_size=1)
        self.shortcut = (
            ResNetV1cConvNorm(in_channels, out_channels, kernel_size=1, stride=stride)
            if has_projection
            else nn.Identity()
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = self.expansion(self.spatial(self.reduction(hidden_states).relu()).relu())
        return (residual + self.shortcut(hidden_states)).relu()


class ResNetV1cStage(nn.Module):
    """Bottlenecks with the same number of channels; only the first one has a stride."""

    def __init__(self, config: ResNetV1cConfig, stage: int):
        super().__init__()
        in_channels = (config.embedding_size, *config.hidden_sizes)[stage]
        out_channels, dilation = config.hidden_sizes[stage], config.dilations[stage]
        first_dilation = max(dilation // 2, 1) if config.contract_dilation else dilation
        stride = config.strides[stage]
        has_projection = stride != 1 or in_channels != out_channels
        self.layers = nn.ModuleList(
            [ResNetV1cBottleneck(in_channels, out_channels, stride, first_dilation, has_projection)]
            + [
                ResNetV1cBottleneck(out_channels, out_channels, 1, dilation, has_projection=False)
                for _ in range(config.depths[stage] - 1)
            ]
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return hidden_states


@auto_docstring
class ResNetV1cPreTrainedModel(PreTrainedModel):
    config: ResNetV1cConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ["ResNetV1cConvNorm"]
    # without attention layers, all attention implementations are supported
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


@auto_docstring(
    custom_intro="""
    Dilated ResNet with a deep stem that returns feature maps of selected stages. Images of any size are accepted.
    """
)
class ResNetV1cBackbone(BackboneMixin, ResNetV1cPreTrainedModel):
    has_attentions = False

    def __init__(self, config: ResNetV1cConfig):
        super().__init__(config)
        self.num_features = [config.embedding_size, *config.hidden_sizes]
        self.stem = ResNetV1cStem(config)
        self.stages = nn.ModuleList([ResNetV1cStage(config, stage) for stage in range(len(config.depths))])
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.stem

    @can_return_tuple
    @filter_output_hidden_states
    @auto_docstring(
        custom_intro="""
        Feature maps have the shape `(batch_size, hidden_sizes[i], height / stride, width / stride)`, rounded up, one
        for each of `config.out_features`. Hidden states are the outputs of the stem and of each stage.
        """
    )
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        r"""
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
            Normalized images of any size.

        Raises:
            ValueError: if the number of channels is not `config.num_channels`.
        """
        hidden_states = [self.stem(pixel_values)]
        for stage in self.stages:
            hidden_states.append(stage(hidden_states[-1]))
        feature_maps = tuple(
            hidden_state
            for name, hidden_state in zip(self.stage_names, hidden_states, strict=True)
            if name in self.out_features
        )
        return BackboneOutput(feature_maps=feature_maps, hidden_states=tuple(hidden_states))


__all__ = ["ResNetV1cBackbone", "ResNetV1cPreTrainedModel"]
