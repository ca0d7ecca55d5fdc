# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Random scaling, cropping, flipping and colour changes of an image and its label map, from torchvision's transforms."""

from collections.abc import Sequence

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2


class RandomCropWithClassLimit(v2.Transform):
    """
    Random crop in which no class takes more than `max_class_share` of the labelled pixels, as in the papers' pipelines
    (mmsegmentation's `cat_max_ratio`): up to ten draws, then the last one stands.

    Images smaller than the crop are padded: with `image_fill`, and the label map with `ignore_index`.
    """

    max_draws = 10

    def __init__(
        self,
        size: Sequence[int],
        image_fill: Sequence[float],
        ignore_index: int = 255,
        max_class_share: float = 0.75,
    ):
        super().__init__()
        fill = {tv_tensors.Image: list(image_fill), tv_tensors.Mask: ignore_index}
        self.crop = v2.RandomCrop(list(size), pad_if_needed=True, fill=fill)
        self.ignore_index = ignore_index
        self.max_class_share = max_class_share

    def forward(self, image: tv_tensors.Image, label_map: tv_tensors.Mask) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        for _ in range(self.max_draws):
            cropped = self.crop(image, label_map)
            labels = cropped[1][cropped[1] != self.ignore_index]
            # a crop without labels teaches nothing: it counts as one-sided
            if labels.numel() and torch.bincount(labels.long()).max() <= self.max_class_share * labels.numel():
                break
        return cropped


def training_augmentation(
    base_size: Sequence[int],
    crop_size: Sequence[int],
    image_mean: Sequence[float],
    scale_range: Sequence[float] = (0.5, 2.0),
    color_jitter: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
    max_class_share: float = 0.75,
    ignore_index: int = 255,
) -> v2.Transform:
    """
    The augmentation of a training sample.

    Args:
        base_size (`(height, width)`): Size that a scale of 1 fits the image into, keeping its aspect ratio.
        crop_size (`(height, width)`): Size of the result.
        image_mean (`Sequence[float]`): Mean that normalisation subtracts (0 to 1), so that padding becomes 0.
        scale_range (`(lowest, highest)`, *optional*): Random scale.
        color_jitter (`Sequence[float]`, *optional*): Brightness, contrast, saturation and hue.
        max_class_share (`float`, *optional*): Limit of [`RandomCropWithClassLimit`].
        ignore_index (`int`, *optional*): Label of padding.

    Returns:
        `v2.Transform`: takes and gives a `tv_tensors.Image (3, height, width)` uint8 and a `tv_tensors.Mask (height,
        width)` uint8.
    """
    fill = [255 * mean for mean in image_mean]
    transforms = [
        v2.ScaleJitter(tuple(base_size), scale_range=tuple(scale_range), antialias=True),
        RandomCropWithClassLimit(crop_size, fill, ignore_index, max_class_share),
        v2.RandomHorizontalFlip(),
    ]
    if any(color_jitter):
        transforms.append(v2.ColorJitter(*color_jitter))
    return v2.Compose(transforms)
