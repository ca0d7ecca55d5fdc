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
"""RegProxy: Semantic Segmentation by Early Region Proxy (https://huggingface.co/papers/2203.14043)."""

from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring
from transformers.utils.generic import can_return_tuple

from ..inference import DensePredictionMixin, slide_when_configured
from ..losses.semantic_cross_entropy import semantic_cross_entropy
from ..modeling_utils import EncodedImage, SegmentationPreTrainedModel
from ..plain_vit.configuration_plain_vit import is_plain_vit
from .configuration_regproxy import RegProxyConfig
from .loss_regproxy import homogeneity_loss
from .painting import neighbors, paint


# trf-ignore: TRF041 config.affinity_conv, config.mask_border, config.odd_size_mode, config.homogeneity_loss_weight


@auto_docstring(custom_intro="Output of [`RegProxyForSemanticSegmentation`].")
@dataclass
class RegProxyOutput(SemanticSegmenterOutput):
    r"""
    loss (`torch.Tensor` of shape `()`, *optional*, returned when `labels` are given):
        Sum of the terms in `loss_dict`.
    logits (`torch.Tensor` of shape `(batch_size, num_labels, H * h, W * w)`):
        Painted scores before softmax. The shape is `(batch_size, num_labels, height, width)` if height or width is not a
        multiple of the patch size, or windows were merged.
    affinity (`torch.Tensor` of shape `(batch_size, 9, h, w, H, W)`):
        Regions: the affinity of the `(h, w)` pixels in the cell of each token to the 3x3 tokens around it, row by row. Sums
        to one over these tokens. `None` if windows were merged.
    token_logits (`torch.Tensor` of shape `(batch_size, H * W, num_labels)`):
        Scores of each token, row by row. `None` if windows were merged.
    loss_dict (`dict[str, torch.Tensor]`, *optional*, returned when `labels` are given):
        Weighted terms of the loss: the cross-entropy `loss_ce`, and `loss_homogeneity` if
        `config.homogeneity_loss_weight` is not 0.
    """

    affinity: torch.Tensor | None = None
    token_logits: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None


class RegProxyConvLayer(nn.Module):
    """Convolution that keeps the size of its input, followed by batch norm and ReLU."""

    def __init__(self, num_channels: int, kernel_size: int, groups: int, eps: float):
        super().__init__()
        self.convolution = nn.Conv2d(
            num_channels, num_channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=False
        )
        self.normalization = nn.BatchNorm2d(num_channels, eps=eps)
        self.activation = nn.ReLU()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.activation(self.normalization(self.convolution(features)))


