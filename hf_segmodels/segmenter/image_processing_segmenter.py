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
"""Image processor for Segmenter (torchvision backend)."""

from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD

from ..image_processing.segmentation_image_processor import SegmentationImageProcessor


# trf-ignore: TRF057 (generated documentation would lack the fields of this package)
class SegmenterImageProcessor(SegmentationImageProcessor):
    """
    Prepare images and label maps for Segmenter, and convert logits to label maps.

    The defaults are those of the AugReg ViT models on ADE20K: the shorter edge becomes 512 unless the longer one would
    exceed 2048, bilinear without antialiasing, mean and standard deviation 0.5. DeiT models use mean and standard deviation of ImageNet.

    Args:
        do_resize (`bool`, *optional*, defaults to `True`): Whether to resize images and label maps.
        size (`dict[str, int]`, *optional*, defaults to `{"shortest_edge": 512, "longest_edge": 2048}`):
            `{"height", "width"}` for a fixed size, `{"shortest_edge"}` or `{"shortest_edge", "longest_edge"}` to keep
            the aspect ratio. An integer means the shortest edge.
        resample (`PILImageResampling`, *optional*, defaults to `PILImageResampling.BILINEAR`):
            Filter for images: nearest, bilinear or bicubic. Label maps always use nearest.
        antialias (`bool`, *optional*, defaults to `False`): Whether to antialias when shrinking.
        do_rescale (`bool`, *optional*, defaults to `True`): Whether to multiply by `rescale_factor`.
        rescale_factor (`float`, *optional*, defaults to `1 / 255`): Factor of the pixel values.
        do_normalize (`bool`, *optional*, defaults to `True`): Whether to subtract the mean and divide by the standard
            deviation.
        image_mean (`list[float]`, *optional*, defaults to `[0.5, 0.5, 0.5]`): Mean of each channel.
        image_std (`list[float]`, *optional*, defaults to `[0.5, 0.5, 0.5]`): Standard deviation of each channel.
        do_convert_rgb (`bool`, *optional*, defaults to `True`): Whether to convert images to RGB.
        do_reduce_labels (`bool`, *optional*, defaults to `False`):
            Whether label 0 means "unlabeled" and classes start at 1, as in ADE20K's files.
        do_pad (`bool`, *optional*, defaults to `False`):
            Whether to pad at the bottom and right: images with 0 after normalizing, label maps with `ignore_index`.
        pad_size (`dict[str, int]`, *optional*): Size to pad to. Defaults to the largest size in the batch.
        ignore_index (`int`, *optional*, defaults to 255): Label of pixels that do not count.
        num_labels (`int`, *optional*): Number of classes. If set, labels are checked.
    """

    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD


__all__ = ["SegmenterImageProcessor"]
