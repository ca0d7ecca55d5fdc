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
"""The plain vision transformer that all four methods stand on: AugReg ViT, DeiT and the ResNetV2 hybrids."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.bit.configuration_bit import BitConfig
from transformers.models.bit.modeling_bit import BitBottleneckLayer, BitEmbeddings, BitEncoder
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..utils.export import is_exporting
from .configuration_plain_vit import PlainViTConfig


# trf-ignore: TRF041 config.stem_type, config.use_cls_token, config.use_distillation_token, config.final_norm
# trf-ignore: TRF041 config.position_embedding_resize_rule, config.query_downsampling_layer
# trf-ignore: TRF041 config.query_downsampling_mode, config.query_downsampling_target


def pad_to_multiple(pixel_values: torch.Tensor, divisor: int) -> torch.Tensor:
    """Pads `(batch_size, num_channels, height, width)` with zeros at the bottom and right to multiples of `divisor`."""
    # not `-size % divisor`: the remainder of a negative symbolic size does not compile
    pad_height, pad_width = ((size + divisor - 1) // divisor * divisor - size for size in pixel_values.shape[-2:])
    return nn.functional.pad(pixel_values, (0, pad_width, 0, pad_height))


class PlainViTHybridStem(nn.Module):
    """ResNetV2 stem of the hybrids R26 and R50 (ViT paper, section 3.1): BiT's bottlenecks without pre-activation."""

    def __init__(self, config: PlainViTConfig):
        super().__init__()
        bit_config = BitConfig(
            num_channels=config.num_channels,
            embedding_size=config.stem_embedding_size,
            hidden_sizes=list(config.stem_hidden_sizes),
            depths=list(config.stem_depths),
            layer_type="bottleneck",
            global_padding="same",
            embedding_dynamic_padding=True,
        )
        self.embedder = BitEmbeddings(bit_config)
        self.encoder = BitEncoder(bit_config)
        for module in self.encoder.modules():
            if isinstance(module, BitBottleneckLayer):
                # how `_init_weights` knows it: outside of transformers, it is not asked about modules without parameters
                module.norm3.ends_residual_branch = True

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        # (batch_size, num_channels, height, width) -> (batch_size, stem_hidden_sizes[-1], height / P, width / P), ceil
        return self.encoder(self.embedder(pixel_values)).last_hidden_state


