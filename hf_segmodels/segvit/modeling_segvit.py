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
"""SegViT (https://huggingface.co/papers/2210.05844): the attention between classes and patches is the mask."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple, maybe_autocast

from ..inference import MaskScores, WindowGrid, run_windows, slide_when_configured
from ..modeling_utils import SegmentationPreTrainedModel
from ..plain_vit.modeling_plain_vit import eager_attention_forward
from ..utils.export import crop, is_exporting
from .configuration_segvit import SegViTConfig
from .loss_segvit import attention_to_mask_loss, count_masks, present_classes


# trf-ignore: TRF041 config.decoder_type, config.odd_size_mode, config.use_auxiliary_loss, config.min_scaled_size


@auto_docstring(custom_intro="Output of [`SegViTForSemanticSegmentation`].")
@dataclass
class SegViTOutput(ModelOutput):
    r"""
    loss (`torch.Tensor` of shape `()`, *optional*, returned when `labels` are given):
        Sum of the terms in `loss_dict`.
    logits (`torch.Tensor` of shape `(batch_size, num_labels, height, width)`, float32, *optional*):
        Scores of the classes at full resolution: each query's mask, after the sigmoid, counts for each class by the
        query's probability of it. Not negative, and not to be put through a softmax. Left out while training with
        `labels`: the loss is that of queries and masks.
    class_queries_logits (`torch.Tensor` of shape `(batch_size, num_labels, num_labels + 1)`):
        Class scores of each query before softmax; "no object" comes last. Not given where windows were merged.
    masks_queries_logits (`torch.Tensor` of shape `(batch_size, num_labels, h, w)`):
        Mask of each query before upsampling and sigmoid. Not given where windows were merged.
    auxiliary_class_queries_logits (`torch.Tensor` of shape `(batch_size, num_stages - 1, num_labels, num_labels + 1)`, *optional*):
        The same as `class_queries_logits` of the earlier stages (layers, in a `"shrunk"` decoder), first to last.
    auxiliary_masks_queries_logits (`torch.Tensor` of shape `(batch_size, num_stages - 1, num_labels, h, w)`, *optional*):
        The same as `masks_queries_logits` of these.
    loss_dict (`dict[str, torch.Tensor]`, *optional*, returned when `labels` are given):
        The weighted terms of the loss: `loss_ce`, `loss_mask` and `loss_dice` of the last stage, and of the earlier ones
        with `_0`, `_1`, ... behind.
    hidden_states (`tuple[torch.Tensor, ...]`, *optional*, returned when `output_hidden_states=True`):
        The encoder's hidden states, embeddings first, each of shape `(batch_size, num_tokens, hidden_size)`.
    attentions (`tuple[torch.Tensor, ...]`, *optional*, returned when `output_attentions=True`):
        The encoder's attention weights, each of shape `(batch_size, num_heads, num_tokens, num_tokens)`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    class_queries_logits: torch.Tensor | None = None
    masks_queries_logits: torch.Tensor | None = None
    auxiliary_class_queries_logits: torch.Tensor | None = None
    auxiliary_masks_queries_logits: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class SegViTXavierLinear(nn.Linear):
    """One of the three projections that torch's own attention holds, and initializes, as a single matrix."""


