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
"""UN-EPT: A Unified Efficient Pyramid Transformer for Semantic Segmentation (https://huggingface.co/papers/2107.14209)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, auto_docstring, logging
from transformers.utils.generic import can_return_tuple

from ..inference import LazyScores, WindowGrid, run_windows, slide_when_configured
from ..modeling_utils import SegmentationPreTrainedModel
from ..plain_vit.modeling_plain_vit import eager_attention_forward, pad_to_multiple
from ..sparse_attention import (
    SamplingOffsets,
    SamplingWeights,
    SparseAttention,
    SparseAttentionKernelMixin,
    reference_points,
)
from ..utils.export import crop, is_exporting
from .boundary_refinement import refine
from .boundary_targets import batch_boundary_targets
from .configuration_unept import QUERY_STRIDE, UNEPTConfig
from .loss_unept import unept_losses
from .refined_scores import RefinedScores


logger = logging.get_logger(__name__)


# trf-ignore: TRF041 config.decoder_self_attention, config.refine_at_inference, config.spatial_final_activation


@auto_docstring(custom_intro="Output of [`UNEPTForSemanticSegmentation`].")
@dataclass
class UNEPTOutput(ModelOutput):
    r"""
    loss (`torch.Tensor` of shape `()`, *optional*, returned when `labels` are given):
        Weighted sum of the four terms of equation 7.
    logits (`torch.Tensor` of shape `(batch_size, num_labels, height, width)`):
        Refined scores before softmax. With `config.refine_at_inference=False`, and in train mode with `labels`, the coarse
        ones, `(batch_size, num_labels, height / 8, width / 8)` unless the image had to be padded or windows were merged.
    boundary_logits (`torch.Tensor` of shape `(batch_size, 2, height / 8, width / 8)`, *optional*):
        Scores of "no boundary" and "boundary", over the image as padded. Not given for merged windows.
    direction_logits (`torch.Tensor` of shape `(batch_size, 8, height / 8, width / 8)`, *optional*):
        Scores of the eight directions toward the interior, over the image as padded. Not given for merged windows.
    hidden_states (`tuple[torch.Tensor, ...]`, *optional*, returned when `output_hidden_states=True`):
        The backbone's hidden states.
    attentions (`tuple[torch.Tensor, ...]`, *optional*, returned when `output_attentions=True`):
        The backbone's attention weights, where it has any.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    boundary_logits: torch.Tensor | None = None
    direction_logits: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


def sine_position_embeddings(
    height: int, width: int, hidden_size: int, device: torch.device | None = None
) -> torch.Tensor:
    """
    Sines and cosines of each cell's row (first half of the channels) and column (second half), from 1 / height of a turn
    to a full turn, at frequencies that fall to a 10000th.

    Returns:
        `torch.Tensor` of shape `(height * width, hidden_size)`, float32.
    """
    num_frequencies = hidden_size // 4
    exponents = torch.arange(num_frequencies, dtype=torch.float32, device=device) / num_frequencies

    def embed(size: int) -> torch.Tensor:
        positions = torch.arange(1, size + 1, dtype=torch.float32, device=device) / (size + 1e-6) * (2 * math.pi)
        angles = positions[:, None] / 10000**exponents
        # (size, frequencies, 2) -> (size, hidden_size / 2), sine and cosine in turn
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)

    rows = embed(height)[:, None].expand(height, width, -1)
    columns = embed(width).expand(height, width, -1)
    # (height, width, hidden_size) -> (height * width, hidden_size)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


class UNEPTSelfAttention(nn.Module):
    """
    Dot-product attention with one fused projection to queries, keys and values. Over the queries of an image (`"dense"`),
    or over the images of the batch, at each query's place on its own (`"across_batch"`): the released code hands a tensor
    with the batch first to a layer that takes it for the sequence.
    """

    def __init__(self, config: UNEPTConfig):
        super().__init__()
        self.config = config
        self.over_images = config.decoder_self_attention == "across_batch"
        self.num_attention_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.over_images:
            # (batch_size, num_queries, D) -> (num_queries, batch_size, D)
            hidden_states = hidden_states.transpose(0, 1)
        qkv = self.qkv(hidden_states).unflatten(2, (3, self.num_attention_heads, self.head_dim))
        # (sequences, length, 3, num_heads, head_dim) -> 3 x (sequences, num_heads, length, head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
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
        # (sequences, length, num_heads, head_dim) -> (sequences, length, D)
        attention_output = self.o_proj(attention_output.flatten(2))
        return attention_output.transpose(0, 1) if self.over_images else attention_output


