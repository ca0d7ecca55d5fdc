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
"""
Pilot model of RegProxy (https://huggingface.co/papers/2203.14043, section 3): a vision transformer on superpixels.

Table 1 compares it with the same classifier on square patches, which is Segmenter with the linear decoder. "Without bilinear
upsampling" in that table means that the label of each patch is repeated over its pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple

from ..image_processing.label_maps import label_histograms
from ..inference.prediction import eval_mode
from ..inference.region_painting import paint_labels, paint_scores, region_slots, resize_regions
from ..inference.window_grid import as_sizes
from ..modeling_utils import SegmentationPreTrainedModel
from ..plain_vit.embeddings import check_channels, split_position_embeddings
from ..plain_vit.modeling_plain_vit import PlainViTBackbone
from .configuration_superpixel_vit import SuperpixelViTConfig


@auto_docstring(custom_intro="Output of [`SuperpixelViTForSemanticSegmentation`].")
@dataclass
class SuperpixelViTOutput(SemanticSegmenterOutput):
    r"""
    loss (`torch.Tensor` of shape `()`, *optional*, returned when `labels` are given):
        Sum of the terms in `loss_dict`.
    logits (`torch.Tensor` of shape `(batch_size, num_labels, height, width)`, *optional*):
        Scores before softmax: each pixel has the scores of its superpixel, 0 in the padding. `None` in training with
        `labels`.
    token_logits (`torch.Tensor` of shape `(batch_size, num_superpixels, num_labels)`):
        Scores of each superpixel; 0 for superpixels that an image does not have.
    superpixels (`torch.LongTensor` of shape `(batch_size, height, width)`):
        Superpixel of each pixel, as in the input.
    loss_dict (`dict[str, torch.Tensor]`, *optional*, returned when `labels` are given):
        Terms of the loss: `loss_ce`, the cross-entropy with soft labels, mean over the superpixels with at least one pixel
        that is not ignored.
    """

    token_logits: torch.Tensor | None = None
    superpixels: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None


def superpixel_geometry(
    superpixels: torch.Tensor, num_superpixels: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Compute boxes and centroids of superpixels `(batch_size, height, width)`, int64, negative at pixels without a superpixel.

    Returns:
        Enclosing boxes `(batch_size, num_superpixels, 4)`, int64, as left, top, right and bottom, where right and bottom are
        exclusive; centroids `(batch_size, num_superpixels, 2)`, float32, as x and y, where the center of the first pixel is
        at 0.5; and `(batch_size, num_superpixels)`, bool, whether a superpixel has pixels. Boxes without pixels are empty.
    """
    height, width = superpixels.shape[1:]
    slots = region_slots(superpixels, num_superpixels)
    # coordinates of the pixels, 2 x (batch_size, height * width)
    y = torch.arange(height, device=slots.device)[:, None].expand(height, width).reshape(1, -1).expand_as(slots)
    x = torch.arange(width, device=slots.device)[None].expand(height, width).reshape(1, -1).expand_as(slots)
    # one more slot for pixels without a superpixel; integers, so that the order of summation on GPUs does not matter
    zeros = slots.new_zeros(slots.shape[0], num_superpixels + 1)

    def reduce(values: torch.Tensor, operation: str) -> torch.Tensor:
        return zeros.scatter_reduce(1, slots, values, operation, include_self=False)[:, :-1]

    counts = reduce(torch.ones_like(slots), "sum")
    is_present = counts > 0
    left_top = torch.stack([reduce(x, "amin"), reduce(y, "amin")], dim=-1)
    right_bottom = torch.stack([reduce(x, "amax"), reduce(y, "amax")], dim=-1) + is_present[..., None]
    sums = torch.stack([reduce(x, "sum"), reduce(y, "sum")], dim=-1)
    centroids = sums / counts.clamp(min=1)[..., None] + 0.5
    return torch.cat([left_top, right_bottom], dim=-1), centroids, is_present


def superpixel_soft_labels(
    superpixels: torch.Tensor, labels: torch.Tensor, num_superpixels: int, num_labels: int, ignore_index: int
) -> torch.Tensor:
    """
    Compute the histogram of the classes in each superpixel, over its pixels that are not ignored (equation 1):
    `(batch_size, num_superpixels, num_labels)`, float32. Rows sum to 1, or to 0 if all pixels of a superpixel are ignored.
    """
    counts = label_histograms(superpixels, labels, num_superpixels, num_labels, ignore_index)
    return counts / counts.sum(dim=2, keepdim=True).clamp(min=1)


