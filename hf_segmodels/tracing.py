# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""What a graph is being made for."""

import torch


# run, not traced: torch 2.11 traces `torch.compiler.is_exporting()` as true under `torch.compile` as well
@torch.compiler.assume_constant_result
def is_exporting() -> bool:
    """Whether `torch.export` is tracing, whose graphs have to hold for every size; false under `torch.compile`."""
    return torch.compiler.is_exporting()


__all__ = ["is_exporting"]
