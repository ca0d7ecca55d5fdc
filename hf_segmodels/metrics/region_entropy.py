# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""How mixed the classes of a region are (RegProxy, section 5.3)."""

import torch


def region_entropies(histograms: torch.Tensor) -> torch.Tensor:
    """
    The entropy, in nats, of each region's class histogram: 0 where all its pixels are of one class.

    Args:
        histograms (`torch.Tensor` of shape `(..., num_regions, num_labels)`): Pixels (or shares of pixels) of each class.

    Returns:
        `torch.Tensor` of shape `(n,)`, float32: of the regions that hold labeled pixels.
    """
    histograms = histograms.flatten(0, -2).float()
    totals = histograms.sum(dim=1, keepdim=True)
    shares = (histograms / totals)[totals[:, 0] > 0]
    return torch.special.entr(shares).sum(dim=1)


__all__ = ["region_entropies"]
