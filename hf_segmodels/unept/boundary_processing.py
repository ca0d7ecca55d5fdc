# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""What both of UN-EPT's image processors add: boundary targets beside label maps."""

from typing import Any

import torch

from ..image_processing.segmentation_image_processor import SegmentationImageProcessorKwargs
from .boundaries import PADDING_VALUE, boundary_targets


class UNEPTImageProcessorKwargs(SegmentationImageProcessorKwargs, total=False):
    """
    do_boundary_targets (`bool`, *optional*, defaults to `self.do_boundary_targets`):
        Whether `distance_maps` and `angle_maps` are computed from the label maps.
    """

    do_boundary_targets: bool | None


class BoundaryTargetsMixin:
    """Adds `distance_maps` and `angle_maps` to what an image processor makes of label maps."""

    valid_kwargs = UNEPTImageProcessorKwargs
    do_boundary_targets = False

    def _training_targets(
        self, labels: list[torch.Tensor], *, do_boundary_targets: bool | None, ignore_index: int, **kwargs: Any
    ) -> dict[str, tuple[list[torch.Tensor], int]]:
        targets = super()._training_targets(labels, ignore_index=ignore_index, **kwargs)
        if do_boundary_targets:
            maps = [boundary_targets(label_map, ignore_index) for label_map in labels]
            targets["distance_maps"] = [distance_map for distance_map, _ in maps], PADDING_VALUE
            targets["angle_maps"] = [angle_map for _, angle_map in maps], PADDING_VALUE
        return targets
