# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Helpers for model code that `torch.export` traces."""

import torch


# Evaluated instead of traced: torch 2.11 traces `torch.compiler.is_exporting()` as true under `torch.compile` as well.
@torch.compiler.assume_constant_result
def is_exporting() -> bool:
    """Whether `torch.export` is tracing, so that the graph has to hold for every image size. False in `torch.compile`."""
    return torch.compiler.is_exporting()


def crop(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Crop `(batch_size, num_channels, height, width)` to its upper left `(height, width)` `size`."""
    if not is_exporting():
        return maps[..., : size[0], : size[1]]
    # The strides of a slice would specialize an exported graph to sizes that are cropped, or to sizes that are not.
    rows, columns = (torch.arange(side, device=maps.device) for side in size)
    return maps.index_select(2, rows).index_select(3, columns)
