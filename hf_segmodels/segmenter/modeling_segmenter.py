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
"""Segmenter: Transformer for Semantic Segmentation (https://huggingface.co/papers/2105.05633)."""

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
from ..plain_vit.configuration_plain_vit import PlainViTConfig
from ..plain_vit.modeling_plain_vit import PlainViTEncoder
from .configuration_segmenter import SegmenterConfig


# trf-ignore: TRF041 config.decoder_type


@auto_docstring(custom_intro="Output of [`SegmenterForSemanticSegmentation`].")
@dataclass
class SegmenterOutput(SemanticSegmenterOutput):
    r"""
    loss (`torch.Tensor` of shape `()`, *optional*, returned when `labels` are given):
        Sum of the terms in `loss_dict`.
    logits (`torch.Tensor` of shape `(batch_size, num_labels, height / patch_size, width / patch_size)`):
        Scores before softmax. The shape is `(batch_size, num_labels, height, width)` if height or width is not a multiple of
        the patch size, or windows were merged.
    loss_dict (`dict[str, torch.Tensor]`, *optional*, returned when `labels` are given):
        Terms of the loss: `loss_ce`, the cross-entropy, mean over the pixels that are not ignored.
    decoder_attentions (`tuple[torch.Tensor, ...]`, *optional*, returned when `output_attentions=True`):
        Attention weights of the mask transformer, each of shape `(batch_size, num_heads, num_patches + num_labels,
        num_patches + num_labels)`: patches first, then classes.
    """

    loss_dict: dict[str, torch.Tensor] | None = None
    decoder_attentions: tuple[torch.Tensor, ...] | None = None


