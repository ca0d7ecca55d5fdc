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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring, logging
from transformers.utils.generic import can_return_tuple

from ..inference import DensePredictionMixin, LazyScores, WindowGrid, slide_when_configured
from ..modeling_utils import EncodedImage, SegmentationPreTrainedModel
from ..plain_vit.embeddings import pad_to_multiple
from ..sparse_attention import SamplingOffsets, SamplingWeights, SparseAttentionKernelMixin
from ..utils.export import crop
from .boundary_refinement import refine
from .boundary_targets import compute_boundary_targets
from .configuration_unept import QUERY_STRIDE, UNEPTConfig
from .context_branch import UNEPTDecoder, UNEPTEncoder
from .loss_unept import unept_losses
from .refined_scores import RefinedScores


logger = logging.get_logger(__name__)


# trf-ignore: TRF041 config.decoder_self_attention, config.refine_at_inference, config.spatial_final_activation


@auto_docstring(custom_intro="Output of [`UNEPTForSemanticSegmentation`].")
@dataclass
class UNEPTOutput(SemanticSegmenterOutput):
    r"""
    loss (`torch.Tensor` of shape `()`, *optional*, returned when `labels` are given):
        Sum of the terms in `loss_dict`.
    logits (`torch.Tensor` of shape `(batch_size, num_labels, height, width)`):
        Refined scores before softmax. With `config.refine_at_inference=False`, and in training with `labels`, coarse scores
        `(batch_size, num_labels, height / 8, width / 8)`, or `(batch_size, num_labels, height, width)` if the image was
        padded or windows were merged.
    boundary_logits (`torch.Tensor` of shape `(batch_size, 2, height / 8, width / 8)`, *optional*):
        Scores of "no boundary" and "boundary", over the padded image. `None` if windows were merged.
    direction_logits (`torch.Tensor` of shape `(batch_size, 8, height / 8, width / 8)`, *optional*):
        Scores of the eight directions toward the interior, over the padded image. `None` if windows were merged.
    loss_dict (`dict[str, torch.Tensor]`, *optional*, returned when `labels` are given):
        Weighted terms of the loss (equation 7): the cross-entropies `loss_coarse` and `loss_refined`, `loss_boundary` and
        `loss_direction`.
    """

    boundary_logits: torch.Tensor | None = None
    direction_logits: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None


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
    """Point-wise head that predicts boundaries or directions."""

    def __init__(self, config: UNEPTConfig, num_classes: int):
        super().__init__()
        self.convolution = nn.Conv2d(config.hidden_size, config.hidden_size, kernel_size=1, bias=False)
        self.norm = nn.BatchNorm2d(config.hidden_size)
        self.classifier = nn.Conv2d(config.hidden_size, num_classes, kernel_size=1, bias=False)

    def forward(self, context: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.norm(self.convolution(context)).relu())


@auto_docstring
class UNEPTPreTrainedModel(SparseAttentionKernelMixin, DensePredictionMixin, SegmentationPreTrainedModel):
    config: UNEPTConfig
    base_model_prefix = "unept"
    _no_split_modules = ["UNEPTEncoderLayer", "UNEPTDecoderLayer"]
    # the encoder has a tenth of the learning rate; all parameters decay
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
            # the default of torch, as in the released code
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = module.weight[0].numel() ** -0.5
                init.uniform_(module.bias, -bound, bound)


