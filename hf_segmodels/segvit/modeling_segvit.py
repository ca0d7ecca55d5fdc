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

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple, maybe_autocast

from ..inference import DensePredictionMixin, MaskScores, WindowGrid, slide_when_configured
from ..modeling_utils import EncodedImage, SegmentationPreTrainedModel
from ..utils.export import crop
from .configuration_segvit import SegViTConfig
from .decoder import SegViTDecoder, SegViTQueryUpsampling, SegViTXavierLinear, resize_maps
from .loss_segvit import attention_to_mask_loss, count_masks, present_classes


# trf-ignore: TRF041 config.decoder_type, config.odd_size_mode, config.use_auxiliary_loss, config.min_scaled_size


@auto_docstring(custom_intro="Output of [`SegViTForSemanticSegmentation`].")
@dataclass
class SegViTOutput(SemanticSegmenterOutput):
    r"""
    loss (`torch.Tensor` of shape `()`, *optional*, returned when `labels` are given):
        Sum of the terms in `loss_dict`.
    logits (`torch.Tensor` of shape `(batch_size, num_labels, height, width)`, float32, *optional*):
        Scores of the classes at full resolution: the sum over the queries of the mask of a query, after the sigmoid, times
        its probability of the class. Scores are not negative and must not pass a softmax. `None` in training with `labels`,
        since the loss is computed from queries and masks.
    class_queries_logits (`torch.Tensor` of shape `(batch_size, num_labels, num_labels + 1)`):
        Class scores of each query before softmax; "no object" comes last. `None` if windows were merged.
    masks_queries_logits (`torch.Tensor` of shape `(batch_size, num_labels, h, w)`):
        Mask of each query before upsampling and sigmoid. `None` if windows were merged.
    auxiliary_class_queries_logits (`torch.Tensor` of shape `(batch_size, num_stages - 1, num_labels, num_labels + 1)`, *optional*):
        `class_queries_logits` of the earlier stages (layers, in a `"shrunk"` decoder), first to last.
    auxiliary_masks_queries_logits (`torch.Tensor` of shape `(batch_size, num_stages - 1, num_labels, h, w)`, *optional*):
        `masks_queries_logits` of the earlier stages (layers, in a `"shrunk"` decoder), first to last.
    loss_dict (`dict[str, torch.Tensor]`, *optional*, returned when `labels` are given):
        Weighted terms of the loss: `loss_ce`, `loss_mask` and `loss_dice` of the last stage, and of the earlier stages with
        the suffixes `_0`, `_1`, ...
    """

    class_queries_logits: torch.Tensor | None = None
    masks_queries_logits: torch.Tensor | None = None
    auxiliary_class_queries_logits: torch.Tensor | None = None
    auxiliary_masks_queries_logits: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None


