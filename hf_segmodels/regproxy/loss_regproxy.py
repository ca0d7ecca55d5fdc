# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Homogeneity of regions with respect to a label map (equation 11)."""

import torch
from torch import nn


def region_histograms(
    affinity: torch.Tensor,
    labels: torch.Tensor,
    num_labels: int,
    ignore_index: int = 255,
    padded_size: tuple[int, int] | None = None,
) -> torch.Tensor:
    """
    Class histogram of each region, in which pixels count by their affinity to it (equation 11, before the L1-norm). The
    histogram of a region without labeled pixels is zero.

    Args:
        affinity (`torch.Tensor` of shape `(batch_size, 9, h, w, H, W)`): Affinity of pixels to the neighboring tokens.
        labels (`torch.Tensor` of shape `(batch_size, height, width)`, integer): Classes, or `ignore_index`.
        padded_size (`tuple[int, int]`, *optional*): Height and width that the affinity spans, if larger than the label
            map (whole patches).

    Returns:
        `torch.Tensor` of shape `(batch_size, H * W, num_labels)`, float32.
    """
    batch_size, _, cell_height, cell_width, height, width = affinity.shape
    painted_height, painted_width = height * cell_height, width * cell_width
    padded_height, padded_width = padded_size or (labels.shape[1], labels.shape[2])

    # number of pixels of each class in each pixel of the painted map
    rows = torch.arange(labels.shape[1], device=labels.device) * painted_height // padded_height
    columns = torch.arange(labels.shape[2], device=labels.device) * painted_width // padded_width
    is_valid = labels != ignore_index
    plane = torch.arange(batch_size, device=labels.device).view(-1, 1, 1) * num_labels + labels.long() * is_valid
    position = (plane * painted_height + rows[:, None]) * painted_width + columns
    counts = affinity.new_zeros(batch_size * num_labels * painted_height * painted_width, dtype=torch.float32)
    counts = counts.index_add(0, position.flatten(), is_valid.flatten().float())
    # (batch_size * K * H * h * W * w,) -> (batch_size, K, H, h, W, w)
    counts = counts.view(batch_size, num_labels, height, cell_height, width, cell_width)

    # contribution of each cell to its neighboring tokens, then the sum for each token
    shares = torch.einsum("bnijyx,bkyixj->bknyx", affinity.float(), counts)
    # (batch_size, K, 9, H, W) -> (batch_size, K * 9, H * W) -> (batch_size, K, H, W)
    histograms = nn.functional.fold(shares.flatten(3).flatten(1, 2), (height, width), kernel_size=3, padding=1)
    # -> (batch_size, H * W, K)
    return histograms.flatten(2).transpose(1, 2)


def homogeneity_loss(
    affinity: torch.Tensor,
    labels: torch.Tensor,
    num_labels: int,
    ignore_index: int = 255,
    padded_size: tuple[int, int] | None = None,
) -> torch.Tensor:
    """
    One minus the L2-norm of a region's normalized class histogram (equation 11), mean over the regions with labeled
    pixels: 0 if each region holds one class, `1 - 1 / sqrt(K)` if all K classes are equally frequent.

    The paper minimizes the norm, which would spread regions over classes. Homogeneous regions, the purpose of the
    paper, need the opposite sign. A negative weight of this loss gives the formula of the paper.

    Args:
        affinity, labels, num_labels, ignore_index, padded_size: See [`region_histograms`].

    Returns:
        `torch.Tensor` of shape `()`, float32; 0 if no pixel is labeled.
    """
    histograms = region_histograms(affinity, labels, num_labels, ignore_index, padded_size)
    totals = histograms.sum(dim=2, keepdim=True)
    has_pixels = totals[..., 0] > 0
    # 1 in one entry, so that the norm of regions without labeled pixels has a gradient
    blank = nn.functional.pad(torch.ones_like(totals), (0, num_labels - 1))
    shares = torch.where(has_pixels[..., None], histograms / totals.where(totals > 0, 1), blank)
    return (1 - torch.linalg.vector_norm(shares, dim=2)).sum() / has_pixels.sum().clamp(min=1)
