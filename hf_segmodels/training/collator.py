# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Batches of augmented samples, made by the model's own image processor."""

from collections.abc import Sequence

import torch
from transformers.image_processing_utils import BaseImageProcessor


class TrainingCollator:
    """
    Turns augmented images and label maps into what a model trains on: normalized, padded to the crop, with all that the
    method's processor adds (UN-EPT's boundary targets, superpixels). Labels are checked on the way.

    Args:
        processor (`BaseImageProcessor`): The model's.
        crop_size (`(height, width)`): Size of the batch; smaller samples are padded at the bottom and right.
    """

    def __init__(self, processor: BaseImageProcessor, crop_size: Sequence[int]):
        self.processor = processor
        self.options = {
            "do_resize": False,
            "do_reduce_labels": False,
            "do_pad": True,
            "pad_size": {"height": crop_size[0], "width": crop_size[1]},
            "return_tensors": "pt",
        }
        if hasattr(processor, "do_boundary_targets"):
            self.options["do_boundary_targets"] = True

    def __call__(self, samples: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """
        Args:
            samples: Images `(3, height, width)` uint8 with label maps `(height, width)`, reduced where classes start at 1.

        Returns:
            `dict`: `pixel_values (batch_size, 3, height, width)`, `labels (batch_size, height, width)` and what else the
            processor gives.
        """
        images, label_maps = zip(*samples, strict=True)
        return dict(self.processor(list(images), segmentation_maps=list(label_maps), **self.options))
