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
"""Image processor for the superpixel pilot model of RegProxy (torchvision backend)."""

from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..image_processing.segmentation_image_processor import SegmentationImageProcessor
from ..image_processing.superpixels import SuperpixelMixin


# trf-ignore: TRF057 (generated documentation would lack the fields of this package)
class SuperpixelViTImageProcessor(SuperpixelMixin, SegmentationImageProcessor):
    """
    Prepare images and label maps for [`SuperpixelViTForSemanticSegmentation`], and convert outputs to label maps.

    Each resized image is segmented into SLIC superpixels (scikit-image, `pip install 'hf_segmodels[superpixels]'`). The output
    has `superpixels (batch_size, height, width)`, int64, next to `pixel_values`: the superpixel of each pixel, counted from 0
    in each image, and -1 in the padding.

    Size, mean and standard deviation are those of RegProxy on ADE20K. The paper does not specify the settings of SLIC.

    Args:
        n_segments (`int`, *optional*):
            Approximate number of superpixels of each image. Defaults to the number of pixels divided by
            `pixels_per_segment`.
        pixels_per_segment (`int`, *optional*, defaults to 256):
            Approximate number of pixels of a superpixel in the resized image, if `n_segments` is `None`. 256 gives as many
            tokens as a ViT with patch size 16 has patches.
        compactness (`float`, *optional*, defaults to 10.0):
            Weight of spatial distance against color distance: larger values make superpixels more square.
        kwargs: Arguments of [`SegmenterImageProcessor`]. Padding of superpixels is -1.
    """

    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD


__all__ = ["SuperpixelViTImageProcessor"]
