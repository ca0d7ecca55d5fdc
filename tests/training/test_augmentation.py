# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""The papers' augmentation, and the batches that are made of it."""

import colorsys

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from hf_segmodels import RegProxyImageProcessor, UNEPTImageProcessor
from hf_segmodels.training import TrainingCollator
from hf_segmodels.training.augmentation import (
    PhotometricDistortion,
    RandomCropWithClassLimit,
    RandomScale,
    scale_saturation,
    training_augmentation,
)


def sample(height, width):
    generator = torch.Generator().manual_seed(height * width)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 3, (height, width), generator=generator, dtype=torch.uint8)
    return tv_tensors.Image(image), tv_tensors.Mask(labels)


@pytest.mark.parametrize(
    ("size", "scale", "expected"),
    [
        ((48, 64), 1.0, (51, 68)),  # the shorter edge fits 51, the longer could be 204
        ((64, 48), 1.0, (68, 51)),  # portrait: the same rule, turned
        ((20, 300), 1.0, (14, 204)),  # elongated: the longer edge bounds
        ((48, 64), 0.5, (25, 33)),  # bounds are truncated (25 and 102), sizes rounded
    ],
)
def test_scale_keeps_the_aspect_ratio_within_both_bounds(size, scale, expected):
    image, label_map = RandomScale([51, 204], [scale, scale])(*sample(*size))
    assert image.shape[-2:] == label_map.shape == expected
    assert isinstance(image, tv_tensors.Image)
    assert image.dtype == label_map.dtype == torch.uint8


def test_scales_are_uniform_between_their_bounds():
    torch.manual_seed(0)
    heights = [RandomScale([100, 400], [0.5, 2.0])(*sample(10, 10))[0].shape[-2] for _ in range(200)]
    assert 50 <= min(heights) < 60
    assert 190 < max(heights) <= 200
    assert np.mean(heights) == pytest.approx(125, abs=10)


def test_crops_avoid_one_class_filling_them():
    labels = torch.zeros(64, 64, dtype=torch.uint8)
    labels[:, 40:] = 1
    image = tv_tensors.Image(labels[None].repeat(3, 1, 1))
    ratios = []
    for ratio in (1.0, 0.75):
        crop = RandomCropWithClassLimit([16, 16], max_class_ratio=ratio)
        torch.manual_seed(0)
        drawn = [crop(image, tv_tensors.Mask(labels)) for _ in range(40)]
        assert all(torch.equal(cropped[0], label_map) for cropped, label_map in drawn)
        ratios.append(sum(bool((label_map.float().mean() - 0.5).abs() <= 0.25) for _, label_map in drawn) / 40)
    assert ratios[0] < 0.6
    assert ratios[1] > 0.8


def test_ignored_pixels_do_not_count_in_a_crop():
    labels = torch.full((8, 8), 255, dtype=torch.uint8)
    labels[:4] = 0
    image = tv_tensors.Image(labels[None].repeat(3, 1, 1))
    # one class only, and only ignored pixels: the last draw is used
    assert RandomCropWithClassLimit([4, 4])(image, tv_tensors.Mask(labels))[0].shape == (3, 4, 4)
    labels[3] = 1
    torch.manual_seed(0)
    tops = {int((RandomCropWithClassLimit([6, 8])(image, tv_tensors.Mask(labels))[1] != 255).sum()) for _ in range(20)}
    # rows 0 to 5 have 24 zeros and 8 ones: 0.75 is not below the limit
    assert 32 not in tops


def test_saturation_is_that_of_hsv():
    image, _ = sample(16, 16)
    for factor in (0.0, 0.5, 1.0, 1.5):
        ours = scale_saturation(image.as_subclass(torch.Tensor), factor).flatten(1).T.tolist()
        for pixel, result in zip(image.flatten(1).T.tolist(), ours, strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in pixel))
            expected = colorsys.hsv_to_rgb(hue, min(1.0, saturation * factor), value)
            assert result == pytest.approx([255 * channel for channel in expected], abs=0.51)


def test_brightness_is_added_and_contrast_multiplied():
    image, label_map = sample(8, 8)
    shifts, factors = set(), set()
    for seed in range(60):
        torch.manual_seed(seed)
        shifted = PhotometricDistortion(contrast=(1, 1), saturation=(1, 1), hue=0.0)(image, label_map)
        assert shifted[1] is label_map
        inside = (shifted[0] > 0) & (shifted[0] < 255)
        difference = (shifted[0].int() - image.int())[inside]
        assert difference.max() - difference.min() <= 1
        shifts.add(int(difference[0]))
        scaled = PhotometricDistortion(brightness=0, saturation=(1, 1), hue=0.0)(image, label_map)[0]
        inside = (scaled < 255) & (image > 100)
        ratio = scaled[inside] / image[inside]
        assert ratio.max() - ratio.min() < 0.02
        factors.add(round(ratio.mean().item(), 2))
    assert -32 <= min(shifts) < -20
    assert 20 < max(shifts) <= 32
    assert 0 in shifts
    assert 0.5 <= min(factors) < 0.6
    assert 1.0 in factors
    # at 1.5 all that is above 170 is clipped, and the factor seen is smaller
    assert max(factors) > 1.3


def test_hue_turns():
    image = tv_tensors.Image(torch.tensor([200, 40, 40], dtype=torch.uint8)[:, None, None])
    hues = []
    for seed in range(60):
        torch.manual_seed(seed)
        turned, _ = PhotometricDistortion(brightness=0, contrast=(1, 1), saturation=(1, 1))(image, None)
        hue = colorsys.rgb_to_hsv(*turned.flatten().tolist())[0]
        hues.append(hue if hue < 0.5 else hue - 1)
    assert -0.105 < min(hues) < -0.07
    assert 0.07 < max(hues) < 0.105


def test_batches_are_normalized_and_padded_at_the_bottom_and_right():
    samples = [training_augmentation([16, 64], [24, 24], (1.0, 1.0))(*sample(16, 20)), sample(24, 24)]
    processor = RegProxyImageProcessor(do_reduce_labels=True, num_labels=3)
    batch = TrainingCollator(processor, [24, 24])(samples)
    assert batch["pixel_values"].shape == (2, 3, 24, 24)
    assert batch["labels"].shape == (2, 24, 24)
    assert batch["labels"].dtype == torch.int64
    assert (batch["labels"][0, 16:] == 255).all()
    assert (batch["labels"][0, :, 20:] == 255).all()
    assert batch["pixel_values"][0, :, 16:].abs().max() == 0
    # labels were reduced as they were read
    assert torch.equal(batch["labels"][1], samples[1][1].long())
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    expected = (samples[1][0].as_subclass(torch.Tensor) / 255 - mean) / std
    torch.testing.assert_close(batch["pixel_values"][1], expected, rtol=0, atol=1e-5)


def test_batches_hold_boundary_targets_and_checked_labels():
    batch = TrainingCollator(UNEPTImageProcessor(num_labels=3), [24, 32])([sample(24, 24)])
    assert batch["distance_maps"].shape == batch["angle_maps"].shape == (1, 24, 32)
    with pytest.raises(ValueError, match="outside the 2 classes"):
        TrainingCollator(UNEPTImageProcessor(num_labels=2), [24, 24])([sample(24, 24)])
