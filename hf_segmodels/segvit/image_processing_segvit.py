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
"""Image processor for SegViT (torchvision backend)."""

from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD

from ..image_processing.segmentation_image_processor import SegmentationImageProcessor


# trf-ignore: TRF057 (generated documentation would lack the fields of this package)
class SegViTImageProcessor(SegmentationImageProcessor):
    """
    Prepare images and label maps for SegViT, and convert scores to label maps.

    The defaults are those of SegViT-B on ADE20K: the shorter edge becomes 512 unless the longer one would exceed 2048,
    bilinear without antialiasing, mean and standard deviation 127.5 of 255. On COCO-Stuff and Pascal Context the original
    lets the shorter edge never fall below its window; its longer edge then has no bound: `size={"shortest_edge": 512}`.
    See the arguments of [`SegmenterImageProcessor`].
    """

    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD


__all__ = ["SegViTImageProcessor"]
