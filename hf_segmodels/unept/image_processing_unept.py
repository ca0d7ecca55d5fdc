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


# trf-ignore: TRF057 (the generated text knows less than this one)
class UNEPTImageProcessor(BoundaryTargetsMixin, SegmentationImageProcessor):
    """
    Prepares images and label maps for UN-EPT, and turns its logits into label maps.

    The defaults are those of the paper's models on ADE20K: the shorter edge becomes 512 unless the longer one would exceed
    2048, bilinear without antialiasing, ImageNet's mean and standard deviation.

    Args:
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
            distance and angle maps with 255 (no boundary).
        pad_size (`dict[str, int]`, *optional*): Size to pad to. If unset, the largest of the batch.
        ignore_index (`int`, *optional*, defaults to 255): Label of pixels that do not count.
        num_labels (`int`, *optional*): Number of classes. When set, labels are checked.
        do_boundary_targets (`bool`, *optional*, defaults to `False`):
            Whether label maps also give `distance_maps` and `angle_maps` `(batch_size, height, width)` int64, which the
            boundary losses need; see [`boundary_targets`]. Takes SciPy. They are computed from the resized label maps, so
            maps that were mirrored or cropped before are right without more.
    """

    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD


__all__ = ["UNEPTImageProcessor"]
