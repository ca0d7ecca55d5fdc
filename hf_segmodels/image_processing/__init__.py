# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Shared parts of the image processors: inputs, resizing, label maps, superpixels, post-processing."""

from .label_maps import check_label_map, check_labels, label_map_to_tensor, reduce_labels
from .resizing import resize_image, resize_label_map, resized_size
from .rgb_images import read_image, to_rgb
from .segmentation_image_processor import (
    SegmentationImageProcessor,
    SegmentationImageProcessorKwargs,
    SegmentationImageProcessorPil,
)
from .superpixels import SuperpixelMixin, SuperpixelMixinKwargs, slic_superpixels


__all__ = [
    "SegmentationImageProcessor",
    "SegmentationImageProcessorKwargs",
    "SegmentationImageProcessorPil",
    "SuperpixelMixin",
    "SuperpixelMixinKwargs",
    "check_label_map",
    "check_labels",
    "label_map_to_tensor",
    "read_image",
    "reduce_labels",
    "resize_image",
    "resize_label_map",
    "resized_size",
    "slic_superpixels",
    "to_rgb",
]