@auto_docstring(
    custom_intro="""
    UN-EPT: sparse attention over a pyramid of encoder features, queried by features of a light spatial branch. The spatial
    branch also predicts boundaries, along which the scores are refined.
    """
)
class UNEPTForSemanticSegmentation(UNEPTPreTrainedModel):
    def __init__(self, config: UNEPTConfig):
        super().__init__(config)
        channels = self.backbone.channels
        num_levels = config.num_feature_levels or len(channels)
        if num_levels != len(channels):
            raise ValueError(
                f"`num_feature_levels` is {num_levels}, but the encoder returns {len(channels)} feature maps "
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
                '`decoder_self_attention="across_batch"` attends over the images of a batch, so predictions depend on the '
                "other images. It is meant for checkpoints that were trained with it: predict one image at a time, as the "
                "released evaluation does."
            )
        self.post_init()

    def pad_to_whole_patches(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        pixel_values, padded_size = super().pad_to_whole_patches(pixel_values)
        # the spatial branch needs the padding even if the encoder pads itself
        return pad_to_multiple(pixel_values, self.size_divisor), padded_size

    def decode(self, encoded: EncodedImage) -> UNEPTOutput:
        """Predict coarse `logits`, boundaries and directions at one eighth of the resolution from the output of `encode`."""
        pyramid = [
            projection(feature_map)
            for projection, feature_map in zip(self.projections, encoded.feature_maps, strict=True)
        ]
        context = self.spatial_branch(encoded.pixel_values)
        memory, spatial_shapes = self.encoder(pyramid)
        return UNEPTOutput(
            logits=self.classifier(self.decoder(context, memory, spatial_shapes)),
            boundary_logits=self.boundary_head(context),
            direction_logits=self.direction_head(context),
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def compute_loss(
        self,
        outputs: UNEPTOutput,
        labels: torch.Tensor,
        distance_maps: torch.Tensor,
        angle_maps: torch.Tensor,
        padded_size: tuple[int, int],
    ) -> dict[str, torch.Tensor]:
        """Compute the weighted terms of the loss from the output of `decode`."""
        config = self.config
        weights = {
            "loss_coarse": config.coarse_loss_weight,
            "loss_refined": config.refined_loss_weight,
            "loss_boundary": config.boundary_loss_weight,
            "loss_direction": config.direction_loss_weight,
        }
        terms = unept_losses(
            logits=outputs.logits,
            boundary_logits=outputs.boundary_logits,
            direction_logits=outputs.direction_logits,
            labels=labels,
            distance_maps=distance_maps,
            angle_maps=angle_maps,
            boundary_distance=config.boundary_distance,
            ignore_index=config.semantic_loss_ignore_index,
            semantic_reduction=config.semantic_loss_reduction,
            ignore_unlabeled_boundaries=config.ignore_unlabeled_boundaries,
            padded_size=padded_size,
        )
        return {name: weights[name] * term for name, term in terms.items()}

    def _window_scores(
        self,
        pixel_values: torch.Tensor,
        target_sizes: Sequence[tuple[int, int]],
        grid: WindowGrid,
        max_windows: int,
    ) -> Sequence[LazyScores]:
        if self.config.decoder_self_attention == "across_batch":
            # images of the batch attend to each other, but windows of one image must not
            max_windows = pixel_values.shape[0]
        if not self.config.refine_at_inference:
            return super()._window_scores(pixel_values, target_sizes, grid, max_windows)
        names = ("logits", "boundary_logits", "direction_logits")
        outputs, axes = self._run_windows(pixel_values, grid, max_windows, *names)
        return [
            RefinedScores(*image_outputs, *axes, target_size)
            for *image_outputs, target_size in zip(*outputs, target_sizes, strict=True)
        ]

    @can_return_tuple
    @slide_when_configured
    @auto_docstring(
        custom_intro="""
        In eval mode and without `labels`, images larger than `config.window_size` (if set) are processed in windows, and
        `logits` are averaged at full resolution. Compiled and exported models use no windows. Exported models without
        refinement return coarse logits for every size, over the padded image.
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
            Distance of each pixel to the edge of its class, from the image processor (`do_boundary_targets=True`) or
            [`compute_boundary_targets`]. Defaults to targets computed from `labels` on the CPU, one image after the other, which
            needs SciPy and takes a tenth of a second per image (512x512, 20 classes). Padding of the label map, such as a
            crop larger than the image, then counts as unlabeled pixels, and so as boundary unless
            `config.ignore_unlabeled_boundaries`; the image processor knows its own padding.
        angle_maps (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
            Direction toward the interior in degrees; required with `distance_maps`.

        Raises:
            ValueError: if `pixel_values` has another number of channels than the encoder, `labels` or a target has another
                size than `pixel_values`, a label is neither a class nor `config.semantic_loss_ignore_index`, or targets are
                missing in a compiled model or one of the two is missing.

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
        encoded = self.encode(pixel_values, **kwargs)
        outputs = self.decode(encoded)
        padded_size, logits = encoded.padded_size, outputs.logits
        if labels is not None:
            outputs = self.add_loss(outputs, labels, distance_maps, angle_maps, padded_size)
        # training does not read refined scores, which would be its largest tensor
        if self.config.refine_at_inference and not (self.training and labels is not None):
            logits = nn.functional.interpolate(logits, size=padded_size, mode="bilinear", align_corners=False)
            logits = crop(refine(logits, outputs.boundary_logits, outputs.direction_logits), size)
        else:
            logits = self.crop_padding(logits, padded_size, size)
        return replace(outputs, logits=logits)

    def _boundary_targets(
        self, labels: torch.Tensor, distance_maps: torch.Tensor | None, angle_maps: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if distance_maps is None and angle_maps is None and not torch.compiler.is_compiling():
            ignore_index = self.config.semantic_loss_ignore_index
            targets = zip(*(compute_boundary_targets(label_map, ignore_index) for label_map in labels), strict=True)
            distance_maps, angle_maps = (torch.stack(maps).to(labels.device) for maps in targets)
        if distance_maps is None or angle_maps is None:
            raise ValueError(
                "`labels` need both `distance_maps` and `angle_maps`, or none of them unless the model is compiled: the image "
                "processor returns them with `do_boundary_targets=True`."
            )
        for name, maps in (("distance_maps", distance_maps), ("angle_maps", angle_maps)):
            if maps.shape != labels.shape:
                raise ValueError(
                    f"`{name}` {tuple(maps.shape)} must have the shape of `labels` {tuple(labels.shape)}: resize, crop and "
                    "pad maps with the label map, or compute them afterwards."
                )
        return distance_maps, angle_maps


__all__ = ["UNEPTForSemanticSegmentation", "UNEPTOutput", "UNEPTPreTrainedModel"]
