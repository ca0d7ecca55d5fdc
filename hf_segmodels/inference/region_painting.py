# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""From scores of regions to scores and labels of pixels, where each pixel belongs to one region."""

import torch
from torch import nn


def resize_regions(regions: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resizes maps of regions `(batch_size, height, width)` to `size`: each pixel takes the nearest one's region."""
    if tuple(regions.shape[-2:]) == tuple(size):
        return regions
    # there is no nearest neighbor for integers; float32 holds those below 2**24
    return nn.functional.interpolate(regions[:, None].float(), size=size, mode="nearest-exact")[:, 0].long()


def region_slots(regions: torch.Tensor, num_regions: int) -> torch.Tensor:
    """Flat maps `(batch_size, height * width)` in which pixels of no region (negative) have index `num_regions`."""
    return torch.where(regions < 0, num_regions, regions).flatten(1)


def paint_scores(region_scores: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """
    Gives each pixel its region's scores.

    Args:
        region_scores (`torch.Tensor` of shape `(batch_size, num_regions, num_labels)`): Scores of each region.
        regions (`torch.Tensor` of shape `(batch_size, height, width)`, int64): Region of each pixel; negative for none.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_labels, height, width)`; 0 where there is no region.
    """
    slots = region_slots(regions, region_scores.shape[1])
    # (batch_size, N, K) -> (batch_size, K, N + 1) -> (batch_size, K, height * width)
    scores = nn.functional.pad(region_scores.transpose(1, 2), (0, 1))
    painted = scores.gather(2, slots[:, None].expand(-1, scores.shape[1], -1))
    return painted.unflatten(2, regions.shape[1:])


def paint_labels(region_scores: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """
    Gives each pixel its region's best label: `paint_scores(...).argmax(1)` without painting scores. Arguments as there.

    Returns:
        `torch.Tensor` of shape `(batch_size, height, width)`, int64; 0 where there is no region.
    """
    labels = nn.functional.pad(region_scores.argmax(dim=2), (0, 1))
    return labels.gather(1, region_slots(regions, region_scores.shape[1])).view(regions.shape)