class RegProxyAffinityHead(nn.Module):
    """Prediction of the affinity of each pixel to the 3x3 tokens around it (section 4.2, figure 4)."""

    def __init__(self, config: RegProxyConfig, in_channels: int):
        super().__init__()
        self.cell_size = config.cell_size
        self.mask_border = config.mask_border
        self.spatial_conv = self.pointwise_conv = nn.Identity()
        if config.affinity_conv != "none":
            groups = in_channels if config.affinity_conv == "depthwise" else 1
            self.spatial_conv = RegProxyConvLayer(in_channels, 3, groups, config.batch_norm_eps)
        if config.affinity_conv == "depthwise":
            self.pointwise_conv = RegProxyConvLayer(in_channels, 1, 1, config.batch_norm_eps)
        self.predictor = nn.Conv2d(in_channels, 9 * self.cell_size[0] * self.cell_size[1], kernel_size=1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Features `(batch_size, D, H, W)` -> affinity `(batch_size, 9, h, w, H, W)`."""
        scores = self.predictor(self.pointwise_conv(self.spatial_conv(features)))
        scores = scores.unflatten(1, (9, *self.cell_size))
        if self.mask_border:
            _, is_inside = neighbors(*features.shape[-2:], device=features.device)
            scores = scores.masked_fill(~is_inside[:, None, None], -torch.inf)
        return scores.softmax(dim=1)


class RegProxyDecoder(nn.Module):
    """Regions from early features and classes from late features."""

    def __init__(self, config: RegProxyConfig, affinity_channels: int, classifier_channels: int):
        super().__init__()
        self.affinity_head = RegProxyAffinityHead(config, affinity_channels)
        self.classifier = nn.Linear(classifier_channels, config.num_labels)

    def forward(
        self, early_features: torch.Tensor, late_features: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Feature maps `(batch_size, D, H, W)` -> affinity, and token logits `(batch_size, H * W, num_labels)`."""
        # an exported graph has symbolic sizes, which have no hash
        if not torch.compiler.is_compiling():
            sizes = {tuple(features.shape[-2:]) for features in (early_features, *late_features)}
            if len(sizes) > 1:
                raise ValueError(
                    f"The feature maps of the encoder differ in size, {sorted(sizes)}, but a region needs its token in each: "
                    "set `token_head_depth` and `classifier_layers` to layers of one size, such as the same stage of a "
                    "hierarchical encoder."
                )
        # (batch_size, D, H, W) -> (batch_size, H * W, D)
        tokens = torch.cat(late_features, dim=1).flatten(2).transpose(1, 2)
        return self.affinity_head(early_features), self.classifier(tokens)


@auto_docstring
class RegProxyPreTrainedModel(DensePredictionMixin, SegmentationPreTrainedModel):
    config: RegProxyConfig
    base_model_prefix = "regproxy"
    # the released recipe: norms, tokens and positions of the encoder do not decay; biases and norms of the head do
    parameter_rules = ((r"^backbone\..*(norm|position_embeddings|_tokens?$)", 1.0, 0.0),)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


@auto_docstring(
    custom_intro="""
    RegProxy: a vision transformer whose tokens represent learned regions, a linear classifier for the tokens, and
    painting of the token scores onto the regions.
    """
)
class RegProxyForSemanticSegmentation(RegProxyPreTrainedModel):
    def __init__(self, config: RegProxyConfig):
        # again after the configuration did it: `from_pretrained(..., token_head_depth=3)` sets fields of a built configuration
        config.set_backbone_out_indices()
        super().__init__(config)
        self.early_index = config.feature_layers.index(config.token_head_depth)
        self.late_indices = [config.feature_layers.index(layer) for layer in config.classifier_layer_indices]
        channels = self.backbone.channels
        late_channels = sum(channels[index] for index in self.late_indices)
        self.decoder = RegProxyDecoder(config, channels[self.early_index], late_channels)
        self.post_init()

    def pad_to_whole_patches(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        padded, padded_size = super().pad_to_whole_patches(pixel_values)
        if self.config.odd_size_mode == "resize":
            # logits extend over the unpadded image
            padded_size = pixel_values.shape[-2], pixel_values.shape[-1]
            # CODEPATH: all released checkpoints; other encoders would leave out pixels of partial patches
            if is_plain_vit(self.config.backbone_config):
                padded = pixel_values  # also for a hybrid stem, which pads each convolution itself, on all sides
        return padded, padded_size

    def decode(self, encoded: EncodedImage) -> RegProxyOutput:
        """Predict regions and classes of the tokens from the output of `encode`, and paint `logits` at the stride of regions."""
        late_features = [encoded.feature_maps[index] for index in self.late_indices]
        affinity, token_logits = self.decoder(encoded.feature_maps[self.early_index], late_features)
        return RegProxyOutput(
            logits=paint(token_logits, affinity),
            affinity=affinity,
            token_logits=token_logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def compute_loss(
        self, outputs: RegProxyOutput, labels: torch.Tensor, padded_size: tuple[int, int]
    ) -> dict[str, torch.Tensor]:
        """Compute the weighted terms of the loss from the output of `decode`."""
        config = self.config
        ignore_index, weight = config.semantic_loss_ignore_index, config.homogeneity_loss_weight
        terms = {
            "loss_ce": semantic_cross_entropy(
                outputs.logits, labels, ignore_index, config.loss_reduction, padded_size=padded_size
            )
        }
        if weight != 0:
            homogeneity = homogeneity_loss(outputs.affinity, labels, config.num_labels, ignore_index, padded_size)
            terms["loss_homogeneity"] = weight * homogeneity
        return terms

    @can_return_tuple
    @slide_when_configured
    @auto_docstring(
        custom_intro="""
        In eval mode and without `labels`, images larger than `config.window_size` (if set) are processed in windows, and
        `logits` are averaged at full resolution. Compiled and exported models use no windows. Exported models return logits
        at the stride of the painted regions for every size, over the padded image.
        """
    )
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> RegProxyOutput:
        r"""
        pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`):
            Normalized images of any size.
        labels (`torch.LongTensor` of shape `(batch_size, height, width)`, *optional*):
            Class of each pixel, or `config.semantic_loss_ignore_index` for pixels that do not count.

        Raises:
            ValueError: if `pixel_values` has another number of channels than the encoder, `labels` has another size than
                `pixel_values`, or a label is neither a class nor `config.semantic_loss_ignore_index`.

        Example:

        ```python
        >>> import torch
        >>> from hf_segmodels import PlainViTConfig, RegProxyConfig, RegProxyForSemanticSegmentation

        >>> encoder = PlainViTConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=1)
        >>> config = RegProxyConfig(backbone_config=encoder, token_head_depth=1, num_labels=19)
        >>> outputs = RegProxyForSemanticSegmentation(config).eval()(torch.zeros(1, 3, 512, 512))
        >>> outputs.logits.shape, outputs.token_logits.shape
        (torch.Size([1, 19, 128, 128]), torch.Size([1, 1024, 19]))
        ```
        """
        size = pixel_values.shape[-2], pixel_values.shape[-1]
        if labels is not None:
            self._check_labels(pixel_values, labels)
        encoded = self.encode(pixel_values, **kwargs)
        outputs = self.decode(encoded)
        if labels is not None:
            outputs = self.add_loss(outputs, labels, encoded.padded_size)
        return replace(outputs, logits=self.crop_padding(outputs.logits, encoded.padded_size, size))


__all__ = ["RegProxyForSemanticSegmentation", "RegProxyOutput", "RegProxyPreTrainedModel"]
