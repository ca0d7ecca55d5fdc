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

from ..image_processing.segmentation_image_processor import SegmentationImageProcessor
from ..image_processing.superpixels import SuperpixelMixin


# trf-ignore: TRF057 (the generated text knows less than this one)
class SuperpixelViTImageProcessor(SuperpixelMixin, SegmentationImageProcessor):
    """
    Image processor for [`SuperpixelViTForSemanticSegmentation`]:
    prepares images and label maps, and turns outputs into label maps.

    Each resized image is cut into SLIC superpixels (scikit-image, `pip install 'hf_segmodels[superpixels]'`). The
    output includes `superpixels (batch_size, height, width)`, int64: the superpixel of each pixel, from 0, and -1 in
    the padding.

    The size, mean and standard deviation are those of RegProxy's training on ADE20K. The paper does not state its
    settings of SLIC. Takes the arguments of [`SegmentationImageProcessor`], and:

    Args:
        n_segments (`int`, *optional*):
            Approximate number of superpixels in each image. Defaults to the number of pixels divided by
            `pixels_per_segment`.
        pixels_per_segment (`int`, *optional*, defaults to 256):
            Approximate number of pixels of the resized image in a superpixel. Ignored if `n_segments` is set. 256 gives
            as many tokens as a ViT with patch size 16.
        compactness (`float`, *optional*, defaults to 10.0):
            Weight of distances in space relative to distances in color. Higher values make superpixels squarer.
    """


__all__ = ["SuperpixelViTImageProcessor"]
