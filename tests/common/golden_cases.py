# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Helpers for tests that compare converted models with stored outputs of the originals."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hf_segmodels.conversion.checkpoint_format import CheckpointFormat, MappedWeights


Arrays = Mapping[str, torch.Tensor]


def load(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.load(path))


def load_folder(folder: Path) -> dict[str, torch.Tensor]:
    return {path.stem: load(path) for path in sorted(folder.glob("*.npy"))}


def load_npz(path: Path) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in np.load(path).items()}


def upsample(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def without_dropout(model: nn.Module) -> nn.Module:
    """Switches dropout and drop path off, in training mode too."""
    for module in model.modules():
        for name in ("p", "drop_prob", "attention_dropout"):
            if hasattr(module, name):
                setattr(module, name, 0.0)
    return model


def on_meta(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def check_architecture(
    checkpoint_format: CheckpointFormat, weights: Arrays, values: Mapping[str, Any], num_parameters: int
) -> MappedWeights:
    """Every parameter and buffer of the model has one of the checkpoint, of its shape, and the other way round."""
    mapped = checkpoint_format.map_weights(weights, values)
    with torch.device("meta"):
        model = checkpoint_format.model_class(mapped.config)
    assert {name: tensor.shape for name, tensor in mapped.tensors.items()} == {
        name: tensor.shape for name, tensor in model.state_dict().items()
    }
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    return mapped