@auto_docstring
class SegViTPreTrainedModel(DensePredictionMixin, SegmentationPreTrainedModel):
    config: SegViTConfig
    base_model_prefix = "segvit"
    _no_split_modules = ["SegViTDecoderLayer"]
    # the released recipe: the decoder has ten times the learning rate and decays; norms of the encoder do not decay
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
    SegViT: a vision transformer, and a decoder in which the attention of a class to the patches is the mask of the class.
    """
)
class SegViTForSemanticSegmentation(SegViTPreTrainedModel):
    def __init__(self, config: SegViTConfig):
        super().__init__(config)
        self.decoder = SegViTDecoder(config, self.backbone.channels)
        self.post_init()

    def pad_to_whole_patches(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        padded, padded_size = super().pad_to_whole_patches(pixel_values)
        if self.config.odd_size_mode == "resize":
            # masks extend over the unpadded image
            padded_size = pixel_values.shape[-2], pixel_values.shape[-1]
        return padded, padded_size

    def decode(self, encoded: EncodedImage) -> SegViTOutput:
        """Predict class and mask of each query from the output of `encode`; `class_scores` computes `logits` from them."""
        class_logits, mask_logits = self.decoder(encoded.feature_maps)
        has_auxiliary = len(class_logits) > 1
        return SegViTOutput(
            class_queries_logits=class_logits[-1],
            masks_queries_logits=mask_logits[-1],
            auxiliary_class_queries_logits=torch.stack(class_logits[:-1], dim=1) if has_auxiliary else None,
            auxiliary_masks_queries_logits=torch.stack(mask_logits[:-1], dim=1) if has_auxiliary else None,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def compute_loss(
        self, outputs: SegViTOutput, labels: torch.Tensor, padded_size: tuple[int, int]
    ) -> dict[str, torch.Tensor]:
        """Compute the weighted terms of the loss from the output of `decode`, the last stage first."""
        config = self.config
        ignore_index = config.semantic_loss_ignore_index
        weights = {
            "loss_ce": config.class_loss_weight,
            "loss_mask": config.mask_loss_weight,
            "loss_dice": config.dice_loss_weight,
        }
        stages = [("", outputs.class_queries_logits, outputs.masks_queries_logits)]
        if outputs.auxiliary_class_queries_logits is not None:
            auxiliary = (outputs.auxiliary_class_queries_logits, outputs.auxiliary_masks_queries_logits)
            pairs = zip(*(logits.unbind(dim=1) for logits in auxiliary), strict=True)
            stages += [(f"_{stage}", *pair) for stage, pair in enumerate(pairs)]
        num_masks = count_masks(present_classes(labels, config.num_labels, ignore_index))
        terms: dict[str, torch.Tensor] = {}
        for suffix, class_logits, mask_logits in stages:
            stage_terms = attention_to_mask_loss(
                class_logits, mask_logits, labels, num_masks, config.no_object_weight, ignore_index, padded_size
            )
            terms |= {f"{name}{suffix}": weights[name] * term for name, term in stage_terms.items()}
        return terms

    def class_scores(self, outputs: SegViTOutput, padded_size: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
        """
        Compute scores of the classes `(batch_size, num_labels, *size)`, float32, from the output of `decode` (section 3.2,
        "inference"). The masks extend over `padded_size`, the image over `size`, both `(height, width)` in pixels.
        """
        class_logits, mask_logits = outputs.class_queries_logits, outputs.masks_queries_logits
        prediction_size = self.config.fixed_prediction_size
        # float32: classes differ by little, and their scores are sums of many small terms
        with maybe_autocast(mask_logits.device.type, enabled=False):
            masks = resize_maps(mask_logits.float(), prediction_size or padded_size)
            probabilities = class_logits.float().softmax(dim=-1)[..., :-1]
            scores = torch.einsum("bqk,bqhw->bkhw", probabilities, masks.sigmoid())
        if prediction_size is not None:
            scores = resize_maps(scores, padded_size)
        return crop(scores, size)

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
        names = ("class_queries_logits", "masks_queries_logits")
        queries, axes = self._run_windows(pixel_values, grid, max_windows, *names)
        return MaskScores.from_windows(*queries, axes, target_sizes, self.config.fixed_prediction_size)

    @can_return_tuple
    @slide_when_configured
    @auto_docstring(
        custom_intro="""
        In eval mode and without `labels`, images larger than `config.window_size` (if set) are processed in windows, and
        `logits` are averaged. Compiled and exported models use no windows. `predict` finds label maps without scores at
        full resolution.
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
            ValueError: if `pixel_values` has another number of channels than the encoder, `labels` has another size than
                `pixel_values`, or a label is neither a class nor `config.semantic_loss_ignore_index`.

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
        size = pixel_values.shape[-2], pixel_values.shape[-1]
        if labels is not None:
            self._check_labels(pixel_values, labels)
        encoded = self.encode(pixel_values, **kwargs)
        outputs = self.decode(encoded)
        if labels is not None:
            outputs = self.add_loss(outputs, labels, encoded.padded_size)
        # the loss does not need the scores of classes, which would dominate the time and memory of training
        if labels is None or not self.training:
            outputs = replace(outputs, logits=self.class_scores(outputs, encoded.padded_size, size))
        return outputs


__all__ = ["SegViTForSemanticSegmentation", "SegViTOutput", "SegViTPreTrainedModel"]
