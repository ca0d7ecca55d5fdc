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
"""Configuration of UN-EPT (https://huggingface.co/papers/2107.14209)."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers.utils import auto_docstring

from ..configuration_utils import SegmentationConfig, as_pair
from ..plain_vit.configuration_plain_vit import PlainViTConfig


# Pixels per context query, down and across: the spatial branch has three convolutions of stride 2.
QUERY_STRIDE = 8


@auto_docstring(
    custom_intro="""
    Configuration of [`UNEPTForSemanticSegmentation`]. The defaults give the DeiT-B model for ADE20K with the architecture
    and losses of the released code, except that self-attention in the decoder and refinement at inference follow the paper.
    """
)
@strict
class UNEPTConfig(SegmentationConfig):
    r"""
    backbone_config (`PreTrainedConfig` or `dict`, *optional*):
        Configuration of the encoder, whose feature maps (one to four, of any strides) are the levels of the pyramid: a
        [`PlainViTConfig`], a [`ResNetV1cConfig`] (ResNet-50 of the paper with
        `out_features=["stage2", "stage3", "stage4"]`), or the configuration of any transformers backbone. Defaults to
        DeiT-B with the outputs of layers 4, 8 and 12.
    num_feature_levels (`int`, *optional*):
        Number L of levels of the pyramid; must equal the number of feature maps of the encoder, which is the default.
    hidden_size (`int`, *optional*, defaults to 256):
        Hidden size of the context and the spatial branch; a multiple of 4 and of `num_attention_heads`.
    encoder_num_hidden_layers (`int`, *optional*, defaults to 2):
        Number of encoder layers of the context branch.
    decoder_num_hidden_layers (`int`, *optional*, defaults to 2):
        Number of decoder layers of the context branch.
    num_attention_heads (`int`, *optional*, defaults to 8):
        Number M of heads of each attention of the context branch.
    num_points (`int`, *optional*, defaults to 16):
        Number N of points that each head samples on each level.
    intermediate_size (`int`, *optional*, defaults to 2048):
        Hidden size of the feed-forward layers in the context branch.
    hidden_dropout_prob (`float`, *optional*, defaults to 0.1):
        Dropout after each attention and in the feed-forward layers of the context branch.
    attention_probs_dropout_prob (`float`, *optional*, defaults to 0.1):
        Dropout on the attention weights of `"dense"` and `"across_batch"` self-attention.
    layer_norm_eps (`float`, *optional*, defaults to 1e-05):
        Epsilon of the LayerNorms of the context branch.
    spatial_hidden_sizes (`list[int]`, *optional*, defaults to `(64, 128)`):
        Channels after the first and second convolution of the spatial branch; the third gives `hidden_size`.
    spatial_final_activation (`bool`, *optional*, defaults to `False`):
        Whether a ReLU also follows the third convolution of the spatial branch, as in the paper. The released code has none.
    image_size (`int` or pair, *optional*, defaults to 480):
        `(height, width)` in pixels, multiples of 8. The stored query embeddings have one eighth of this size. Images of any
        size can be used: the embeddings are interpolated bilinearly.
    decoder_self_attention (`"sparse"`, `"dense"` or `"across_batch"`, *optional*, defaults to `"sparse"`):
        Positions that context queries attend to: sampled points of their own map (section 3.1.1), all queries of the same
        image, or the queries at the same position in the other images of the batch, as in the released code.
        `"across_batch"` makes predictions depend on the batch and is meant for checkpoints that were trained with it.
    refine_at_inference (`bool`, *optional*, defaults to `True`):
        Whether `logits` are refined along predicted boundaries (section 3.2), at full resolution. The released code
        refines only in the training loss, although the paper reports refined results.
    boundary_distance (`int`, *optional*, defaults to 5):
        Largest distance in pixels from the edge of a class at which a pixel is boundary in the training targets.
    coarse_loss_weight (`float`, *optional*, defaults to 0.8):
        Weight of the cross-entropy of the coarse scores (1 in the paper).
    refined_loss_weight (`float`, *optional*, defaults to 1.0):
        Weight of the cross-entropy of the refined scores (1.5 in the paper).
    boundary_loss_weight (`float`, *optional*, defaults to 5.0):
        Weight of the boundary loss (3 in the paper).
    direction_loss_weight (`float`, *optional*, defaults to 0.6):
        Weight of the direction loss (0.7 in the paper).
    semantic_loss_reduction (`"pixel_mean"` or `"valid_mean"`, *optional*, defaults to `"pixel_mean"`):
        Mean of the two cross-entropies over all pixels, where ignored pixels count as 0 (the released code), or over the
        pixels that are not ignored.
    ignore_unlabeled_boundaries (`bool`, *optional*, defaults to `False`):
        Whether ignored pixels are also left out of the boundary and direction losses. The released code counts them as
        boundary.
    small_image_mode (`"upscale"`, `"pad"` or `"none"`, *optional*, defaults to `"pad"`):
        How images smaller than the window are enlarged; see [`SegmentationConfig`]. The released code pads.

    Example:

    ```python
    >>> from hf_segmodels import ResNetV1cConfig, UNEPTConfig, UNEPTForSemanticSegmentation

    >>> encoder = ResNetV1cConfig(out_features=["stage2", "stage3", "stage4"])
    >>> model = UNEPTForSemanticSegmentation(UNEPTConfig(backbone_config=encoder, num_labels=19))
    ```
    """

    model_type = "unept"

    num_feature_levels: int | None = None
    hidden_size: int = 256
    encoder_num_hidden_layers: int = 2
    decoder_num_hidden_layers: int = 2
    num_attention_heads: int = 8
    num_points: int = 16
    intermediate_size: int = 2048
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    layer_norm_eps: float | int = 1e-5
    spatial_hidden_sizes: list[int] | tuple[int, int] = (64, 128)
    spatial_final_activation: bool = False
    image_size: int | list[int] | tuple[int, int] = 480
    decoder_self_attention: Literal["sparse", "dense", "across_batch"] = "sparse"
    refine_at_inference: bool = True
    boundary_distance: int = 5
    coarse_loss_weight: float | int = 0.8
    refined_loss_weight: float | int = 1.0
    boundary_loss_weight: float | int = 5.0
    direction_loss_weight: float | int = 0.6
    semantic_loss_reduction: Literal["pixel_mean", "valid_mean"] = "pixel_mean"
    ignore_unlabeled_boundaries: bool = False
    small_image_mode: Literal["upscale", "pad", "none"] = "pad"

    @staticmethod
    def _default_backbone_config() -> PlainViTConfig:
        return PlainViTConfig(
            image_size=480,
            use_distillation_token=True,
            final_norm="none",
            out_features=["stage4", "stage8", "stage12"],
        )

    @property
    def query_grid(self) -> tuple[int, int]:
        """`(height, width)` of the stored query embeddings."""
        height, width = as_pair(self.image_size, "image_size")
        return height // QUERY_STRIDE, width // QUERY_STRIDE

    def validate_architecture(self):
        """Check the fields against each other, as part of the `@strict` validation."""
        self._check_at_least_one(
            "num_feature_levels",
            "hidden_size",
            "encoder_num_hidden_layers",
            "decoder_num_hidden_layers",
            "num_attention_heads",
            "num_points",
            "intermediate_size",
        )
        if self.hidden_size % self.num_attention_heads != 0 or self.hidden_size % 4 != 0:
            raise ValueError(
                f"`hidden_size` ({self.hidden_size}) must be a multiple of `num_attention_heads` "
                f"({self.num_attention_heads}), and of 4 for the sines and cosines of rows and columns: change one of the two."
            )
        if len(self.spatial_hidden_sizes) != 2 or min(self.spatial_hidden_sizes) < 1:
            raise ValueError(
                "`spatial_hidden_sizes` must hold the channels after the first and second convolution, got "
                f"{self.spatial_hidden_sizes}."
            )
        sides = as_pair(self.image_size, "image_size")
        if min(sides) < QUERY_STRIDE or any(side % QUERY_STRIDE for side in sides):
            raise ValueError(
                f"`image_size` ({self.image_size}) must be a multiple of {QUERY_STRIDE}, such as "
                f"{[max(side // QUERY_STRIDE, 1) * QUERY_STRIDE for side in sides]}: there is one query for each "
                f"{QUERY_STRIDE} x {QUERY_STRIDE} pixels. Images may have any size."
            )


__all__ = ["QUERY_STRIDE", "UNEPTConfig"]
