# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Image processor for Segmenter (PIL backend: works without torchvision)."""

from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD

from ..image_processing.segmentation_image_processor import SegmentationImageProcessorPil


class SegmenterImageProcessorPil(SegmentationImageProcessorPil):
    """
    Prepares images and label maps for Segmenter, and turns its logits into label maps.

    Takes the same arguments as [`SegmenterImageProcessor`] and gives the same values, in numpy arrays.
    """

    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD


__all__ = ["SegmenterImageProcessorPil"]
