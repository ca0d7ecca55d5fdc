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
"""Plain vision transformer, the encoder of all methods: AugReg ViT, DeiT and the ResNetV2 hybrids."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_plain_vit import PlainViTConfig
from .embeddings import PlainViTEmbeddings


# trf-ignore: TRF041 config.stem_type, config.use_cls_token, config.use_distillation_token, config.final_norm
# trf-ignore: TRF041 config.position_embedding_resize_rule, config.query_downsampling_layer
# trf-ignore: TRF041 config.query_downsampling_mode, config.query_downsampling_target


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the output of the attention, and its weights `(batch_size, num_heads, query_length, key_length)`."""
    attention_weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        attention_weights = attention_weights + attention_mask
    attention_weights = nn.functional.softmax(attention_weights, dim=-1)
    attention_weights = nn.functional.dropout(attention_weights, p=dropout, training=module.training)
    # (batch_size, num_heads, length, head_dim) -> (batch_size, length, num_heads, head_dim)
    return torch.matmul(attention_weights, value).transpose(1, 2).contiguous(), attention_weights


class PlainViTAttention(nn.Module):
    """
    Multi-head attention with one fused projection to queries, keys and values. Tokens attend to each other, or to
    `key_value_states` if given.
    """

    def __init__(self, config: PreTrainedConfig, bias: bool = True):
        super().__init__()
        self.config = config
        self.num_attention_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False

        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def _project(
        self, hidden_states: torch.Tensor, key_value_states: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return queries, keys and values, each of shape `(batch_size, num_heads, num_tokens, head_dim)`."""
        if key_value_states is None:
            qkv = self.qkv(hidden_states).unflatten(2, (3, self.num_attention_heads, self.head_dim))
            # (batch_size, num_tokens, 3, num_heads, head_dim) -> 3 x (batch_size, num_heads, num_tokens, head_dim)
            query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
            return query, key, value
        hidden_size = hidden_states.shape[-1]
        weights = self.qkv.weight.split([hidden_size, 2 * hidden_size])
        biases = (None, None) if self.qkv.bias is None else self.qkv.bias.split([hidden_size, 2 * hidden_size])
        query = nn.functional.linear(hidden_states, weights[0], biases[0])
        key_value = nn.functional.linear(key_value_states, weights[1], biases[1])
        query = query.unflatten(2, (self.num_attention_heads, self.head_dim)).transpose(1, 2)
        # (batch_size, num_keys, 2 * D) -> 2 x (batch_size, num_heads, num_keys, head_dim)
        key_value = key_value.unflatten(2, (2, self.num_attention_heads, self.head_dim))
        key, value = key_value.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value

    def forward(
        self,
        hidden_states: torch.Tensor,
        key_value_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch_size, num_tokens, _ = hidden_states.shape
        query, key, value = self._project(hidden_states, key_value_states)

        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attention_output, attention_weights = attention_interface(
            self,
            query,
            key,
            value,
            attention_mask=attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        # (batch_size, num_tokens, num_heads, head_dim) -> (batch_size, num_tokens, hidden_size)
        attention_output = attention_output.reshape(batch_size, num_tokens, -1)
        return self.o_proj(attention_output), attention_weights


class PlainViTMLP(nn.Module):
    """Two linear layers, each followed by dropout, with an activation in between."""

    def __init__(self, config: PreTrainedConfig, activation: nn.Module):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = activation
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.dropout(self.activation(self.fc1(hidden_states)))
        return self.dropout(self.fc2(hidden_states))


class PlainViTDropPath(nn.Module):
    """Stochastic depth per sample (https://huggingface.co/papers/1603.09382); the identity outside training."""

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return hidden_states
        keep_prob = 1.0 - self.drop_prob
        keep = hidden_states.new_empty(hidden_states.shape[0], 1, 1).bernoulli_(keep_prob)
        return hidden_states * keep / keep_prob

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob}"


class PlainViTDownsampling(nn.Module):
    """Down-sampling of the patch grid by two in both directions, rounded up; class and distillation tokens are kept."""

    def __init__(self, config: PlainViTConfig):
        super().__init__()
        self.num_prefix_tokens = config.num_prefix_tokens
        self.convolution = (
            nn.Conv2d(config.hidden_size, config.hidden_size, kernel_size=3, stride=2, padding=1)
            if config.query_downsampling_mode == "convolution"
            else None
        )

    def forward(self, hidden_states: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        prefix, patches = hidden_states[:, : self.num_prefix_tokens], hidden_states[:, self.num_prefix_tokens :]
        # (batch_size, height * width, D) -> (batch_size, height, width, D)
        patches = patches.unflatten(1, grid)
        if self.convolution is None:
            patches = patches[:, ::2, ::2]
        else:
            patches = self.convolution(patches.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        # (batch_size, ceil(height / 2), ceil(width / 2), D) -> (batch_size, num_patches, D)
        return torch.cat([prefix, patches.flatten(1, 2)], dim=1)


class PlainViTLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer (Segmenter, equations 1 and 2); a down-sampling layer has fewer queries than keys."""

    def __init__(self, config: PlainViTConfig, drop_path_rate: float = 0.0, is_downsampling: bool = False):
        super().__init__()
        self.downsampling = PlainViTDownsampling(config) if is_downsampling else None
        self.query_downsampling_target = config.query_downsampling_target
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = PlainViTAttention(config, config.qkv_bias)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = PlainViTMLP(config, ACT2FN[config.hidden_act])
        self.drop_path = PlainViTDropPath(drop_path_rate)

    def forward(
        self, hidden_states: torch.Tensor, grid: tuple[int, int] | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        key_value_states = None
        if self.downsampling is not None:
            if grid is None:
                raise ValueError(
                    "`query_downsampling_layer` needs patches on a grid: set it to `None` for other tokens."
                )
            if self.query_downsampling_target == "query":
                key_value_states = self.layernorm_before(hidden_states)
            hidden_states = self.downsampling(hidden_states, grid)
        attention_output, _ = self.attention(self.layernorm_before(hidden_states), key_value_states, **kwargs)
        hidden_states = hidden_states + self.drop_path(self.dropout(attention_output))
        return hidden_states + self.drop_path(self.mlp(self.layernorm_after(hidden_states)))


@auto_docstring
class PlainViTPreTrainedModel(PreTrainedModel):
    config: PlainViTConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["PlainViTEmbeddings", "PlainViTLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": PlainViTLayer, "attentions": PlainViTAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, PlainViTEmbeddings):
            init.trunc_normal_(module.position_embeddings, std=std)
            for token in (module.cls_token, module.distillation_token):
                if token is not None:
                    init.trunc_normal_(token, std=std)
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std)
        elif isinstance(module, nn.Conv2d):
            if module.bias is None:  # the hybrid stem's weight-standardized convolutions
                init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            else:
                fan_in = module.weight[0].numel()
                init.trunc_normal_(module.weight, std=fan_in**-0.5)
        elif getattr(module, "ends_residual_branch", False):
            init.zeros_(module.weight)


@auto_docstring(
    custom_intro="""
    Stack of transformer layers. Hidden states and attentions are captured here alone, since this module owns the layers.
    """
)
class PlainViTEncoder(PlainViTPreTrainedModel):
    def __init__(self, config: PlainViTConfig):
        super().__init__(config)
        drop_path_rates = torch.linspace(0, config.drop_path_rate, config.num_hidden_layers, device="cpu").tolist()
        self.layers = nn.ModuleList(
            PlainViTLayer(config, rate, is_downsampling=index == config.query_downsampling_layer)
            for index, rate in enumerate(drop_path_rates)
        )
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    @auto_docstring
    def forward(
        self,
        hidden_states: torch.Tensor,
        feature_layers: tuple[int, ...] | None = None,
        grid: tuple[int, int] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BackboneOutput:
        r"""
        hidden_states (`torch.Tensor` of shape `(batch_size, num_tokens, hidden_size)`):
            The embedded tokens.
        feature_layers (`tuple[int, ...]`, *optional*):
            Layers whose outputs are returned as `feature_maps`, each of shape `(batch_size, num_tokens, hidden_size)`, in
            ascending order; 0 is the input. Defaults to the last layer.
        grid (`tuple[int, int]`, *optional*):
            `(height, width)` of the patch grid; required by a down-sampling layer.
        """
        feature_layers = (len(self.layers),) if feature_layers is None else feature_layers
        feature_maps = [hidden_states] if 0 in feature_layers else []
        for number, layer in enumerate(self.layers, start=1):
            # the grid of the embeddings: only a down-sampling layer reads it, and no layer before that changes the grid
            hidden_states = layer(hidden_states, grid, **kwargs)
            if number in feature_layers:
                feature_maps.append(hidden_states)
        return BackboneOutput(feature_maps=tuple(feature_maps))


@auto_docstring(
    custom_intro="""
    Plain vision transformer that returns feature maps of selected layers.

    Images of any size are accepted: they are padded with zeros at the bottom and right to whole patches (hybrid stems pad
    each convolution as TensorFlow's "SAME"), and position embeddings are interpolated.
    """
)
class PlainViTBackbone(BackboneMixin, PlainViTPreTrainedModel):
    def __init__(self, config: PlainViTConfig):
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.embeddings = PlainViTEmbeddings(config)
        self.encoder = PlainViTEncoder(config)
        self.layernorm = (
            nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
            if config.final_norm != "none"
            else nn.Identity()
        )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.patch_embeddings

    @property
    def feature_layers(self) -> tuple[int, ...]:
        """Number of layers before each feature map."""
        return tuple(index % (self.config.num_hidden_layers + 1) for index in self.out_indices)

    def encode_tokens(self, embeddings: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """
        Run the layers over embeddings `(batch_size, num_prefix_tokens + num_patches, hidden_size)`, on a grid or not. Keyword
        arguments are those of the encoder, and the `attention_mask` in the form of the attention implementation. The
        `feature_maps` of the output are patch tokens `(batch_size, num_patches, hidden_size)`.
        """
        num_layers = self.config.num_hidden_layers
        outputs = self.encoder(embeddings, feature_layers=self.feature_layers, **kwargs)
        tokens = []
        for number, hidden_states in zip(self.feature_layers, outputs.feature_maps, strict=True):
            if self.config.final_norm == "all" or number == num_layers:
                hidden_states = self.layernorm(hidden_states)
            tokens.append(hidden_states[:, self.config.num_prefix_tokens :])
        return replace(outputs, feature_maps=tuple(tokens))

    @can_return_tuple
    @auto_docstring(
        custom_intro="""
        Feature maps have the shape `(batch_size, hidden_size, ceil(height / patch_size), ceil(width / patch_size))`, one for
        each of `config.out_features`, without class and distillation tokens. Feature maps after a down-sampling layer have
        half as many rows and columns, rounded up. Hidden states and attentions include all tokens.
        """
    )
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        r"""
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
            Normalized images of any size.

        Raises:
            ValueError: if the number of channels is not `config.num_channels`.
        """
        embeddings, (height, width) = self.embeddings(pixel_values)
        outputs = self.encode_tokens(embeddings, grid=(height, width), **kwargs)
        downsampling_layer = self.config.query_downsampling_layer
        feature_maps = []
        for number, patch_tokens in zip(self.feature_layers, outputs.feature_maps, strict=True):
            is_halved = downsampling_layer is not None and number > downsampling_layer
            grid = ((height + 1) // 2, (width + 1) // 2) if is_halved else (height, width)
            # (batch_size, num_patches, D) -> (batch_size, D, height, width)
            feature_maps.append(patch_tokens.transpose(1, 2).unflatten(2, grid))
        return replace(outputs, feature_maps=tuple(feature_maps))


__all__ = ["PlainViTBackbone", "PlainViTPreTrainedModel"]
