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
"""Image processor for the superpixel pilot model of RegProxy (PIL backend: works without torchvision)."""

from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..image_processing.segmentation_image_processor import SegmentationImageProcessorPil
from ..image_processing.superpixels import SuperpixelMixin


# trf-ignore: TRF057 (generated documentation would lack the fields of this package)
class SuperpixelViTImageProcessorPil(SuperpixelMixin, SegmentationImageProcessorPil):
    """
    Prepare images and label maps for [`SuperpixelViTForSemanticSegmentation`], and convert outputs to label maps.

    Accepts the arguments of [`SuperpixelViTImageProcessor`] and returns the same values in numpy arrays. (The model
    itself needs torchvision.)
    """

    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD


__all__ = ["SuperpixelViTImageProcessorPil"]
