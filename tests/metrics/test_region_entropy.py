# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
import math

import pytest
import torch
from scipy.stats import entropy

from hf_segmodels.image_processing.label_maps import label_histograms
from hf_segmodels.metrics import region_entropies


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
    # any integer type, as the originals' label maps are uint8
    assert torch.equal(label_histograms(regions, labels.to(torch.uint8), 5, 3), expected)


def test_entropy_of_pure_mixed_and_empty_regions():
    histograms = torch.tensor([[[8.0, 0, 0], [1, 1, 0]], [[0, 0, 0], [1, 2, 5]]])
    found = region_entropies(histograms)
    assert found.tolist() == pytest.approx([0, math.log(2), entropy([1, 2, 5])])
