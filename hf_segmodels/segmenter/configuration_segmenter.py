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
        Configuration of the encoder: a [`PlainViTConfig`] (the paper's; ViT-B/16 with LayerNorm epsilon 1e-5,
        bilinear position embeddings and stochastic depth 0.1 by default), or that of any transformers backbone
        (DINOv2, DINOv3, BEiT, Swin, ...). Its last feature map is decoded.
    decoder_type (`"mask_transformer"` or `"linear"`, *optional*, defaults to `"mask_transformer"`):
        Which decoder of section 3.2: the mask transformer (Seg-*-Mask) or the point-wise linear layer (Seg-*).
    decoder_hidden_size (`int`, *optional*):
        Width of the mask transformer; the encoder's width when not given.
    decoder_num_hidden_layers (`int`, *optional*, defaults to 2):
        Layers of the mask transformer.
    decoder_num_attention_heads (`int`, *optional*):
        Its heads; one for every 64 channels (at least one) when not given.
    decoder_intermediate_size (`int`, *optional*):
        Width of its MLPs' hidden layer; four times its width when not given.
    decoder_dropout_prob (`float`, *optional*, defaults to 0.1):
        Dropout in the mask transformer (the released code's default; the paper says none).
    decoder_drop_path_rate (`float`, *optional*, defaults to 0.0):
        Stochastic depth in the mask transformer.
    decoder_layer_norm_eps (`float`, *optional*, defaults to 1e-05):
        Epsilon of the decoder's LayerNorms.
    freeze_backbone (`bool`, *optional*, defaults to `False`):
        Whether the encoder gets no gradients and stays in eval mode while training.
    semantic_loss_ignore_index (`int`, *optional*, defaults to 255):
        Label of pixels that do not count in the loss.
    window_size (`int` or pair, *optional*):
        Sliding window `(height, width)` for `predict` and for `forward` in eval mode; none when not given. The
        released models use their training crop.
    window_stride (`int` or pair, *optional*):
        Stride of the window; the window size when not given.
    small_image_mode (`"upscale"`, `"pad"` or `"none"`, *optional*, defaults to `"upscale"`):
        What happens to images smaller than the window: scaled up until the short side fills it (the released
        code), padded with zeros at the bottom and right, or nothing.
    initializer_range (`float`, *optional*, defaults to 0.02):
        Standard deviation of the truncated normal that initializes linear layers and class embeddings.

    Example:

    ```python
    >>> from hf_segmodels import PlainViTConfig, SegmenterConfig, SegmenterForSemanticSegmentation

    >>> # Seg-Ti-Mask/16: PlainViTConfig's own defaults are those of the other methods
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
        """Part of the `@strict` validation: checks fields against each other."""
        self._check_at_least_one(
            "decoder_hidden_size",
            "decoder_num_hidden_layers",
            "decoder_num_attention_heads",
            "decoder_intermediate_size",
        )
        width = self.decoder_hidden_size
        if width is None and is_plain_vit(self.backbone_config):
            width = self.backbone_config.hidden_size
        if width is not None and self.decoder_type == "mask_transformer":
            self.decoder_size(width)

    def decoder_size(self, in_channels: int) -> tuple[int, int]:
        """
        Width and heads of the mask transformer on feature maps of `in_channels`.

        Raises:
            ValueError: if the heads do not divide the width.
        """
        width = self.decoder_hidden_size or in_channels
        heads = self.decoder_num_attention_heads or max(1, width // 64)
        if width % heads != 0:
            raise ValueError(
                f"`decoder_hidden_size` ({width}; the encoder's width when not given) must be a multiple of "
                f"`decoder_num_attention_heads` ({heads}; one for every 64 channels when not given): set one of the two."
            )
        return width, heads


__all__ = ["SegmenterConfig"]