class SegViTAttention(nn.Module):
    """Multi-head attention from queries to keys and values, which can give the similarity that becomes masks."""

    def __init__(self, config: SegViTConfig, linear_class: type[nn.Linear] = SegViTXavierLinear):
        super().__init__()
        self.config = config
        self.num_attention_heads = config.decoder_num_attention_heads
        self.head_dim = config.decoder_hidden_size // config.decoder_num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.decoder_dropout_prob
        self.is_causal = False

        self.q_proj = linear_class(config.decoder_hidden_size, config.decoder_hidden_size)
        self.k_proj = linear_class(config.decoder_hidden_size, config.decoder_hidden_size)
        self.v_proj = linear_class(config.decoder_hidden_size, config.decoder_hidden_size)
        self.o_proj = nn.Linear(config.decoder_hidden_size, config.decoder_hidden_size)

    def forward(
        self, queries: torch.Tensor, features: torch.Tensor, output_similarity: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Queries `(batch_size, num_queries, d)` and features `(batch_size, num_patches, d)` -> queries, and where asked for
        the similarity `(batch_size, num_queries, num_patches)`: scaled products before the softmax, mean over heads.
        """
        # (batch_size, length, d) -> (batch_size, num_heads, length, head_dim)
        query, key, value = (
            projection(states).unflatten(2, (-1, self.head_dim)).transpose(1, 2)
            for projection, states in ((self.q_proj, queries), (self.k_proj, features), (self.v_proj, features))
        )
        similarity = None
        if output_similarity:
            products = torch.matmul(query, key.transpose(2, 3)) * self.scaling
            similarity = products.mean(dim=1)
            attention_weights = nn.functional.dropout(
                products.softmax(dim=-1), p=self.attention_dropout, training=self.training
            )
            # (batch_size, num_heads, num_queries, head_dim) -> (batch_size, num_queries, num_heads, head_dim)
            attention_output = torch.matmul(attention_weights, value).transpose(1, 2)
        else:
            attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
                self.config._attn_implementation, eager_attention_forward
            )
            attention_output, _ = attention_interface(
                self,
                query,
                key,
                value,
                attention_mask=None,
                dropout=self.attention_dropout if self.training else 0.0,
                scaling=self.scaling,
            )
        return self.o_proj(attention_output.flatten(2)), similarity


class SegViTDecoderLayer(GradientCheckpointingLayer):
    """Post-norm transformer decoder layer: queries attend to each other, then to the features (figure 2)."""

    def __init__(self, config: SegViTConfig, is_upsampling: bool = False):
        super().__init__()
        width, eps = config.decoder_hidden_size, config.decoder_layer_norm_eps
        self.self_attention = SegViTAttention(config)
        self.self_attention_norm = nn.LayerNorm(width, eps=eps)
        self.cross_attention = SegViTAttention(config, SegViTXavierLinear if is_upsampling else nn.Linear)
        self.cross_attention_norm = nn.LayerNorm(width, eps=eps)
        self.fc1 = nn.Linear(width, config.decoder_intermediate_size or 4 * width)
        self.activation = nn.ReLU()
        self.fc2 = nn.Linear(config.decoder_intermediate_size or 4 * width, width)
        self.mlp_norm = nn.LayerNorm(width, eps=eps)
        self.dropout = nn.Dropout(config.decoder_dropout_prob)

    def forward(
        self, queries: torch.Tensor, features: torch.Tensor, output_similarity: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attended, _ = self.self_attention(queries, queries)
        queries = self.self_attention_norm(queries + self.dropout(attended))
        attended, similarity = self.cross_attention(queries, features, output_similarity)
        queries = self.cross_attention_norm(queries + self.dropout(attended))
        hidden_states = self.fc2(self.dropout(self.activation(self.fc1(queries))))
        return self.mlp_norm(queries + self.dropout(hidden_states)), similarity


class SegViTStage(nn.Module):
    """Transformer layers in which queries attend to one feature map, projected to their width."""

    def __init__(self, config: SegViTConfig, in_channels: int | None, is_upsampling: bool = False):
        super().__init__()
        width = config.decoder_hidden_size
        self.projection = nn.Linear(in_channels, width) if in_channels is not None else nn.Identity()
        self.norm = nn.LayerNorm(width, eps=config.decoder_layer_norm_eps) if in_channels is not None else nn.Identity()
        self.layers = nn.ModuleList(
            SegViTDecoderLayer(config, is_upsampling) for _ in range(config.decoder_num_hidden_layers)
        )

    def forward(
        self, queries: torch.Tensor, features: torch.Tensor, mask_layers: Sequence[int] = ()
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        """
        Args:
            queries (`torch.Tensor` of shape `(batch_size, num_queries, d)`): The queries.
            features (`torch.Tensor` of shape `(batch_size, num_channels, h, w)`): The feature map.
            mask_layers (`Sequence[int]`): Layers whose queries and similarities are wanted.

        Returns:
            The last layer's queries; and, for each of `mask_layers`, its queries and its similarity of shape
            `(batch_size, num_queries, h, w)`.
        """
        grid = features.shape[-2:]
        # (batch_size, num_channels, h, w) -> (batch_size, h * w, d)
        features = self.norm(self.projection(features.flatten(2).transpose(1, 2)))
        outputs = []
        for index, layer in enumerate(self.layers):
            queries, similarity = layer(queries, features, index in mask_layers)
            if similarity is not None:
                # (batch_size, num_queries, h * w) -> (batch_size, num_queries, h, w)
                outputs.append((queries, similarity.unflatten(2, grid)))
        return queries, outputs


class SegViTQueryUpsampling(nn.Module):
    """
    Learned queries, one for each patch wanted, collect features of the shallow and of the down-sampled deep layers
    (section 3.3, "QU").
    """

    def __init__(self, config: SegViTConfig, in_channels: Sequence[int]):
        super().__init__()
        self.grid = config.upsampling_grid
        self.follows_image = config.prediction_size is None
        self.queries = nn.Parameter(torch.zeros(self.grid[0] * self.grid[1], config.decoder_hidden_size))
        self.stages = nn.ModuleList(SegViTStage(config, channels, is_upsampling=True) for channels in in_channels)

    def interpolate_queries(self, height: int, width: int) -> tuple[torch.Tensor, tuple[int, int]]:
        """Queries `(height * width, d)` and their grid; the table's own where it does not follow the image."""
        # an exported graph has to hold for every size, so it always interpolates (exact where the grids agree)
        is_fixed = not self.follows_image or (not is_exporting() and (height, width) == self.grid)
        if is_fixed:
            return self.queries, self.grid
        # (rows * columns, d) -> (1, d, rows, columns) -> (1, d, height, width) -> (height * width, d)
        table = _resize(self.queries.T.unflatten(1, self.grid)[None].float(), (height, width))
        return table[0].flatten(1).T.to(self.queries.dtype), (height, width)

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Feature maps, the shallowest first -> `(batch_size, d, rows, columns)`."""
        queries, grid = self.interpolate_queries(*feature_maps[0].shape[-2:])
        # not `expand`: torch's counter of operations cannot follow views of parameters
        queries = queries.repeat(feature_maps[0].shape[0], 1, 1)
        for stage, features in zip(self.stages, feature_maps, strict=True):
            queries, _ = stage(queries, features)
        # (batch_size, rows * columns, d) -> (batch_size, d, rows, columns)
        return queries.transpose(1, 2).unflatten(2, grid)


class SegViTDecoder(nn.Module):
    """
    Attention to mask: one query for each class attends to the patches, stage by stage, and what it attends to is its mask
    (section 3.2).
    """

    def __init__(self, config: SegViTConfig, in_channels: Sequence[int]):
        super().__init__()
        is_shrunk = config.decoder_type == "shrunk"
        self.query_upsampling = SegViTQueryUpsampling(config, in_channels) if is_shrunk else None
        # the deepest feature map comes first
        stage_channels = [None] if is_shrunk else list(in_channels)[::-1]
        self.stages = nn.ModuleList(SegViTStage(config, channels) for channels in stage_channels)
        self.class_queries = nn.Parameter(torch.zeros(config.num_labels, config.decoder_hidden_size))
        self.classifier = nn.Linear(config.decoder_hidden_size, config.num_labels + 1)
        self.use_auxiliary_loss = config.use_auxiliary_loss

    def forward(self, feature_maps: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """
        Feature maps `(batch_size, num_channels, h, w)`, the shallowest first -> class logits `(batch_size, num_labels,
        num_labels + 1)` and mask logits `(batch_size, num_labels, h, w)` of each supervised stage (or layer of the one
        stage); the last are the prediction.
        """
        queries = self.class_queries.repeat(feature_maps[0].shape[0], 1, 1)
        last_layer = len(self.stages[0].layers) - 1
        if self.query_upsampling is not None:
            mask_layers = range(last_layer + 1) if self.use_auxiliary_loss else (last_layer,)
            _, outputs = self.stages[0](queries, self.query_upsampling(feature_maps), mask_layers)
        else:
            outputs, total = [], 0.0
            for stage, features in zip(self.stages, reversed(feature_maps), strict=True):
                queries, ((stage_queries, similarity),) = stage(queries, features, (last_layer,))
                # masks add up, on the grid of the last stage
                total = total + _resize(similarity, feature_maps[0].shape[-2:])
                outputs.append((stage_queries, total))
            outputs = outputs if self.use_auxiliary_loss else outputs[-1:]
        return [self.classifier(stage_queries) for stage_queries, _ in outputs], [masks for _, masks in outputs]


def _resize(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return nn.functional.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


@auto_docstring
class SegViTPreTrainedModel(SegmentationPreTrainedModel):
    config: SegViTConfig
    base_model_prefix = "segvit"
    _no_split_modules = ["SegViTDecoderLayer"]
    # the released recipe: the whole decoder learns ten times as fast and decays; the encoder's norms do not decay
    parameter_rules = ((r"^decoder\.", 10.0, 1.0), (r"norm", 1.0, 0.0))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, SegViTXavierLinear):
            bound = (6 / (module.in_features + 3 * module.out_features)) ** 0.5
            init.uniform_(module.weight, -bound, bound)
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, SegViTQueryUpsampling):
            init.normal_(module.queries)
        elif isinstance(module, SegViTDecoder):
            init.normal_(module.class_queries)


@auto_docstring(
    custom_intro="""
    SegViT: a vision transformer, and a decoder in which each class attends to the patches that it masks.
    """
)
class SegViTForSemanticSegmentation(SegViTPreTrainedModel):
    def __init__(self, config: SegViTConfig):
        super().__init__(config)
        self.decoder = SegViTDecoder(config, self.backbone.channels)
        self.post_init()

    def _encode_decode(
        self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], tuple[int, int], BackboneOutput]:
        """Class and mask logits of each supervised stage, the size that masks cover, and the encoder's outputs."""
        height, width = pixel_values.shape[-2:]
        pixel_values, padded_size = self.pad_to_whole_patches(pixel_values)
        if self.config.odd_size_mode == "resize":
            padded_size = (height, width)
        for name in ("output_attentions", "output_hidden_states"):
            kwargs.setdefault(name, getattr(self.config, name))
        outputs = self.backbone.forward_with_filtered_kwargs(pixel_values, **kwargs)
        class_logits, mask_logits = self.decoder(outputs.feature_maps)
        return class_logits, mask_logits, padded_size, outputs

    def _scaled_size(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        if self.config.min_scaled_size is not None and scale > 0:
            scale = max(scale, min(1.0, self.config.min_scaled_size / min(size)))
        return super()._scaled_size(size, scale)

    def _window_scores(
        self,
        pixel_values: torch.Tensor,
        target_sizes: Sequence[tuple[int, int]],
        grid: WindowGrid,
        max_windows: int,
    ) -> list[MaskScores]:
        def network(crops: torch.Tensor) -> tuple[list[torch.Tensor], tuple[int, int]]:
            class_logits, mask_logits, padded_size, _ = self._encode_decode(crops)
            return [class_logits[-1], mask_logits[-1]], padded_size

        (class_logits, mask_logits), padded_size = run_windows(network, pixel_values, grid, max_windows)
        axes = grid.axes(mask_logits.shape[-2:], padded_size)
        prediction_size = self.config.fixed_prediction_size
        return MaskScores.from_windows(class_logits, mask_logits, axes, target_sizes, prediction_size)

    def _class_scores(
        self,
        class_logits: torch.Tensor,
        mask_logits: torch.Tensor,
        padded_size: tuple[int, int],
        size: tuple[int, int],
    ) -> torch.Tensor:
        """Scores `(batch_size, num_labels, height, width)` of an image of `size` (section 3.2, "inference")."""
        prediction_size = self.config.fixed_prediction_size
        # float32, since classes differ by little where many small terms add up
        with maybe_autocast(mask_logits.device.type, enabled=False):
            masks = _resize(mask_logits.float(), prediction_size or padded_size)
            probabilities = class_logits.float().softmax(dim=-1)[..., :-1]
            scores = torch.einsum("bqk,bqhw->bkhw", probabilities, masks.sigmoid())
        if prediction_size is not None:
            scores = _resize(scores, padded_size)
        return crop(scores, size)

    @can_return_tuple
    @slide_when_configured
    @auto_docstring(
        custom_intro="""
        In eval mode, without `labels`, images larger than `config.window_size` (where set) go through the network in
        windows, and `logits` are their average; compiled and exported models do not slide. `predict` finds label maps
        without scores at full resolution.
        """
    )
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SegViTOutput:
        r"""
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
            Normalized images of any size.
        labels (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
            Class of each pixel, or `config.semantic_loss_ignore_index` for pixels that belong to no mask.

        Raises:
            ValueError: for a wrong number of channels, labels of another size, or labels outside the classes.

        Example:

        ```python
        >>> import torch
        >>> from hf_segmodels import PlainViTConfig, SegViTConfig, SegViTForSemanticSegmentation

        >>> encoder = PlainViTConfig(
        ...     hidden_size=64, num_hidden_layers=2, num_attention_heads=1, use_cls_token=False, final_norm="none"
        ... )
        >>> config = SegViTConfig(
        ...     backbone_config=encoder, decoder_hidden_size=32, decoder_num_attention_heads=1, num_labels=19
        ... )
        >>> outputs = SegViTForSemanticSegmentation(config).eval()(torch.zeros(1, 3, 64, 96))
        >>> outputs.logits.shape, outputs.class_queries_logits.shape, outputs.masks_queries_logits.shape
        (torch.Size([1, 19, 64, 96]), torch.Size([1, 19, 20]), torch.Size([1, 19, 4, 6]))
        ```
        """
        height, width = pixel_values.shape[-2:]
        if labels is not None:
            self._check_labels(pixel_values, labels)
        class_logits, mask_logits, padded_size, outputs = self._encode_decode(pixel_values, **kwargs)

        loss, loss_dict = None, None
        if labels is not None:
            loss_dict = self._loss_terms(class_logits, mask_logits, labels, padded_size)
            loss = torch.stack(list(loss_dict.values())).sum()
        # the loss does not look at the scores of classes, which would take most of the time and memory of training
        logits = None
        if labels is None or not self.training:
            logits = self._class_scores(class_logits[-1], mask_logits[-1], padded_size, (height, width))

        has_auxiliary = len(class_logits) > 1
        return SegViTOutput(
            loss=loss,
            logits=logits,
            class_queries_logits=class_logits[-1],
            masks_queries_logits=mask_logits[-1],
            auxiliary_class_queries_logits=torch.stack(class_logits[:-1], dim=1) if has_auxiliary else None,
            auxiliary_masks_queries_logits=torch.stack(mask_logits[:-1], dim=1) if has_auxiliary else None,
            loss_dict=loss_dict,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _loss_terms(
        self,
        class_logits: list[torch.Tensor],
        mask_logits: list[torch.Tensor],
        labels: torch.Tensor,
        padded_size: tuple[int, int],
    ) -> dict[str, torch.Tensor]:
        """The weighted terms of the loss, the last stage's first."""
        config = self.config
        ignore_index = config.semantic_loss_ignore_index
        weights = {
            "loss_ce": config.class_loss_weight,
            "loss_mask": config.mask_loss_weight,
            "loss_dice": config.dice_loss_weight,
        }
        num_masks = count_masks(present_classes(labels, config.num_labels, ignore_index))
        suffixes = ["", *(f"_{stage}" for stage in range(len(class_logits) - 1))]
        terms: dict[str, torch.Tensor] = {}
        for stage, suffix in enumerate(suffixes, start=-1):  # -1 is the last stage
            stage_terms = attention_to_mask_loss(
                class_logits[stage],
                mask_logits[stage],
                labels,
                num_masks,
                config.no_object_weight,
                ignore_index,
                padded_size,
            )
            terms |= {f"{name}{suffix}": weights[name] * term for name, term in stage_terms.items()}
        return terms


__all__ = ["SegViTForSemanticSegmentation", "SegViTOutput", "SegViTPreTrainedModel"]
