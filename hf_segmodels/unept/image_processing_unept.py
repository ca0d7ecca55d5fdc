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

from typing import Any

import torch

from ..image_processing.segmentation_image_processor import (
    SegmentationImageProcessor,
    SegmentationImageProcessorKwargs,
)
from .boundary_targets import PADDING_VALUE, compute_boundary_targets


class UNEPTImageProcessorKwargs(SegmentationImageProcessorKwargs, total=False):
    """Arguments of the boundary targets. See [`UNEPTImageProcessor`]."""

    do_boundary_targets: bool | None


class BoundaryTargetsMixin:
    """
    Add `distance_maps` and `angle_maps` to the training targets of the image processor that follows in the class order.
    """

    valid_kwargs = UNEPTImageProcessorKwargs
    do_boundary_targets = False

    def _training_targets(
        self, labels: list[torch.Tensor], *, do_boundary_targets: bool | None, ignore_index: int, **kwargs: Any
    ) -> dict[str, tuple[list[torch.Tensor], int]]:
        targets = super()._training_targets(labels, ignore_index=ignore_index, **kwargs)
        if do_boundary_targets:
            maps = [compute_boundary_targets(label_map, ignore_index) for label_map in labels]
            targets["distance_maps"] = [distance_map for distance_map, _ in maps], PADDING_VALUE
            targets["angle_maps"] = [angle_map for _, angle_map in maps], PADDING_VALUE
        return targets


# trf-ignore: TRF057 (the generated text knows less than this one)
class UNEPTImageProcessor(BoundaryTargetsMixin, SegmentationImageProcessor):
    """
    Image processor for UN-EPT: prepares images and label maps, and turns logits into label maps.

    The defaults are those of the paper's models on ADE20K: the shorter edge becomes 512 unless the longer edge would
    exceed 2048, bilinear without antialiasing, ImageNet's mean and standard deviation. Takes the arguments of
    [`SegmentationImageProcessor`], and:

    Args:
        do_boundary_targets (`bool`, *optional*, defaults to `False`):
            Whether to compute the targets of the boundary losses (with SciPy): `distance_maps` and `angle_maps`, both
            `(batch_size, height, width)`, int64; see [`compute_boundary_targets`]. They are computed from the resized
            label maps, so they also match label maps that were mirrored or cropped. Their padding value is 255 (no
            boundary).
    """


__all__ = ["UNEPTImageProcessor"]