def crop_superpixels(
    pixel_values: torch.Tensor, boxes: torch.Tensor, image_size: torch.Tensor, crop_size: int, sampling_ratio: int
) -> torch.Tensor:
    """
    Crop the boxes of superpixels (see [`superpixel_geometry`]) and resize them to squares by ROIAlign:
    `(batch_size * num_superpixels, num_channels, crop_size, crop_size)`, float32. `image_size` `(batch_size, 2)` holds width
    and height of each image without its padding; `sampling_ratio` is explained in [`SuperpixelViTConfig`].

    Raises:
        ImportError: if torchvision is not installed.
    """
    try:
        from torchvision.ops import roi_align
    except ImportError as error:
        raise ImportError(
            "SuperpixelViT crops superpixels with ROIAlign of torchvision: `pip install torchvision`."
        ) from error
    batch_size, num_channels, height, width = pixel_values.shape
    # samples near the border also read the pixel behind it: repeat the last pixel of the image there, instead of padding
    columns = torch.minimum(torch.arange(width, device=boxes.device), image_size[:, :1] - 1)
    rows = torch.minimum(torch.arange(height, device=boxes.device), image_size[:, 1:] - 1)
    images = pixel_values.gather(3, columns[:, None, None].expand(-1, num_channels, height, -1))
    images = images.gather(2, rows[:, None, :, None].expand(-1, num_channels, -1, width))
    # (batch_size, N, 4) -> (batch_size * N, 5), the index of the image first
    numbers = torch.arange(batch_size, device=boxes.device)[:, None, None].expand(-1, boxes.shape[1], 1)
    rois = torch.cat([numbers, boxes], dim=-1).flatten(0, 1).float()
    # float32: half precision is too coarse for coordinates, and CPUs have no kernel for bfloat16
    return roi_align(images.float(), rois, crop_size, sampling_ratio=sampling_ratio, aligned=True)


@auto_docstring
class SuperpixelViTPreTrainedModel(SegmentationPreTrainedModel):
    config: SuperpixelViTConfig
    base_model_prefix = "superpixel_vit"
    # the recipe of the main experiments: position embeddings, tokens and norms do not decay
    parameter_rules = ((r"norm|_embeddings$|_token$", 1.0, 0.0),)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)


