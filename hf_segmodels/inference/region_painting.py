# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Scores and labels of pixels from scores of regions, where each pixel belongs to at most one region."""

import torch
from torch import nn


def resize_regions(regions: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize maps of regions `(batch_size, height, width)` to `size` by nearest neighbor."""
    if tuple(regions.shape[-2:]) == tuple(size):
        return regions
    # `interpolate` takes no integers; float32 represents those below 2**24 exactly
    return nn.functional.interpolate(regions[:, None].float(), size=size, mode="nearest-exact")[:, 0].long()


def region_slots(regions: torch.Tensor, num_regions: int) -> torch.Tensor:
    """Flat maps `(batch_size, height * width)` in which pixels without a region (negative) have index `num_regions`."""
    return torch.where(regions < 0, num_regions, regions).flatten(1)


def paint_scores(region_scores: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """
    Give each pixel the scores of its region.

    Args:
        region_scores (`torch.Tensor` of shape `(batch_size, num_regions, num_labels)`): Scores of each region.
        regions (`torch.Tensor` of shape `(batch_size, height, width)`, int64): Region of each pixel; negative if the
            pixel has none.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_labels, height, width)`; 0 for pixels without a region.
    """
    slots = region_slots(regions, region_scores.shape[1])
    # (batch_size, N, K) -> (batch_size, K, N + 1) -> (batch_size, K, height * width)
    scores = nn.functional.pad(region_scores.transpose(1, 2), (0, 1))
    painted = scores.gather(2, slots[:, None].expand(-1, scores.shape[1], -1))
    return painted.unflatten(2, regions.shape[1:])


def paint_labels(region_scores: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """
    Give each pixel the best label of its region: `paint_scores(...).argmax(1)` without painting scores.

    Args:
        region_scores, regions: See [`paint_scores`].

    Returns:
        `torch.Tensor` of shape `(batch_size, height, width)`, int64; 0 for pixels without a region.
    """
    labels = nn.functional.pad(region_scores.argmax(dim=2), (0, 1))
    return labels.gather(1, region_slots(regions, region_scores.shape[1])).view(regions.shape)
