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
"""Image processor for RegProxy's superpixel pilot (torchvision backend)."""

from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..image_processing.segmentation_image_processor import SegmentationImageProcessor
from ..image_processing.superpixels import SuperpixelMixin


# trf-ignore: TRF057 (the generated text knows less than this one)
class SuperpixelViTImageProcessor(SuperpixelMixin, SegmentationImageProcessor):
    """
    Prepares images and label maps for [`SuperpixelViTForSemanticSegmentation`], and turns its outputs into label maps.

    Each resized image is cut into SLIC superpixels (scikit-image, `pip install 'hf_segmodels[superpixels]'`). Besides
    `pixel_values` there is `superpixels (batch_size, height, width)`, int64: which superpixel of its image, counted
    from 0, a pixel belongs to, and -1 in the padding.

    The size, mean and deviation are those of RegProxy's training on ADE20K. The paper does not state its settings of
    SLIC.

    Args:
        n_segments (`int`, *optional*):
            About how many superpixels each image is cut into (SLIC gives more or fewer). By default as many as
            `pixels_per_segment` says.
        pixels_per_segment (`int`, *optional*, defaults to 256):
            About how many pixels of the resized image a superpixel has; read where `n_segments` is not given. 256
            makes as many tokens as the patches of a ViT with patch size 16.
        compactness (`float`, *optional*, defaults to 10.0):
            Weight of nearness in space against nearness in color: higher values make superpixels squarer.
        do_resize (`bool`, *optional*, defaults to `True`): Whether to resize images and label maps.
        size (`dict[str, int]`, *optional*, defaults to `{"shortest_edge": 512, "longest_edge": 2048}`):
            `{"height", "width"}` for a fixed size, `{"shortest_edge"}` or `{"shortest_edge", "longest_edge"}` to keep
            the aspect ratio. An integer is taken as the shortest edge.
        resample (`PILImageResampling`, *optional*, defaults to `PILImageResampling.BILINEAR`):
            Filter for images: nearest, bilinear or bicubic. Label maps always use nearest.
        antialias (`bool`, *optional*, defaults to `False`): Whether to antialias when shrinking.
        do_rescale (`bool`, *optional*, defaults to `True`): Whether to multiply by `rescale_factor`.
        rescale_factor (`float`, *optional*, defaults to `1 / 255`): That factor.
        do_normalize (`bool`, *optional*, defaults to `True`): Whether to subtract the mean and divide by the deviation.
        image_mean (`list[float]`, *optional*, defaults to `[0.485, 0.456, 0.406]`): Mean of each channel.
        image_std (`list[float]`, *optional*, defaults to `[0.229, 0.224, 0.225]`): Standard deviation of each channel.
        do_convert_rgb (`bool`, *optional*, defaults to `True`): Whether to convert images to RGB.
        do_reduce_labels (`bool`, *optional*, defaults to `False`):
            Whether label 0 means "unlabeled" and classes start at 1, as in ADE20K's files.
        do_pad (`bool`, *optional*, defaults to `False`):
            Whether to pad at the bottom and right: images with 0 after normalizing, label maps with `ignore_index`,
            superpixels with -1.
        pad_size (`dict[str, int]`, *optional*): Size to pad to. If unset, the largest of the batch.
        ignore_index (`int`, *optional*, defaults to 255): Label of pixels that do not count.
        num_labels (`int`, *optional*): Number of classes. When set, labels are checked.
    """

    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD


__all__ = ["SuperpixelViTImageProcessor"]
