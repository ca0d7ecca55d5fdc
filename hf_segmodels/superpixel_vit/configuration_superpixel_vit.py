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
"""Configuration of RegProxy's superpixel pilot."""

from huggingface_hub.dataclasses import strict
from transformers.utils import auto_docstring

from ..configuration_utils import SegmentationConfig
from ..plain_vit.configuration_plain_vit import PlainViTConfig, is_plain_vit


@auto_docstring(
    custom_intro="""
    Configuration of [`SuperpixelViTForSemanticSegmentation`], RegProxy's pilot (section 3). The defaults give the
    superpixel model of ViT-B/16 in Table 1. No code of it was released: what the paper leaves open is said below.
    """
)
@strict
class SuperpixelViTConfig(SegmentationConfig):
    r"""
    backbone_config (`PlainViTConfig` or `dict`, *optional*):
        Configuration of the encoder: a [`PlainViTConfig`] with the linear patch stem (ViT-B/16 with bilinear position
        embeddings and stochastic depth 0.1 by default). Superpixels are resized to its `patch_size`. Position
        embeddings are sampled at the superpixels' centroids with its `position_embedding_interpolation`; the paper does
        not say how superpixels get theirs.
    roi_align_sampling_ratio (`int`, *optional*, defaults to 1):
        Samples per pixel of a resized superpixel and axis; 0 takes as many as its box has pixels there. The paper does
        not state it. Either leaves a box of `patch_size` pixels a side as it is.
    max_superpixels (`int`, *optional*):
        Number of tokens that each image is padded to; an image must not have more superpixels. By default the number of
        the image with the most of them in the batch, which has to be read back from the device and which compiled and
        exported graphs cannot know: set it for those.
    freeze_backbone (`bool`, *optional*, defaults to `False`):
        Whether the encoder gets no gradients and stays in eval mode while training.
    semantic_loss_ignore_index (`int`, *optional*, defaults to 255):
        Label of pixels that do not count in the loss.
    window_size (`int` or pair, *optional*):
        Must not be set: there is no sliding window over superpixels.
    window_stride (`int` or pair, *optional*):
        Must not be set either.
    small_image_mode (`"upscale"`, `"pad"` or `"none"`, *optional*, defaults to `"none"`):
        Has no meaning without windows; only `"none"` is accepted.
    initializer_range (`float`, *optional*, defaults to 0.02):
        Standard deviation of the truncated normal that initializes linear layers.

    Example:

    ```python
    >>> from hf_segmodels import PlainViTConfig, SuperpixelViTConfig, SuperpixelViTForSemanticSegmentation

    >>> encoder = PlainViTConfig(hidden_size=192, num_attention_heads=3, position_embedding_interpolation="bilinear")
    >>> model = SuperpixelViTForSemanticSegmentation(SuperpixelViTConfig(backbone_config=encoder, num_labels=19))
    ```
    """

    model_type = "superpixel_vit"

    roi_align_sampling_ratio: int = 1
    max_superpixels: int | None = None

    @staticmethod
    def _default_backbone_config() -> PlainViTConfig:
        return PlainViTConfig(position_embedding_interpolation="bilinear", drop_path_rate=0.1)

    def validate_architecture(self):
        """Part of the `@strict` validation: checks fields against each other."""
        self._check_at_least_one("max_superpixels")
        if self.roi_align_sampling_ratio < 0:
            raise ValueError(f"`roi_align_sampling_ratio` must be at least 0, got {self.roi_align_sampling_ratio}.")
        if self.window_size is not None or self.small_image_mode != "none":
            raise ValueError(
                f"`window_size` ({self.window_size}) and `small_image_mode` ({self.small_image_mode!r}) cannot be set: "
                "there is no sliding window over superpixels."
            )
        backbone_config = self.backbone_config
        if not is_plain_vit(backbone_config) or backbone_config.stem_type != "patch":
            raise ValueError(
                "Superpixels are embedded by a linear patch projection: `backbone_config` must be a `PlainViTConfig` with "
                f"`stem_type='patch'`, got {type(backbone_config).__name__}."
            )
        if backbone_config.query_downsampling_layer is not None:
            raise ValueError(
                "Superpixels lie on no grid that could be down-sampled: leave `query_downsampling_layer` out of "
                "`backbone_config`."
            )
        if backbone_config.position_embedding_resize_rule != "grid":
            raise ValueError(
                "Superpixels have no patch grid whose tokens could be counted: set "
                "`position_embedding_resize_rule='grid'` in `backbone_config`."
            )


__all__ = ["SuperpixelViTConfig"]
