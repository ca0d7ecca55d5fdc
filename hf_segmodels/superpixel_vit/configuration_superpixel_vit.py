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
"""Configuration of the superpixel pilot model of RegProxy."""

from huggingface_hub.dataclasses import strict
from transformers.utils import auto_docstring

from ..configuration_utils import SegmentationConfig
from ..plain_vit.configuration_plain_vit import PlainViTConfig, is_plain_vit


@auto_docstring(
    custom_intro="""
    Configuration of [`SuperpixelViTForSemanticSegmentation`], the pilot model of RegProxy (section 3). The defaults give the
    superpixel model of ViT-B/16 in Table 1. There is no released code; the fields below name what the paper leaves open.
    """
)
@strict
class SuperpixelViTConfig(SegmentationConfig):
    r"""
    backbone_config (`PlainViTConfig` or `dict`, *optional*):
        Configuration of the encoder: a [`PlainViTConfig`] with the linear patch stem. Defaults to ViT-B/16 with bilinear
        position embeddings and stochastic depth 0.1. Superpixels are resized to its `patch_size`. Position embeddings are
        sampled at the centroids of the superpixels with its `position_embedding_interpolation`; the paper does not specify
        the position embeddings of superpixels.
    roi_align_sampling_ratio (`int`, *optional*, defaults to 1):
        Samples per pixel of a resized superpixel along each axis; 0 takes as many as there are pixels in its box. The paper
        does not specify this number. Both leave a box of `patch_size` pixels a side unchanged.
    max_superpixels (`int`, *optional*):
        Number of tokens that each image is padded to; an image must not have more superpixels. Defaults to the largest
        number of superpixels of an image in the batch, which is read back from the device. Compiled and exported graphs
        cannot read it back: set `max_superpixels` for them.
    window_size (`int` or pair, *optional*):
        Must not be set: there is no sliding window over superpixels.
    window_stride (`int` or pair, *optional*):
        Must not be set: there is no sliding window over superpixels.
    small_image_mode (`"upscale"`, `"pad"` or `"none"`, *optional*, defaults to `"none"`):
        Must be `"none"`: there is no sliding window over superpixels.

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
        """Check the fields against each other, as part of the `@strict` validation."""
        self._check_at_least_one("max_superpixels")
        if self.roi_align_sampling_ratio < 0:
            raise ValueError(f"`roi_align_sampling_ratio` must be at least 0, got {self.roi_align_sampling_ratio}.")
        if self.window_size is not None or self.small_image_mode != "none":
            raise ValueError(
                f"`window_size` ({self.window_size}) must be `None` and `small_image_mode` ({self.small_image_mode!r}) must be "
                "'none': there is no sliding window over superpixels."
            )
        backbone_config = self.backbone_config
        if not is_plain_vit(backbone_config) or backbone_config.stem_type != "patch":
            raise ValueError(
                "Superpixels are embedded by a linear patch projection: `backbone_config` must be a `PlainViTConfig` with "
                f"`stem_type='patch'`, got {type(backbone_config).__name__}."
            )
        if backbone_config.query_downsampling_layer is not None:
            raise ValueError(
                "Superpixels have no grid to down-sample: leave `query_downsampling_layer` out of `backbone_config`."
            )
        if backbone_config.position_embedding_resize_rule != "grid":
            raise ValueError(
                "Superpixels have no patch grid: set `position_embedding_resize_rule='grid'` in `backbone_config`."
            )


__all__ = ["SuperpixelViTConfig"]
