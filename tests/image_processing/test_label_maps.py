# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
import torch

from hf_segmodels.image_processing.label_maps import label_histograms


def test_histograms_equal_counting_pixel_by_pixel():
    generator = torch.Generator().manual_seed(0)
    regions = torch.randint(-1, 4, (2, 6, 7), generator=generator)
    labels = torch.randint(0, 3, (2, 6, 7), generator=generator)
    labels[0, :2] = 255
    expected = torch.zeros(2, 5, 3)
    for image in range(2):
        for region, label in zip(regions[image].flatten().tolist(), labels[image].flatten().tolist(), strict=True):
            if region >= 0 and label != 255:
                expected[image, region, label] += 1
    assert torch.equal(label_histograms(regions, labels, num_regions=5, num_labels=3), expected)
    # any integer type: the label maps of the original code are uint8
    assert torch.equal(label_histograms(regions, labels.to(torch.uint8), 5, 3), expected)
