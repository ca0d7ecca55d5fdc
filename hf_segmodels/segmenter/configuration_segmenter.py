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
"""Configuration of Segmenter."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers.utils import auto_docstring

from ..configuration_utils import SegmentationConfig
from ..plain_vit.configuration_plain_vit import PlainViTConfig, is_plain_vit


@auto_docstring(
    custom_intro="""
    Configuration of [`SegmenterForSemanticSegmentation`]. The defaults give Seg-B-Mask/16 for ADE20K as the released
    code builds it.
    """
)
@strict
class SegmenterConfig(SegmentationConfig):
    r"""
    backbone_config (`PreTrainedConfig` or `dict`, *optional*):
        Configuration of the encoder, whose last feature map is decoded: a [`PlainViTConfig`] or the configuration of any
        transformers backbone (DINOv2, DINOv3, BEiT, Swin, ...). Defaults to ViT-B/16 as in the paper, with a LayerNorm
        epsilon of 1e-5, bilinear position embeddings and stochastic depth 0.1.
    decoder_type (`"mask_transformer"` or `"linear"`, *optional*, defaults to `"mask_transformer"`):
        Decoder of section 3.2: the mask transformer (Seg-*-Mask) or the point-wise linear layer (Seg-*).
    decoder_hidden_size (`int`, *optional*):
        Hidden size of the mask transformer. Defaults to the number of channels of the feature map.
    decoder_num_hidden_layers (`int`, *optional*, defaults to 2):
        Number of layers of the mask transformer.
    decoder_num_attention_heads (`int`, *optional*):
        Number of attention heads of the mask transformer. Defaults to one for every 64 channels, at least one.
    decoder_intermediate_size (`int`, *optional*):
        Hidden size of the MLPs in the mask transformer. Defaults to four times `decoder_hidden_size`.
    decoder_dropout_prob (`float`, *optional*, defaults to 0.1):
        Dropout in the mask transformer, as in the released code. The paper uses no dropout.
    decoder_drop_path_rate (`float`, *optional*, defaults to 0.0):
        Stochastic depth in the mask transformer.
    decoder_layer_norm_eps (`float`, *optional*, defaults to 1e-05):
        Epsilon of the LayerNorms of the decoder.
    small_image_mode (`"upscale"`, `"pad"` or `"none"`, *optional*, defaults to `"upscale"`):
        How images smaller than the window are enlarged; see [`SegmentationConfig`]. The released code upscales.
    initializer_range (`float`, *optional*, defaults to 0.02):
        Standard deviation of the truncated normal that initializes linear layers and class embeddings.

    Example:

    ```python
    >>> from hf_segmodels import PlainViTConfig, SegmenterConfig, SegmenterForSemanticSegmentation

    >>> # Seg-Ti-Mask/16; the defaults of PlainViTConfig follow the other methods
    >>> encoder = PlainViTConfig(
    ...     hidden_size=192,
    ...     num_attention_heads=3,
    ...     layer_norm_eps=1e-5,
    ...     position_embedding_interpolation="bilinear",
    ...     drop_path_rate=0.1,
    ... )
    >>> model = SegmenterForSemanticSegmentation(SegmenterConfig(backbone_config=encoder, num_labels=19))
    ```
    """

    model_type = "segmenter"

    decoder_type: Literal["mask_transformer", "linear"] = "mask_transformer"
    decoder_hidden_size: int | None = None
    decoder_num_hidden_layers: int = 2
    decoder_num_attention_heads: int | None = None
    decoder_intermediate_size: int | None = None
    decoder_dropout_prob: float | int = 0.1
    decoder_drop_path_rate: float | int = 0.0
    decoder_layer_norm_eps: float | int = 1e-5
    small_image_mode: Literal["upscale", "pad", "none"] = "upscale"

    @staticmethod
    def _default_backbone_config() -> PlainViTConfig:
        return PlainViTConfig(layer_norm_eps=1e-5, position_embedding_interpolation="bilinear", drop_path_rate=0.1)

    def validate_architecture(self):
        """Check the fields against each other, as part of the `@strict` validation."""
        self._check_at_least_one(
            "decoder_hidden_size",
            "decoder_num_hidden_layers",
            "decoder_num_attention_heads",
            "decoder_intermediate_size",
        )
        hidden_size = self.decoder_hidden_size
        if hidden_size is None and is_plain_vit(self.backbone_config):
            hidden_size = self.backbone_config.hidden_size
        if hidden_size is not None and self.decoder_type == "mask_transformer":
            self.decoder_size(hidden_size)

    def decoder_size(self, in_channels: int) -> tuple[int, int]:
        """
        Return hidden size and number of attention heads of the mask transformer for feature maps of `in_channels`.

        Raises:
            ValueError: if the hidden size is not a multiple of the number of heads.
        """
        hidden_size = self.decoder_hidden_size or in_channels
        heads = self.decoder_num_attention_heads or max(1, hidden_size // 64)
        if hidden_size % heads != 0:
            raise ValueError(
                f"`decoder_hidden_size` ({hidden_size}; defaults to the hidden size of the encoder) must be a multiple of "
                f"`decoder_num_attention_heads` ({heads}; defaults to one for every 64 channels): set one of the two."
            )
        return hidden_size, heads


__all__ = ["SegmenterConfig"]
