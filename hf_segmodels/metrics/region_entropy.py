# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""How mixed the classes of a region are (RegProxy, section 5.3)."""

import torch


def label_histograms(
    regions: torch.Tensor, labels: torch.Tensor, num_regions: int, num_labels: int, ignore_index: int = 255
) -> torch.Tensor:
    """
    How many pixels of each class each region holds (RegProxy, equation 1, before its division by the number of pixels).

    Args:
        regions (`torch.Tensor` of shape `(batch_size, height, width)`, integer): The region of each pixel, from 0;
            negative where a pixel belongs to none.
        labels (`torch.Tensor` of shape `(batch_size, height, width)`, integer): Classes, or `ignore_index`.
        num_regions (`int`): Number N of regions.
        num_labels (`int`): Number K of classes.
        ignore_index (`int`, *optional*, defaults to 255): Label of pixels that do not count.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_regions, num_labels)`, float32.

    Raises:
        ValueError: if regions and labels differ in shape.
    """
    if regions.shape != labels.shape or regions.ndim != 3:
        raise ValueError(
            f"`regions` {tuple(regions.shape)} and `labels` {tuple(labels.shape)} must both have the shape (batch_size, "
            "height, width)."
        )
    batch_size = regions.shape[0]
    counts = (labels != ignore_index) & (regions >= 0)
    image = torch.arange(batch_size, device=regions.device).view(-1, 1, 1)
    position = ((image * num_regions + regions) * num_labels + labels)[counts]
    histograms = torch.bincount(position, minlength=batch_size * num_regions * num_labels)
    return histograms.view(batch_size, num_regions, num_labels).float()


def region_entropies(histograms: torch.Tensor) -> torch.Tensor:
    """
    The entropy, in nats, of each region's class histogram: 0 where all its pixels are of one class.

    Args:
        histograms (`torch.Tensor` of shape `(..., num_regions, num_labels)`): Pixels (or shares of pixels) of each class.

    Returns:
        `torch.Tensor` of shape `(n,)`, float32: of the regions that hold labelled pixels.
    """
    histograms = histograms.flatten(0, -2).float()
    totals = histograms.sum(dim=1, keepdim=True)
    shares = (histograms / totals)[totals[:, 0] > 0]
    return torch.special.entr(shares).sum(dim=1)


__all__ = ["label_histograms", "region_entropies"]