@auto_docstring(
    custom_intro="""
    Pilot model of RegProxy: superpixels, resized to squares, are the tokens of a vision transformer. A linear layer classifies
    each token, and the scores are painted onto the pixels of the superpixel (section 3, Table 1).
    """
)
class SuperpixelViTForSemanticSegmentation(SuperpixelViTPreTrainedModel):
    backbone: PlainViTBackbone

    def __init__(self, config: SuperpixelViTConfig):
        super().__init__(config)
        self.classifier = nn.Linear(self.backbone.channels[-1], config.num_labels)
        self.post_init()

    def _check_inputs(self, pixel_values: torch.Tensor, superpixels: torch.Tensor | None) -> torch.Tensor:
        """Check images and superpixels, and return the superpixels as int64."""
        check_channels(pixel_values, self.backbone.config.num_channels)
        if superpixels is None:
            raise ValueError(
                "`superpixels` are missing: pass all outputs of the image processor, as in "
                "`model(**image_processor(image, return_tensors='pt'))`."
            )
        if superpixels.shape != (pixel_values.shape[0], *pixel_values.shape[2:]) or superpixels.is_floating_point():
            raise ValueError(
                "Expected integer `superpixels` with the batch size, height and width of `pixel_values` "
                f"{tuple(pixel_values.shape)}, got {tuple(superpixels.shape)} of {superpixels.dtype}."
            )
        self._check_not_empty(pixel_values)
        return superpixels.long()

    def _count_superpixels(self, superpixels: torch.Tensor) -> int:
        """Return `config.max_superpixels`, or the largest number of superpixels of an image in the batch."""
        limit = self.config.max_superpixels
        # reading values would break a compiled graph and stall a GPU
        if limit is not None and (superpixels.device.type != "cpu" or torch.compiler.is_compiling()):
            return limit
        number = int(superpixels.max()) + 1
        if number < 1:
            raise ValueError(
                "`superpixels` is negative everywhere, so all pixels are padding: number superpixels from 0."
            )
        if limit is not None and number > limit:
            raise ValueError(
                f"An image has {number} superpixels but `max_superpixels` is {limit}: increase `max_superpixels` in the "
                "configuration, or decrease `n_segments` of the image processor."
            )
        return limit or number

    def _sample_position_embeddings(self, centroids: torch.Tensor, image_size: torch.Tensor) -> torch.Tensor:
        """
        Return position embeddings `(batch_size, num_prefix_tokens + num_superpixels, hidden_size)`. The embeddings of the
        grid are sampled at the centroids, relative to the image. For square patches this equals resizing the grid.
        """
        config = self.backbone.config
        prefix, grid = split_position_embeddings(
            self.backbone.embeddings.position_embeddings, config.num_prefix_tokens, config.position_grid
        )
        # (batch_size, N, 2) in pixels -> (1, batch_size, N, 2) from -1 at the left or top edge to 1 at the other
        positions = (2 * centroids / image_size[:, None] - 1)[None]
        mode = config.position_embedding_interpolation
        sampled = nn.functional.grid_sample(
            grid.float(), positions, mode=mode, padding_mode="border", align_corners=False
        )
        # (1, D, batch_size, N) -> (batch_size, N, D)
        sampled = sampled[0].permute(1, 2, 0).to(prefix.dtype)
        return torch.cat([prefix.expand(sampled.shape[0], -1, -1), sampled], dim=1)

    def classify_superpixels(
        self, pixel_values: torch.Tensor, superpixels: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> SuperpixelViTOutput:
        """Encode and classify superpixels `(batch_size, height, width)`; the output has no `logits`."""
        embedder, backbone_config = self.backbone.embeddings, self.backbone.config
        batch_size, num_superpixels = superpixels.shape[0], self._count_superpixels(superpixels)
        boxes, centroids, is_present = superpixel_geometry(superpixels, num_superpixels)
        # (batch_size, 2), width and height; an image that is all padding counts as one pixel
        image_size = boxes[..., 2:].amax(dim=1).clamp(min=1)
        crops = crop_superpixels(
            pixel_values, boxes, image_size, backbone_config.patch_size, self.config.roi_align_sampling_ratio
        )
        # (batch_size * N, D, 1, 1) -> (batch_size, N, D)
        tokens = embedder.patch_embeddings(crops).flatten(1).unflatten(0, (batch_size, num_superpixels))
        embeddings = embedder.assemble(tokens, self._sample_position_embeddings(centroids, image_size))

        # prefix tokens, then superpixels
        token_mask = nn.functional.pad(is_present, (backbone_config.num_prefix_tokens, 0), value=True)
        attention_mask = create_bidirectional_mask(
            config=backbone_config, inputs_embeds=embeddings, attention_mask=token_mask
        )
        flags = self._with_output_flags(kwargs)
        outputs = self.backbone.encode_tokens(embeddings, attention_mask=attention_mask, **flags)
        token_logits = self.classifier(outputs.feature_maps[-1]).masked_fill(~is_present[..., None], 0.0)
        return SuperpixelViTOutput(
            token_logits=token_logits,
            superpixels=superpixels,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def compute_loss(self, outputs: SuperpixelViTOutput, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Compute the terms of the loss from the output of `classify_superpixels`: the cross-entropy with soft labels, mean over
        the superpixels with a label. Without any label it is 0 and has a gradient.
        """
        token_logits, ignore_index = outputs.token_logits, self.config.semantic_loss_ignore_index
        soft_labels = superpixel_soft_labels(outputs.superpixels, labels, *token_logits.shape[1:], ignore_index)
        # (batch_size, N, K) -> (batch_size * N, K)
        pair = token_logits.float().flatten(0, 1), soft_labels.flatten(0, 1)
        total = nn.functional.cross_entropy(*pair, reduction="sum")
        return {"loss_ce": total / (soft_labels.sum(dim=2) > 0).sum().clamp(min=1)}

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor,
        superpixels: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SuperpixelViTOutput:
        r"""
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
            Normalized images of any size.
        superpixels (`torch.LongTensor` of shape `(batch_size, height, width)`):
            Superpixel of each pixel, counted from 0 in each image, -1 in the padding: the output of
            [`SuperpixelViTImageProcessor`], or any other partition of the images.
        labels (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
            Class of each pixel, or `config.semantic_loss_ignore_index` for pixels that do not count.

        Raises:
            ValueError: if `superpixels` are missing, `superpixels` or `labels` have another size than `pixel_values`,
                `pixel_values` has another number of channels than the encoder, an image has more than
                `config.max_superpixels` superpixels, or a label is neither a class nor `config.semantic_loss_ignore_index`.
            ImportError: if torchvision is not installed.

        Example:

        ```python
        >>> import torch
        >>> from hf_segmodels import PlainViTConfig, SuperpixelViTConfig, SuperpixelViTForSemanticSegmentation

        >>> encoder = PlainViTConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=1)
        >>> model = SuperpixelViTForSemanticSegmentation(SuperpixelViTConfig(backbone_config=encoder, num_labels=19))
        >>> superpixels = torch.arange(8).repeat_interleave(4).repeat(32, 1)[None]  # eight upright stripes
        >>> outputs = model.eval()(torch.zeros(1, 3, 32, 32), superpixels)
        >>> outputs.token_logits.shape, outputs.logits.shape
        (torch.Size([1, 8, 19]), torch.Size([1, 19, 32, 32]))
        ```
        """
        superpixels = self._check_inputs(pixel_values, superpixels)
        if labels is not None:
            self._check_labels(pixel_values, labels)
        outputs = self.classify_superpixels(pixel_values, superpixels, **kwargs)
        if labels is not None:
            outputs = self.add_loss(outputs, labels)
        if labels is None or not self.training:
            outputs = replace(outputs, logits=paint_scores(outputs.token_logits, superpixels))
        return outputs

    @torch.no_grad()
    def predict(
        self,
        pixel_values: torch.Tensor,
        target_sizes: Sequence[tuple[int, int]] | torch.Tensor | None = None,
        *,
        superpixels: torch.Tensor | None = None,
        return_scores: bool = False,
        **options: Any,
    ) -> list[torch.Tensor]:
        """
        Segment whole images at one scale, without dropout and stochastic depth in any mode of the model. Label maps are found
        without scores at full resolution: the label of each superpixel is painted.

        Args:
            pixel_values, target_sizes, return_scores: See [`~DensePredictionMixin.predict`]. Superpixels are resized to
                `target_sizes` (nearest).
            superpixels (`torch.LongTensor` of shape `(batch_size, height, width)`): Superpixel of each pixel, from the image
                processor.
            options: Options of `predict` of the other models, such as `window_size`, `scales` and `flip`. Superpixels belong to
                the whole image, so only their defaults (and `window_size=0`) are accepted.

        Returns:
            For each image a label map `(height, width)`, int64; or, with `return_scores`, logits `(num_labels, height,
            width)`, float32.

        Raises:
            ValueError: if an option is not its default, `superpixels` do not fit `pixel_values`, or `target_sizes` are not
                one size of at least one pixel for each image.
        """
        options.pop("max_windows", None)
        changed = [name for name, value in options.items() if value not in (None, 0, (1.0,), [1.0])]
        if changed:
            raise ValueError(
                f"{changed} cannot be used with superpixels, which belong to the whole image: leave `window_size`, "
                "`window_stride`, `scales` and `flip` out."
            )
        superpixels = self._check_inputs(pixel_values, superpixels)
        if target_sizes is None:
            target_sizes = [(pixel_values.shape[2], pixel_values.shape[3])] * pixel_values.shape[0]
        sizes = as_sizes(target_sizes, len(pixel_values))
        with eval_mode(self):
            token_logits = self.classify_superpixels(pixel_values, superpixels).token_logits
        paint = paint_scores if return_scores else paint_labels
        return [
            paint(logits[None].float(), resize_regions(regions[None], size))[0]
            for logits, regions, size in zip(token_logits, superpixels, sizes, strict=True)
        ]


__all__ = ["SuperpixelViTForSemanticSegmentation", "SuperpixelViTOutput", "SuperpixelViTPreTrainedModel"]
