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
"""Configuration of SegViT."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers.utils import auto_docstring

from ..configuration_utils import SegmentationConfig
from ..plain_vit.configuration_plain_vit import PlainViTConfig


@auto_docstring(
    custom_intro="""
    Configuration of [`SegViTForSemanticSegmentation`]. The defaults give SegViT-B/16 for ADE20K as the released code
    builds it.

    Which layers are decoded is said by the encoder's `out_features` (`out_indices`): the cascade has one stage for each
    of its feature maps, the deepest first; *Single* and *Naive Shrunk* have one. *Shrunk* decodes a shallow and a deep
    one. *Naive Shrunk* and *Shrunk* have an encoder with a `query_downsampling_layer`.
    """
)
@strict
class SegViTConfig(SegmentationConfig):
    r"""
    backbone_config (`PreTrainedConfig` or `dict`, *optional*):
        Configuration of the encoder: a [`PlainViTConfig`] (the paper's; ViT-B/16 without class token and final norm, with
        stochastic depth 0.1, tapped behind layers 6, 8 and 12 by default), or that of any transformers backbone (DINOv2,
        DINOv3, BEiT, Swin, ...).
    decoder_type (`"cascade"` or `"shrunk"`, *optional*, defaults to `"cascade"`):
        `"cascade"`: one Attention-to-Mask stage for each feature map, whose masks add up (section 3.2). `"shrunk"`:
        query-based up-sampling of the feature maps, the shallowest first, then one Attention-to-Mask stage (section 3.3).
    decoder_hidden_size (`int`, *optional*, defaults to 384):
        Width of the decoder (512 in SegViT-L).
    decoder_num_hidden_layers (`int`, *optional*, defaults to 3):
        Transformer layers per stage, and per feature map that is up-sampled.
    decoder_num_attention_heads (`int`, *optional*, defaults to 12):
        Their heads (16 in SegViT-L); must divide `decoder_hidden_size`.
    decoder_intermediate_size (`int`, *optional*):
        Width of their MLPs' hidden layer; four times `decoder_hidden_size` when not given.
    decoder_dropout_prob (`float`, *optional*, defaults to 0.1):
        Dropout in the decoder, that of attention weights included.
    decoder_layer_norm_eps (`float`, *optional*, defaults to 1e-05):
        Epsilon of the decoder's LayerNorms.
    query_grid (`int` or pair, *optional*):
        Rows and columns of the table of up-sampling queries in a `"shrunk"` decoder; the grid of the encoder's position
        embeddings (`image_size // patch_size`) when not given.
    prediction_size (`int` or pair, *optional*):
        `(height, width)` in pixels at which masks become probabilities, whatever the size of the image; class scores are
        then resized to it. The up-sampling queries keep their grid too. This is how the released code works, with its
        training crop; converted models have it. When not given, both follow the image: masks become probabilities at its
        own size, and the queries are interpolated to its patch grid.
    min_scaled_size (`int`, *optional*):
        Shorter edge in pixels at which the `scales` of `predict` stop shrinking images: the released protocols for COCO-Stuff
        and Pascal Context have the window's. No bound when not given.
    odd_size_mode (`"crop"` or `"resize"`, *optional*, defaults to `"crop"`):
        What happens to scores of images that were padded to whole patches: the padding is cut off, or they are resized
        into the unpadded size, as the released code does. Only for checkpoints that must behave as that code.
    use_auxiliary_loss (`bool`, *optional*, defaults to `True`):
        Whether earlier stages (in a `"shrunk"` decoder: earlier layers of the one stage) are supervised too.
    no_object_weight (`float`, *optional*, defaults to 0.1):
        Weight of queries whose class is not in the image, in the cross-entropy.
    class_loss_weight (`float`, *optional*, defaults to 1.0):
        Weight of the queries' cross-entropy.
    mask_loss_weight (`float`, *optional*, defaults to 20.0):
        Weight of the focal loss of the masks.
    dice_loss_weight (`float`, *optional*, defaults to 1.0):
        Weight of the dice loss of the masks.
    freeze_backbone (`bool`, *optional*, defaults to `False`):
        Whether the encoder gets no gradients and stays in eval mode while training.
    semantic_loss_ignore_index (`int`, *optional*, defaults to 255):
        Label of pixels that belong to no mask.
    window_size (`int` or pair, *optional*):
        Sliding window `(height, width)` for `predict` and for `forward` in eval mode; none when not given. The
        released models use their training crop.
    window_stride (`int` or pair, *optional*):
        Stride of the window; the window size when not given.
    small_image_mode (`"upscale"`, `"pad"` or `"none"`, *optional*, defaults to `"none"`):
        What happens to images smaller than the window: scaled up until the short side fills it, padded with zeros at
        the bottom and right, or nothing (the released code).
    initializer_range (`float`, *optional*, defaults to 0.02):
        Standard deviation of the truncated normal that initializes linear layers.

    Example:

    ```python
    >>> from hf_segmodels import PlainViTConfig, SegViTConfig, SegViTForSemanticSegmentation

    >>> # SegViT-B, Shrunk
    >>> encoder = PlainViTConfig(
    ...     use_cls_token=False, final_norm="none", query_downsampling_layer=6, out_indices=[6, 12]
    ... )
    >>> config = SegViTConfig(backbone_config=encoder, decoder_type="shrunk", num_labels=19)
    >>> model = SegViTForSemanticSegmentation(config)
    ```
    """

    model_type = "segvit"

    decoder_type: Literal["cascade", "shrunk"] = "cascade"
    decoder_hidden_size: int = 384
    decoder_num_hidden_layers: int = 3
    decoder_num_attention_heads: int = 12
    decoder_intermediate_size: int | None = None
    decoder_dropout_prob: float | int = 0.1
    decoder_layer_norm_eps: float | int = 1e-5
    query_grid: int | list[int] | tuple[int, int] | None = None
    prediction_size: int | list[int] | tuple[int, int] | None = None
    min_scaled_size: int | None = None
    odd_size_mode: Literal["crop", "resize"] = "crop"
    use_auxiliary_loss: bool = True
    no_object_weight: float | int = 0.1
    class_loss_weight: float | int = 1.0
    mask_loss_weight: float | int = 20.0
    dice_loss_weight: float | int = 1.0

    @staticmethod
    def _default_backbone_config() -> PlainViTConfig:
        return PlainViTConfig(use_cls_token=False, final_norm="none", drop_path_rate=0.1, out_indices=[6, 8, 12])

    @property
    def upsampling_grid(self) -> tuple[int, int]:
        """Rows and columns of the table of up-sampling queries."""
        if self.query_grid is not None:
            return _as_pair(self.query_grid)
        encoder = self.backbone_config
        image_size, patch_size = getattr(encoder, "image_size", None), getattr(encoder, "patch_size", None)
        if image_size is None or patch_size is None:
            raise ValueError(
                'A "shrunk" decoder needs `query_grid`, the rows and columns of its table of queries: the encoder '
                f"({type(encoder).__name__}) has no `image_size` and `patch_size` that would tell."
            )
        (height, width), (patch_height, patch_width) = _as_pair(image_size), _as_pair(patch_size)
        return height // patch_height, width // patch_width

    @property
    def fixed_prediction_size(self) -> tuple[int, int] | None:
        """`prediction_size` as `(height, width)`."""
        return None if self.prediction_size is None else _as_pair(self.prediction_size)

    def validate_architecture(self):
        """Part of the `@strict` validation: checks fields against each other."""
        self._check_at_least_one(
            "decoder_hidden_size",
            "decoder_num_hidden_layers",
            "decoder_num_attention_heads",
            "decoder_intermediate_size",
            "min_scaled_size",
        )
        if self.decoder_hidden_size % self.decoder_num_attention_heads != 0:
            raise ValueError(
                f"`decoder_hidden_size` ({self.decoder_hidden_size}) must be a multiple of `decoder_num_attention_heads` "
                f"({self.decoder_num_attention_heads}): change one of the two."
            )
        for name in ("query_grid", "prediction_size"):
            value = getattr(self, name)
            if value is not None and ((not isinstance(value, int) and len(value) != 2) or min(_as_pair(value)) < 1):
                raise ValueError(f"`{name}` must be a number or a pair (down, across), at least 1 each, got {value}.")
        for name in ("no_object_weight", "class_loss_weight", "mask_loss_weight", "dice_loss_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")


def _as_pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


__all__ = ["SegViTConfig"]