class UNEPTFeedForward(nn.Module):
    """Two linear layers with dropout after each."""

    def __init__(self, config: UNEPTConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.fc2(self.dropout(self.fc1(hidden_states).relu())))


def build_sparse_attention(config: UNEPTConfig, num_levels: int) -> SparseAttention:
    """Sparse attention with the config's sizes."""
    return SparseAttention(config.hidden_size, config.num_attention_heads, num_levels, config.num_points)


class UNEPTEncoderLayer(GradientCheckpointingLayer):
    """The pyramid's features attend to sampled points of all levels (section 3.1.2)."""

    def __init__(self, config: UNEPTConfig, num_levels: int):
        super().__init__()
        self.attention = build_sparse_attention(config, num_levels)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = UNEPTFeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: torch.Tensor,
        points: torch.Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
    ) -> torch.Tensor:
        attended = self.attention(hidden_states + position_embeddings, hidden_states, points, spatial_shapes)
        hidden_states = self.attention_norm(hidden_states + self.dropout(attended))
        return self.feed_forward_norm(hidden_states + self.feed_forward(hidden_states))


class UNEPTDecoderLayer(GradientCheckpointingLayer):
    """Context queries attend to each other, then to sampled points of the encoded pyramid (equation 5)."""

    def __init__(self, config: UNEPTConfig, num_levels: int):
        super().__init__()
        self.is_sparse = config.decoder_self_attention == "sparse"
        self.self_attention = build_sparse_attention(config, 1) if self.is_sparse else UNEPTSelfAttention(config)
        self.self_attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.cross_attention = build_sparse_attention(config, num_levels)
        self.cross_attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = UNEPTFeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        queries: torch.Tensor,
        memory: torch.Tensor,
        points: torch.Tensor,
        query_shape: tuple[int, int],
        spatial_shapes: Sequence[tuple[int, int]],
    ) -> torch.Tensor:
        if self.is_sparse:
            attended = self.self_attention(queries, queries, points, [query_shape])
        else:
            attended = self.self_attention(queries)
        queries = self.self_attention_norm(queries + self.dropout(attended))
        attended = self.cross_attention(queries, memory, points, spatial_shapes)
        queries = self.cross_attention_norm(queries + self.dropout(attended))
        return self.feed_forward_norm(queries + self.feed_forward(queries))


class UNEPTEncoder(nn.Module):
    """Encodes a pyramid of feature maps of one width (section 3.1.2)."""

    def __init__(self, config: UNEPTConfig, num_levels: int):
        super().__init__()
        self.level_embeddings = nn.Parameter(torch.zeros(num_levels, config.hidden_size))
        self.layers = nn.ModuleList(
            [UNEPTEncoderLayer(config, num_levels) for _ in range(config.encoder_num_hidden_layers)]
        )

    def forward(self, pyramid: Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[tuple[int, int]]]:
        """
        Args:
            pyramid (`list[torch.Tensor]`, each of shape `(batch_size, hidden_size, h, w)`): Levels.

        Returns:
            `torch.Tensor` of shape `(batch_size, sum of h * w, hidden_size)`, and each level's `(h, w)`.
        """
        # (B, D, h, w) -> (B, h * w, D), then the levels one after the other
        hidden_states = torch.cat([level.flatten(2).transpose(1, 2) for level in pyramid], dim=1)
        device, dtype, width = hidden_states.device, hidden_states.dtype, hidden_states.shape[-1]
        spatial_shapes = [(level.shape[-2], level.shape[-1]) for level in pyramid]
        positions = [
            sine_position_embeddings(*shape, width, device).to(dtype) + level_embedding
            for shape, level_embedding in zip(spatial_shapes, self.level_embeddings, strict=True)
        ]
        position_embeddings = torch.cat(positions)
        points = torch.cat([reference_points(*shape, device) for shape in spatial_shapes])
        for layer in self.layers:
            hidden_states = layer(hidden_states, position_embeddings, points, spatial_shapes)
        return hidden_states, spatial_shapes


