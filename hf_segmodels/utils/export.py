# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""What a graph is being made for, and what is done otherwise in one for export."""

import torch


# run, not traced: torch 2.11 traces `torch.compiler.is_exporting()` as true under `torch.compile` as well
@torch.compiler.assume_constant_result
def is_exporting() -> bool:
    """Whether `torch.export` is tracing, whose graphs have to hold for every size; false under `torch.compile`."""
    return torch.compiler.is_exporting()


def crop(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The upper left part of `(batch_size, num_channels, height, width)`."""
    if not is_exporting():
        return maps[..., : size[0], : size[1]]
    # the strides of a slice would make an exported graph hold only for sizes that are cropped, or only for the others
    rows, columns = (torch.arange(side, device=maps.device) for side in size)
    return maps.index_select(2, rows).index_select(3, columns)


__all__ = ["crop", "is_exporting"]