class PlainViTPatchEmbeddings(nn.Module):
    """
    Turns `pixel_values` of shape `(batch_size, num_channels, height, width)` into a feature map of shape
    `(batch_size, hidden_size, ceil(height / patch_size), ceil(width / patch_size))`.
    """

    def __init__(self, config: PlainViTConfig):
        super().__init__()
        self.num_channels = config.num_channels
        self.patch_size = config.patch_size
        self.stem = PlainViTHybridStem(config) if config.stem_type == "resnetv2" else None
        if self.stem is None:
            self.projection = nn.Conv2d(
                config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
            )
        else:
            self.projection = nn.Conv2d(config.stem_hidden_sizes[-1], config.hidden_size, kernel_size=1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.num_channels:
            raise ValueError(
                f"Expected `pixel_values` of shape (batch_size, {self.num_channels}, height, width), got "
                f"{tuple(pixel_values.shape)}. Convert the images to {self.num_channels} channels, or set "
                "`num_channels` in the backbone's config."
            )
        pixel_values = pixel_values.to(self.projection.weight.dtype)
        if self.stem is not None:
            return self.projection(self.stem(pixel_values))
        return self.projection(pad_to_multiple(pixel_values, self.patch_size))


class PlainViTEmbeddings(nn.Module):
    """Patch embeddings, class and distillation tokens, and position embeddings."""

    def __init__(self, config: PlainViTConfig):
        super().__init__()
        self.config = config
        grid_height, grid_width = config.position_grid
        self.patch_embeddings = PlainViTPatchEmbeddings(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if config.use_cls_token else None
        self.distillation_token = (
            nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if config.use_distillation_token else None
        )
        self.position_embeddings = nn.Parameter(
            torch.zeros(1, config.num_prefix_tokens + grid_height * grid_width, config.hidden_size)
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def split_position_embeddings(self) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The prefix tokens' position embeddings `(1, num_prefix_tokens, hidden_size)` and the grid's `(1, hidden_size,
        grid_height, grid_width)`.
        """
        grid_height, grid_width = self.config.position_grid
        prefix, grid = self.position_embeddings.split([self.config.num_prefix_tokens, grid_height * grid_width], dim=1)
        # (1, grid_height * grid_width, D) -> (1, D, grid_height, grid_width)
        return prefix, grid.transpose(1, 2).unflatten(2, (grid_height, grid_width))

    def interpolate_position_embeddings(self, height: int, width: int) -> torch.Tensor:
        """
        Position embeddings for a patch grid of `(height, width)`: the prefix tokens' are kept, the grid's are resized
        with half-pixel centers and no antialias, in float32.

        Returns:
            `torch.Tensor` of shape `(1, num_prefix_tokens + height * width, hidden_size)`.
        """
        grid_height, grid_width = self.config.position_grid
        # an exported graph has to hold for every size, so it always interpolates (exact where the grids agree)
        if not is_exporting():
            if self.config.position_embedding_resize_rule == "token_count":
                keep = height * width == grid_height * grid_width
            else:
                keep = (height, width) == (grid_height, grid_width)
            if keep:
                return self.position_embeddings

        prefix, grid = self.split_position_embeddings()
        grid = nn.functional.interpolate(
            grid.float(),
            size=(height, width),
            mode=self.config.position_embedding_interpolation,
            align_corners=False,
        ).to(prefix.dtype)
        # (1, D, height, width) -> (1, height * width, D)
        return torch.cat([prefix, grid.flatten(2).transpose(1, 2)], dim=1)

    def assemble(self, patch_tokens: torch.Tensor, position_embeddings: torch.Tensor) -> torch.Tensor:
        """
        Puts the prefix tokens before patch tokens `(batch_size, num_patches, hidden_size)` and adds position embeddings
        `(1 or batch_size, num_prefix_tokens + num_patches, hidden_size)`.
        """
        batch_size = patch_tokens.shape[0]
        prefix = [
            token.expand(batch_size, -1, -1) for token in (self.cls_token, self.distillation_token) if token is not None
        ]
        return self.dropout(torch.cat([*prefix, patch_tokens], dim=1) + position_embeddings)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        embeddings = self.patch_embeddings(pixel_values)
        height, width = embeddings.shape[-2:]
        # (batch_size, D, height, width) -> (batch_size, height * width, D)
        embeddings = embeddings.flatten(2).transpose(1, 2)
        return self.assemble(embeddings, self.interpolate_position_embeddings(height, width)), (height, width)


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
    """Attention that also returns its weights `(batch_size, num_heads, query_length, key_length)`."""
    attention_weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        attention_weights = attention_weights + attention_mask
    attention_weights = nn.functional.softmax(attention_weights, dim=-1)
    attention_weights = nn.functional.dropout(attention_weights, p=dropout, training=module.training)
    # (batch_size, num_heads, length, head_dim) -> (batch_size, length, num_heads, head_dim)
    return torch.matmul(attention_weights, value).transpose(1, 2).contiguous(), attention_weights


class PlainViTAttention(nn.Module):
    """
    Multi-head attention with one fused projection to queries, keys and values. Tokens attend to each other, or, where
    `key_value_states` are given, to these.
    """

    def __init__(self, config: PlainViTConfig):
        super().__init__()
        self.config = config
        self.num_attention_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False

        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def _project(
        self, hidden_states: torch.Tensor, key_value_states: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries, keys and values, each of shape `(batch_size, num_heads, num_tokens, head_dim)`."""
        if key_value_states is None:
            qkv = self.qkv(hidden_states).unflatten(2, (3, self.num_attention_heads, self.head_dim))
            # (batch_size, num_tokens, 3, num_heads, head_dim) -> 3 x (batch_size, num_heads, num_tokens, head_dim)
            query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
            return query, key, value
        width = hidden_states.shape[-1]
        weights = self.qkv.weight.split([width, 2 * width])
        biases = (None, None) if self.qkv.bias is None else self.qkv.bias.split([width, 2 * width])
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
    """Two linear layers with an activation between them."""

    def __init__(self, config: PlainViTConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.dropout(self.activation(self.fc1(hidden_states)))
        return self.dropout(self.fc2(hidden_states))


class PlainViTDropPath(nn.Module):
    """Stochastic depth per sample (https://huggingface.co/papers/1603.09382): identity outside training."""

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
    """Halves the grid of patches in both directions, rounding up; class and distillation tokens are kept."""

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
    """Pre-norm transformer layer (Segmenter, equations 1 and 2), with fewer queries where it is down-sampling."""

    def __init__(self, config: PlainViTConfig, drop_path_rate: float = 0.0, is_downsampling: bool = False):
        super().__init__()
        self.downsampling = PlainViTDownsampling(config) if is_downsampling else None
        self.query_downsampling_target = config.query_downsampling_target
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = PlainViTAttention(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = PlainViTMLP(config)
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
    A stack of transformer layers. It owns them, so hidden states and attentions are captured here and nowhere else.
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
            Numbers of the layers whose outputs are wanted as `feature_maps`, each of shape `(batch_size, num_tokens,
            hidden_size)`, in rising order; 0 is the input. The last layer by default.
        grid (`tuple[int, int]`, *optional*):
            Rows and columns of patches; what a down-sampling layer needs.
        """
        feature_layers = (len(self.layers),) if feature_layers is None else feature_layers
        tapped = [hidden_states] if 0 in feature_layers else []
        for number, layer in enumerate(self.layers, start=1):
            # only a down-sampling layer looks at the grid, which is that of the embeddings before it
            hidden_states = layer(hidden_states, grid, **kwargs)
            if number in feature_layers:
                tapped.append(hidden_states)
        return BackboneOutput(feature_maps=tuple(tapped))


@auto_docstring(
    custom_intro="""
    Plain vision transformer that gives feature maps of chosen layers.

    Inputs of any size are accepted: they are padded with zeros at the bottom and right to whole patches (hybrid stems
    pad inside, TensorFlow's "SAME" way), and position embeddings are interpolated.
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

    def _tapped_layers(self) -> tuple[int, ...]:
        """How many layers lie before each feature map."""
        return tuple(index % (self.config.num_hidden_layers + 1) for index in self.out_indices)

    def encode_tokens(self, embeddings: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """
        Runs the layers over embedded tokens, which need not lie on a grid.

        Args:
            embeddings (`torch.Tensor` of shape `(batch_size, num_prefix_tokens + num_patches, hidden_size)`):
                What [`PlainViTEmbeddings.assemble`] gives.
            kwargs: `attention_mask` (in the form that the attention implementation wants), `grid` (rows and columns of
                patches, for a layer that down-samples), and flags for outputs.

        Returns:
            `BackboneOutput` whose `feature_maps` are patch tokens `(batch_size, num_patches, hidden_size)`, one for each
            of `config.out_features`.
        """
        num_layers = self.config.num_hidden_layers
        feature_layers = self._tapped_layers()
        outputs = self.encoder(embeddings, feature_layers=feature_layers, **kwargs)

        tokens = []
        for number, hidden_states in zip(feature_layers, outputs.feature_maps, strict=True):
            if self.config.final_norm == "all" or number == num_layers:
                hidden_states = self.layernorm(hidden_states)
            tokens.append(hidden_states[:, self.config.num_prefix_tokens :])
        return BackboneOutput(
            feature_maps=tuple(tokens), hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    @can_return_tuple
    @auto_docstring(
        custom_intro="""
        The feature maps have the shape `(batch_size, hidden_size, ceil(height / patch_size), ceil(width / patch_size))`,
        one for each of `config.out_features`, without class and distillation tokens; those behind a down-sampling layer
        half as many rows and columns, rounded up. Hidden states and attentions are over all tokens.
        """
    )
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        r"""
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
            Normalized images of any size.

        Raises:
            ValueError: if the number of channels is not the config's.
        """
        embeddings, (height, width) = self.embeddings(pixel_values)
        outputs = self.encode_tokens(embeddings, grid=(height, width), **kwargs)
        halved = (height + 1) // 2, (width + 1) // 2
        feature_maps = []
        for number, patch_tokens in zip(self._tapped_layers(), outputs.feature_maps, strict=True):
            is_halved = (
                self.config.query_downsampling_layer is not None and number > self.config.query_downsampling_layer
            )
            # (batch_size, num_patches, D) -> (batch_size, D, height, width)
            feature_maps.append(patch_tokens.transpose(1, 2).unflatten(2, halved if is_halved else (height, width)))
        return BackboneOutput(
            feature_maps=tuple(feature_maps), hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = ["PlainViTBackbone", "PlainViTPreTrainedModel"]