class SegmenterLinearDecoder(nn.Module):
    """Point-wise linear layer from patch tokens to class scores (section 3.2, "Linear")."""

    def __init__(self, config: SegmenterConfig, in_channels: int):
        super().__init__()
        self.classifier = nn.Linear(in_channels, config.num_labels)

    def forward(self, features: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> tuple[torch.Tensor, None]:
        # (batch_size, D, h, w) -> (batch_size, h, w, K) -> (batch_size, K, h, w)
        return self.classifier(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous(), None


class SegmenterMaskTransformer(nn.Module):
    """
    Transformer layers in which patch tokens and one learned embedding per class attend to each other. The mask of a class is
    the cosine between the class embedding and the patch tokens, normalized over the classes (section 3.2, "Mask
    Transformer", equation 4).
    """

    def __init__(self, config: SegmenterConfig, in_channels: int):
        super().__init__()
        hidden_size, num_attention_heads = config.decoder_size(in_channels)
        encoder_config = PlainViTConfig(
            hidden_size=hidden_size,
            num_hidden_layers=config.decoder_num_hidden_layers,
            num_attention_heads=num_attention_heads,
            intermediate_size=config.decoder_intermediate_size,
            hidden_dropout_prob=config.decoder_dropout_prob,
            attention_probs_dropout_prob=config.decoder_dropout_prob,
            drop_path_rate=config.decoder_drop_path_rate,
            layer_norm_eps=config.decoder_layer_norm_eps,
            initializer_range=config.initializer_range,
            attn_implementation=config._attn_implementation,
        )
        self.projection = nn.Linear(in_channels, hidden_size)
        self.class_embeddings = nn.Parameter(torch.zeros(1, config.num_labels, hidden_size))
        self.encoder = PlainViTEncoder(encoder_config)
        self.layernorm = nn.LayerNorm(hidden_size, eps=config.decoder_layer_norm_eps)
        self.patch_projection = nn.Parameter(torch.zeros(hidden_size, hidden_size))
        self.class_projection = nn.Parameter(torch.zeros(hidden_size, hidden_size))
        self.mask_norm = nn.LayerNorm(config.num_labels, eps=config.decoder_layer_norm_eps)

    def forward(
        self, features: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        batch_size, _, height, width = features.shape
        # (batch_size, D, h, w) -> (batch_size, h * w, d), then the class embeddings are appended
        patches = self.projection(features.flatten(2).transpose(1, 2))
        tokens = torch.cat([patches, self.class_embeddings.expand(batch_size, -1, -1)], dim=1)
        outputs = self.encoder(tokens, **kwargs)
        tokens = self.layernorm(outputs.feature_maps[0])

        patches, classes = tokens.split([height * width, self.class_embeddings.shape[1]], dim=1)
        patches = patches @ self.patch_projection
        classes = classes @ self.class_projection
        patches = patches / patches.norm(dim=-1, keepdim=True)
        classes = classes / classes.norm(dim=-1, keepdim=True)
        masks = self.mask_norm(patches @ classes.transpose(1, 2))
        # (batch_size, h * w, K) -> (batch_size, K, h, w)
        return masks.transpose(1, 2).unflatten(2, (height, width)).contiguous(), outputs.attentions


@auto_docstring
class SegmenterPreTrainedModel(DensePredictionMixin, SegmentationPreTrainedModel):
    config: SegmenterConfig
    base_model_prefix = "segmenter"
    # weight decay, which the paper does not use, leaves out vectors, tokens, position and class embeddings
    parameter_rules = ((r"bias$|norm|_embeddings$|_token$", 1.0, 0.0),)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, SegmenterMaskTransformer):
            init.trunc_normal_(module.class_embeddings, std=std)
            for projection in (module.patch_projection, module.class_projection):
                init.normal_(projection, std=projection.shape[0] ** -0.5)
        elif isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std)


@auto_docstring(
    custom_intro="""
    Segmenter: a vision transformer with a linear or mask transformer decoder on its patch tokens.
    """
)
class SegmenterForSemanticSegmentation(SegmenterPreTrainedModel):
    def __init__(self, config: SegmenterConfig):
        super().__init__(config)
        decoder_class = SegmenterLinearDecoder if config.decoder_type == "linear" else SegmenterMaskTransformer
        self.decoder = decoder_class(config, self.backbone.channels[-1])
        self.post_init()

    def decode(self, encoded: EncodedImage, output_attentions: bool | None = None) -> SegmenterOutput:
        """
        Decode the last feature map to `logits` at the resolution of the patches. `output_attentions` requests
        `decoder_attentions`; defaults to `config.output_attentions`.
        """
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        logits, decoder_attentions = self.decoder(encoded.feature_maps[-1], output_attentions=output_attentions)
        return SegmenterOutput(
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
            decoder_attentions=decoder_attentions,
        )

    def compute_loss(
        self, outputs: SegmenterOutput, labels: torch.Tensor, padded_size: tuple[int, int]
    ) -> dict[str, torch.Tensor]:
        """Compute the terms of the loss from the output of `decode`."""
        ignore_index = self.config.semantic_loss_ignore_index
        return {"loss_ce": semantic_cross_entropy(outputs.logits, labels, ignore_index, padded_size=padded_size)}

    @can_return_tuple
    @slide_when_configured
    @auto_docstring(
        custom_intro="""
        In eval mode and without `labels`, images larger than `config.window_size` (if set) are processed in windows, and
        `logits` are averaged at full resolution. Compiled and exported models use no windows. Exported models return logits
        at the resolution of the patches for every size, over the padded image.
        """
    )
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SegmenterOutput:
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
        >>> from hf_segmodels import PlainViTConfig, SegmenterConfig, SegmenterForSemanticSegmentation

        >>> encoder = PlainViTConfig(
        ...     hidden_size=64, num_hidden_layers=2, num_attention_heads=1, position_embedding_interpolation="bilinear"
        ... )
        >>> model = SegmenterForSemanticSegmentation(SegmenterConfig(backbone_config=encoder, num_labels=19)).eval()
        >>> model(torch.zeros(1, 3, 512, 512)).logits.shape
        torch.Size([1, 19, 32, 32])
        ```
        """
        size = pixel_values.shape[-2], pixel_values.shape[-1]
        if labels is not None:
            self._check_labels(pixel_values, labels)
        encoded = self.encode(pixel_values, **kwargs)
        outputs = self.decode(encoded, kwargs.get("output_attentions"))
        if labels is not None:
            outputs = self.add_loss(outputs, labels, encoded.padded_size)
        return replace(outputs, logits=self.crop_padding(outputs.logits, encoded.padded_size, size))


__all__ = ["SegmenterForSemanticSegmentation", "SegmenterOutput", "SegmenterPreTrainedModel"]