class UNEPTDecoder(nn.Module):
    """Dynamic context queries (section 3.2): the spatial branch's features with learned embeddings."""

    def __init__(self, config: UNEPTConfig, num_levels: int):
        super().__init__()
        self.query_grid = config.query_grid
        self.query_embeddings = nn.Parameter(torch.zeros(math.prod(config.query_grid), config.hidden_size))
        self.layers = nn.ModuleList(
            [UNEPTDecoderLayer(config, num_levels) for _ in range(config.decoder_num_hidden_layers)]
        )

    def interpolate_query_embeddings(self, height: int, width: int) -> torch.Tensor:
        """Query embeddings `(height * width, hidden_size)` for a grid of that size, resized in float32."""
        # an exported graph has to hold for every size, so it always interpolates (exact where the grids agree)
        if not is_exporting() and (height, width) == self.query_grid:
            return self.query_embeddings
        # (grid_height * grid_width, D) -> (1, D, grid_height, grid_width)
        grid = self.query_embeddings.T.unflatten(1, self.query_grid)[None].float()
        grid = nn.functional.interpolate(grid, size=(height, width), mode="bilinear", align_corners=False)
        # (1, D, height, width) -> (height * width, D)
        return grid[0].flatten(1).T.to(self.query_embeddings.dtype)

    def forward(
        self, context: torch.Tensor, memory: torch.Tensor, spatial_shapes: Sequence[tuple[int, int]]
    ) -> torch.Tensor:
        """
        Args:
            context (`torch.Tensor` of shape `(batch_size, hidden_size, height / 8, width / 8)`): Spatial features.
            memory (`torch.Tensor` of shape `(batch_size, sum of h * w, hidden_size)`): The encoded pyramid.
            spatial_shapes (`list[tuple[int, int]]`): `(h, w)` of each of its levels.

        Returns:
            `torch.Tensor` of the shape of `context`.
        """
        height, width = context.shape[-2:]
        # (B, D, h, w) -> (B, h * w, D); not `flatten(2).transpose(1, 2)`: for one image its gradient has strides that
        # torch's batch norm on CPUs takes for another layout
        queries = context.permute(0, 2, 3, 1).flatten(1, 2) + self.interpolate_query_embeddings(height, width)
        points = reference_points(height, width, queries.device)
        for layer in self.layers:
            queries = layer(queries, memory, points, (height, width), spatial_shapes)
        # (B, h * w, D) -> (B, D, h, w)
        return queries.transpose(1, 2).unflatten(2, (height, width))


class UNEPTSpatialBranch(nn.Module):
    """Three strided convolutions on the image: `(B, C, height, width)` -> `(B, hidden_size, height / 8, width / 8)`."""

    def __init__(self, config: UNEPTConfig):
        super().__init__()
        channels = [config.backbone_config.num_channels, *config.spatial_hidden_sizes, config.hidden_size]
        self.convolutions = nn.ModuleList(
            [
                nn.Conv2d(inputs, outputs, kernel_size=3, stride=2, padding=1, bias=False)
                for inputs, outputs in pairwise(channels)
            ]
        )
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs) for outputs in channels[1:]])
        self.final_activation = nn.ReLU() if config.spatial_final_activation else nn.Identity()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features = pixel_values.to(self.convolutions[0].weight.dtype)
        for convolution, norm in zip(self.convolutions[:-1], self.norms[:-1], strict=True):
            features = norm(convolution(features)).relu()
        return self.final_activation(self.norms[-1](self.convolutions[-1](features)))


class UNEPTBoundaryHead(nn.Module):
    """Point-wise head for boundaries or directions."""

    def __init__(self, config: UNEPTConfig, num_classes: int):
        super().__init__()
        self.convolution = nn.Conv2d(config.hidden_size, config.hidden_size, kernel_size=1, bias=False)
        self.norm = nn.BatchNorm2d(config.hidden_size)
        self.classifier = nn.Conv2d(config.hidden_size, num_classes, kernel_size=1, bias=False)

    def forward(self, context: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.norm(self.convolution(context)).relu())


@auto_docstring
class UNEPTPreTrainedModel(SparseAttentionKernelMixin, SegmentationPreTrainedModel):
    config: UNEPTConfig
    base_model_prefix = "unept"
    _no_split_modules = ["UNEPTEncoderLayer", "UNEPTDecoderLayer"]
    # the encoder learns at a tenth of the rate; everything decays
    parameter_rules = ((r"^backbone\.", 0.1, 1.0),)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, (SamplingOffsets, SamplingWeights)):
            module.reset_parameters()
        elif isinstance(module, UNEPTEncoder):
            init.normal_(module.level_embeddings)
        elif isinstance(module, UNEPTDecoder):
            init.normal_(module.query_embeddings)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Conv2d):
            # torch's own, as in the released code
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = module.weight[0].numel() ** -0.5
                init.uniform_(module.bias, -bound, bound)


