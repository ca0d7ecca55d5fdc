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

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers.utils import auto_docstring

from ..configuration_utils import SegmentationConfig, as_pair
from ..plain_vit.configuration_plain_vit import PlainViTConfig


@auto_docstring(
    custom_intro="""
    Configuration of [`SegViTForSemanticSegmentation`]. The defaults give SegViT-B/16 for ADE20K as the released code
    builds it.

    The feature maps that are decoded are the `out_features` (`out_indices`) of the encoder. The cascade has one stage for each
    of them, the deepest first; *Single* and *Naive Shrunk* have one feature map, *Shrunk* has a shallow and a deep one. The
    encoder of *Naive Shrunk* and *Shrunk* has a `query_downsampling_layer`.
    """
)
@strict
class SegViTConfig(SegmentationConfig):
    r"""
    backbone_config (`PreTrainedConfig` or `dict`, *optional*):
        Configuration of the encoder: a [`PlainViTConfig`] or the configuration of any transformers backbone (DINOv2, DINOv3,
        BEiT, Swin, ...). Defaults to ViT-B/16 as in the paper, without class token and final norm, with stochastic depth 0.1
        and the feature maps of layers 6, 8 and 12.
    decoder_type (`"cascade"` or `"shrunk"`, *optional*, defaults to `"cascade"`):
        `"cascade"`: one Attention-to-Mask stage for each feature map, whose masks add up (section 3.2). `"shrunk"`:
        query-based up-sampling of the feature maps, the shallowest first, then one Attention-to-Mask stage (section 3.3).
    decoder_hidden_size (`int`, *optional*, defaults to 384):
        Hidden size of the decoder (512 in SegViT-L).
    decoder_num_hidden_layers (`int`, *optional*, defaults to 3):
        Number of transformer layers of each stage, and of the up-sampling of each feature map.
    decoder_num_attention_heads (`int`, *optional*, defaults to 12):
        Number of attention heads of the decoder (16 in SegViT-L); must divide `decoder_hidden_size`.
    decoder_intermediate_size (`int`, *optional*):
        Hidden size of the MLPs in the decoder. Defaults to four times `decoder_hidden_size`.
    decoder_dropout_prob (`float`, *optional*, defaults to 0.1):
        Dropout in the decoder, including attention weights.
    decoder_layer_norm_eps (`float`, *optional*, defaults to 1e-05):
        Epsilon of the LayerNorms of the decoder.
    query_grid (`int` or pair, *optional*):
        Grid `(height, width)` of the stored up-sampling queries of a `"shrunk"` decoder. Defaults to the grid of the
        position embeddings of the encoder, `image_size // patch_size`.
    prediction_size (`int` or pair, *optional*):
        `(height, width)` in pixels at which masks become probabilities, for images of every size; class scores are then
        resized to the image, and the up-sampling queries keep their grid. The released code works in this way, with its
        training crop, and so do converted models. Defaults to `None`: masks become probabilities at the size of the image,
        and the queries are interpolated to its patch grid.
    min_scaled_size (`int`, *optional*):
        Lower bound in pixels for the shorter edge of images that `scales` of `predict` shrink. The released protocols for
        COCO-Stuff and Pascal Context use the window size. Defaults to `None` (no bound).
    odd_size_mode (`"crop"` or `"resize"`, *optional*, defaults to `"crop"`):
        How scores of images that were padded to whole patches become scores of the image: `"crop"` cuts the padding off,
        `"resize"` resizes them to the unpadded size, as the released code does. `"resize"` is meant for checkpoints that
        must behave as the released code.
    use_auxiliary_loss (`bool`, *optional*, defaults to `True`):
        Whether earlier stages are supervised too. In a `"shrunk"` decoder these are the earlier layers of its only stage.
    no_object_weight (`float`, *optional*, defaults to 0.1):
        Weight in the cross-entropy of queries whose class is not in the image.
    class_loss_weight (`float`, *optional*, defaults to 1.0):
        Weight of the cross-entropy of the queries.
    mask_loss_weight (`float`, *optional*, defaults to 20.0):
        Weight of the focal loss of the masks.
    dice_loss_weight (`float`, *optional*, defaults to 1.0):
        Weight of the dice loss of the masks.
    semantic_loss_ignore_index (`int`, *optional*, defaults to 255):
        Label of pixels that belong to no mask.

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
        """Grid `(height, width)` of the stored up-sampling queries."""
        if self.query_grid is not None:
            return as_pair(self.query_grid, "query_grid")
        encoder = self.backbone_config
        image_size, patch_size = getattr(encoder, "image_size", None), getattr(encoder, "patch_size", None)
        if image_size is None or patch_size is None:
            raise ValueError(
                f'`query_grid` must be set for a "shrunk" decoder on {type(encoder).__name__}, which has no `image_size` and '
                "`patch_size` to derive it from: give the (height, width) of the stored up-sampling queries."
            )
        height, width = as_pair(image_size, "image_size")
        patch_height, patch_width = as_pair(patch_size, "patch_size")
        return height // patch_height, width // patch_width

    @property
    def fixed_prediction_size(self) -> tuple[int, int] | None:
        """`prediction_size` as `(height, width)`."""
        return None if self.prediction_size is None else as_pair(self.prediction_size, "prediction_size")

    def validate_architecture(self):
        """Check the fields against each other, as part of the `@strict` validation."""
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
            if value is not None:
                as_pair(value, name, minimum=1)
        for name in ("no_object_weight", "class_loss_weight", "mask_loss_weight", "dice_loss_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")


__all__ = ["SegViTConfig"]
