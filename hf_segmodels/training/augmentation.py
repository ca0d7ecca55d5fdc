# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
The papers' augmentation of an image and its label map (mmsegmentation's pipeline): random scale, crop, flip and colors.

The transforms build on torchvision. Its own transforms differ: they fit portrait images into a landscape box, pad on all sides
and before the colors change, and blend brightness, contrast and saturation with gray.
"""

from collections.abc import Sequence

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from transformers.image_utils import PILImageResampling

from ..image_processing.resizing import resize_image, resize_label_map, resized_size


class RandomScale(v2.Transform):
    """
    Resize image (bilinear, as OpenCV) and label map (nearest) by a scale that is uniform in `scale_range`. `base_size (shorter,
    longer)` bounds the two edges at scale 1, in pixels; the aspect ratio is kept.
    """

    def __init__(self, base_size: Sequence[int], scale_range: Sequence[float]):
        super().__init__()
        self.base_size, self.scale_range = tuple(sorted(base_size)), tuple(scale_range)

    def forward(self, image: tv_tensors.Image, label_map: tv_tensors.Mask) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        scale = torch.empty(()).uniform_(*self.scale_range).item()
        shorter, longer = (max(1, int(edge * scale)) for edge in self.base_size)
        height, width = image.shape[-2:]
        size = resized_size(height, width, {"shortest_edge": shorter, "longest_edge": longer})
        if size == (height, width):
            return image, label_map
        resized = resize_image(image.as_subclass(torch.Tensor), size, PILImageResampling.BILINEAR, antialias=False)
        return tv_tensors.Image(resized), tv_tensors.Mask(resize_label_map(label_map.as_subclass(torch.Tensor), size))


class RandomCropWithClassLimit(v2.Transform):
    """
    Random crop of `size (height, width)` in which no class has `max_class_ratio` or more of the labeled pixels (mmsegmentation's
    `cat_max_ratio`); 1 uses the first draw. After ten unsuccessful draws, the next draw is used. An edge shorter than the crop is
    kept whole.
    """

    max_draws = 10

    def __init__(self, size: Sequence[int], ignore_index: int = 255, max_class_ratio: float = 0.75):
        super().__init__()
        self.size, self.ignore_index, self.max_class_ratio = tuple(size), ignore_index, max_class_ratio

    def forward(self, image: tv_tensors.Image, label_map: tv_tensors.Mask) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        for _ in range(self.max_draws + 1):
            box = self._draw(image)
            cropped = F.crop(label_map, *box)
            if self.max_class_ratio >= 1 or self._is_mixed(cropped):
                break
        return F.crop(image, *box), cropped

    def _draw(self, image: tv_tensors.Image) -> tuple[int, int, int, int]:
        """Return top, left, height and width of a random crop."""
        sizes = [min(edge, crop) for edge, crop in zip(image.shape[-2:], self.size, strict=True)]
        top, left = (
            int(torch.randint(0, edge - size + 1, ())) for edge, size in zip(image.shape[-2:], sizes, strict=True)
        )
        return top, left, sizes[0], sizes[1]

    def _is_mixed(self, label_map: tv_tensors.Mask) -> bool:
        labels = label_map[label_map != self.ignore_index].as_subclass(torch.Tensor)
        # a crop without labels has no training signal, so it is drawn again
        return labels.numel() > 0 and bool(torch.bincount(labels.long()).max() < self.max_class_ratio * labels.numel())


class PhotometricDistortion(v2.Transform):
    """
    Random brightness, contrast, saturation and hue, each with probability 0.5 and clipped to 8 bits; contrast comes second
    or last (mmsegmentation's `PhotoMetricDistortion`). The label map is unchanged.

    Args:
        brightness (`int`, *optional*, defaults to 32): Largest value added to all channels, which range to 255.
        contrast, saturation (`(lowest, highest)`, *optional*, defaults to `(0.5, 1.5)`):
            Range of the factor of all channels, and of the saturation in HSV.
        hue (`float`, *optional*, defaults to 0.1): Largest shift of the hue in HSV, as a fraction of its range.
    """

    def __init__(
        self,
        brightness: int = 32,
        contrast: Sequence[float] = (0.5, 1.5),
        saturation: Sequence[float] = (0.5, 1.5),
        hue: float = 0.1,
    ):
        super().__init__()
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue

    def forward(self, image: tv_tensors.Image, label_map: tv_tensors.Mask) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        pixels = image.as_subclass(torch.Tensor)
        does_contrast, contrast = _chance(), _uniform(*self.contrast)
        contrast_is_second = _chance()
        if _chance():
            pixels = _to_uint8(pixels.float() + _uniform(-self.brightness, self.brightness))
        if does_contrast and contrast_is_second:
            pixels = _to_uint8(pixels.float() * contrast)
        if _chance():
            pixels = scale_saturation(pixels, _uniform(*self.saturation))
        if _chance():
            pixels = F.adjust_hue(pixels, _uniform(-self.hue, self.hue))
        if does_contrast and not contrast_is_second:
            pixels = _to_uint8(pixels.float() * contrast)
        return tv_tensors.Image(pixels), label_map


def scale_saturation(image: torch.Tensor, factor: float) -> torch.Tensor:
    """
    Multiply the saturation in HSV of a `(3, height, width)` uint8 RGB image by `factor`, up to its maximum. Hue and value are
    unchanged.
    """
    pixels = image.float()
    value = pixels.amax(dim=0)
    saturation = 1 - pixels.amin(dim=0) / value.clamp(min=1)
    # the largest factor is the one that makes the smallest channel 0
    factors = (1 / saturation.clamp(min=1e-6)).clamp(max=factor)
    return _to_uint8(value - (value - pixels) * factors)


def _to_uint8(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)


def _chance() -> bool:
    return bool(torch.rand(()) < 0.5)


def _uniform(lowest: float, highest: float) -> float:
    return torch.empty(()).uniform_(lowest, highest).item()


def training_augmentation(
    base_size: Sequence[int],
    crop_size: Sequence[int],
    scale_range: Sequence[float] = (0.5, 2.0),
    photometric_distortion: bool = True,
    max_class_ratio: float = 0.75,
    ignore_index: int = 255,
) -> v2.Transform:
    """
    Return the augmentation of a training sample, a `tv_tensors.Image (3, height, width)` uint8 and a `tv_tensors.Mask (height,
    width)`: [`RandomScale`], [`RandomCropWithClassLimit`], flip and [`PhotometricDistortion`]. [`TrainingCollator`] pads samples
    that are smaller than the crop.
    """
    crop = RandomCropWithClassLimit(crop_size, ignore_index, max_class_ratio)
    colors = [PhotometricDistortion()] if photometric_distortion else []
    return v2.Compose([RandomScale(base_size, scale_range), crop, v2.RandomHorizontalFlip(), *colors])