@auto_docstring(
    custom_intro="""
    UN-EPT: sparse attention over a pyramid of backbone features, queried by features of a light spatial branch, which also
    predicts boundaries along which the result is refined.
    """
)
class UNEPTForSemanticSegmentation(UNEPTPreTrainedModel):
    def __init__(self, config: UNEPTConfig):
        super().__init__(config)
        channels = self.backbone.channels
        num_levels = config.num_feature_levels or len(channels)
        if num_levels != len(channels):
            raise ValueError(
                f"`num_feature_levels` is {num_levels} but the backbone gives {len(channels)} feature maps "
                f"({', '.join(self.backbone.out_features)}): set the `out_features` of `backbone_config` to as many stages, "
                "or leave `num_feature_levels` out."
            )
        self.size_divisor = math.lcm(self.size_divisor, QUERY_STRIDE)
        self.projections = nn.ModuleList([nn.Conv2d(inputs, config.hidden_size, kernel_size=1) for inputs in channels])
        self.spatial_branch = UNEPTSpatialBranch(config)
        self.encoder = UNEPTEncoder(config, num_levels)
        self.decoder = UNEPTDecoder(config, num_levels)
        self.boundary_head = UNEPTBoundaryHead(config, num_classes=2)
        self.direction_head = UNEPTBoundaryHead(config, num_classes=8)
        self.classifier = nn.Conv2d(config.hidden_size, config.num_labels, kernel_size=1)
        if config.decoder_self_attention == "across_batch":
            logger.warning_once(
                '`decoder_self_attention="across_batch"` attends over the images of a batch: predictions depend on which '
                "images are in it. It is for checkpoints that were trained with it; predict one image at a time, as the "
                "released evaluation does."
            )
        self.post_init()

    def _encode_decode(
        self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[int, int], BackboneOutput]:
        """Coarse, boundary and direction logits, the padded size that they cover, and the backbone's outputs."""
        pixel_values, padded_size = self.pad_to_whole_patches(pixel_values)
        # the spatial branch needs what a backbone that pads by itself does not
        pixel_values = pad_to_multiple(pixel_values, self.size_divisor)
        for name in ("output_attentions", "output_hidden_states"):
            kwargs.setdefault(name, getattr(self.config, name))
        outputs = self.backbone.forward_with_filtered_kwargs(pixel_values, **kwargs)
        pyramid = [
            projection(feature_map)
            for projection, feature_map in zip(self.projections, outputs.feature_maps, strict=True)
        ]
        context = self.spatial_branch(pixel_values)
        memory, spatial_shapes = self.encoder(pyramid)
        logits = self.classifier(self.decoder(context, memory, spatial_shapes))
        return logits, self.boundary_head(context), self.direction_head(context), padded_size, outputs

    def _dense_logits(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        logits, _, _, padded_size, _ = self._encode_decode(pixel_values)
        return logits, padded_size

    def _window_scores(
        self,
        pixel_values: torch.Tensor,
        target_sizes: Sequence[tuple[int, int]],
        grid: WindowGrid,
        max_windows: int,
    ) -> Sequence[LazyScores]:
        if self.config.decoder_self_attention == "across_batch":
            # the images of the batch may see each other, their windows may not
            max_windows = pixel_values.shape[0]
        if not self.config.refine_at_inference:
            return super()._window_scores(pixel_values, target_sizes, grid, max_windows)

        def network(crops: torch.Tensor) -> tuple[list[torch.Tensor], tuple[int, int]]:
            logits, boundary_logits, direction_logits, padded_size, _ = self._encode_decode(crops)
            return [logits, boundary_logits, direction_logits], padded_size

        outputs, padded_size = run_windows(network, pixel_values, grid, max_windows)
        axes = grid.axes(outputs[0].shape[-2:], padded_size)
        return [
            RefinedScores(*image_outputs, axes, target_size)
            for *image_outputs, target_size in zip(*outputs, target_sizes, strict=True)
        ]

    @can_return_tuple
    @slide_when_configured
    @auto_docstring(
        custom_intro="""
        In eval mode, without `labels`, images larger than `config.window_size` (where set) go through the network in
        windows, and `logits` are their average at full resolution. Compiled and exported models do not slide; exported
        ones without refinement give coarse logits for every size, covering the image as padded.
        """
    )
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        distance_maps: torch.Tensor | None = None,
        angle_maps: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> UNEPTOutput:
        r"""
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
            Normalized images of any size.
        labels (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
            Class of each pixel, or `config.semantic_loss_ignore_index` for pixels that do not count.
        distance_maps (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
            Each pixel's distance to the edge of its class, from the image processor (`do_boundary_targets=True`) or
            [`compute_boundary_targets`]. Without them they are computed from `labels` on the CPU, one image after the other, which
            takes SciPy and (512x512, 20 classes) a tenth of a second an image. Padding of the label map (such as a crop
            larger than the image) cannot be told from unlabeled pixels then and counts as boundary, unless
            `config.ignore_unlabeled_boundaries`; the image processor's own padding does not.
        angle_maps (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
            The direction toward the interior in degrees; comes with `distance_maps`.

        Raises:
            ValueError: for a wrong number of channels, labels or targets of another size, labels outside the classes, or
                targets that are missing in a compiled model.

        Example:

        ```python
        >>> import torch
        >>> from hf_segmodels import ResNetV1cConfig, UNEPTConfig, UNEPTForSemanticSegmentation

        >>> encoder = ResNetV1cConfig(out_features=["stage2", "stage3", "stage4"])
        >>> model = UNEPTForSemanticSegmentation(UNEPTConfig(backbone_config=encoder, num_labels=19)).eval()
        >>> outputs = model(torch.zeros(1, 3, 96, 128))
        >>> outputs.logits.shape, outputs.boundary_logits.shape
        (torch.Size([1, 19, 96, 128]), torch.Size([1, 2, 12, 16]))
        ```
        """
        size = pixel_values.shape[-2], pixel_values.shape[-1]
        if labels is not None:
            self._check_labels(pixel_values, labels)
            distance_maps, angle_maps = self._boundary_targets(labels, distance_maps, angle_maps)
        logits, boundary_logits, direction_logits, padded_size, outputs = self._encode_decode(pixel_values, **kwargs)

        # an exported graph cannot depend on whether a size needed padding
        is_padded = not is_exporting() and padded_size != size
        loss = None
        if labels is not None:
            loss = self._loss(
                logits=logits,
                boundary_logits=boundary_logits,
                direction_logits=direction_logits,
                labels=labels,
                distance_maps=distance_maps,
                angle_maps=angle_maps,
                padded_size=padded_size,
            )
        # nothing reads refined scores in a training step, whose largest tensor they would be
        is_refined = self.config.refine_at_inference and not (self.training and labels is not None)
        if is_refined or is_padded:
            logits = nn.functional.interpolate(logits, size=padded_size, mode="bilinear", align_corners=False)
            if is_refined:
                logits = refine(logits, boundary_logits, direction_logits)
            logits = crop(logits, size)

        return UNEPTOutput(
            loss=loss,
            logits=logits,
            boundary_logits=boundary_logits,
            direction_logits=direction_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _boundary_targets(
        self, labels: torch.Tensor, distance_maps: torch.Tensor | None, angle_maps: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if distance_maps is None and angle_maps is None and not torch.compiler.is_compiling():
            return batch_boundary_targets(labels, self.config.semantic_loss_ignore_index)
        if distance_maps is None or angle_maps is None:
            raise ValueError(
                "`labels` need `distance_maps` and `angle_maps` beside them, both or (unless the model is compiled) none: "
                "the image processor gives them with `do_boundary_targets=True`."
            )
        for name, maps in (("distance_maps", distance_maps), ("angle_maps", angle_maps)):
            if maps.shape != labels.shape:
                raise ValueError(
                    f"`{name}` {tuple(maps.shape)} must have the shape of `labels` {tuple(labels.shape)}: resize, crop and "
                    "pad them with the label map, or compute them afterwards."
                )
        return distance_maps, angle_maps

    def _loss(self, padded_size: tuple[int, int], **arguments: torch.Tensor) -> torch.Tensor:
        config = self.config
        losses = unept_losses(
            **arguments,
            boundary_distance=config.boundary_distance,
            ignore_index=config.semantic_loss_ignore_index,
            semantic_reduction=config.semantic_loss_reduction,
            ignore_unlabeled_boundaries=config.ignore_unlabeled_boundaries,
            padded_size=padded_size,
        )
        return (
            config.coarse_loss_weight * losses.coarse
            + config.refined_loss_weight * losses.refined
            + config.boundary_loss_weight * losses.boundary
            + config.direction_loss_weight * losses.direction
        )


__all__ = ["UNEPTForSemanticSegmentation", "UNEPTOutput", "UNEPTPreTrainedModel"]
