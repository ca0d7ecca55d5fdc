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
"""Image processor for UN-EPT (torchvision backend)."""

from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..image_processing.segmentation_image_processor import SegmentationImageProcessor
from .boundary_processing import BoundaryTargetsMixin


# trf-ignore: TRF057 (generated documentation would lack the fields of this package)
class UNEPTImageProcessor(BoundaryTargetsMixin, SegmentationImageProcessor):
    """
    Prepare images and label maps for UN-EPT, and convert logits to label maps.

    The defaults are those of the paper's models on ADE20K: the shorter edge becomes 512 unless the longer one would exceed
    2048, bilinear without antialiasing, mean and standard deviation of ImageNet.

    Args:
        do_boundary_targets (`bool`, *optional*, defaults to `False`):
            Whether to return `distance_maps` and `angle_maps` `(batch_size, height, width)`, int64, with label maps, for the
            boundary losses; see [`boundary_targets`]. Needs SciPy. They are computed from the resized label maps, so label
            maps may be mirrored or cropped before.
        kwargs: Arguments of [`SegmenterImageProcessor`]. Padding of distance and angle maps is 255 (no boundary).
    """

    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD


__all__ = ["UNEPTImageProcessor"]
