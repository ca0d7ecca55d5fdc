# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""What a conversion gives, and writing it in one piece or not at all."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers.image_processing_base import ImageProcessingMixin
from transformers.modeling_utils import PreTrainedModel

from ..utils import files as folders
from .checkpoint_files import ConversionError


@dataclass(frozen=True)
class Conversion:
    """
    A converted checkpoint.

    Args:
        method (`str`): `"segmenter"`, `"segvit"`, `"regproxy"` or `"backbone"`.
        model (`PreTrainedModel`): The model, in eval mode.
        image_processor (`ImageProcessingMixin`): Its image processor.
        dropped_keys (`list[str]`): Original parameters that the model has no use for.
        image_size (`tuple[int, int]`): Height and width that it was trained at.
        reference (`Callable`): The original's forward pass over the original weights: `pixel_values` -> what
            `model_scores` gives.
        model_scores (`Callable`): A model of this class and `pixel_values` -> the tensor that is compared.
        notes (`list[str]`): What a user should know of choices that were made.
    """

    method: str
    model: PreTrainedModel
    image_processor: ImageProcessingMixin
    dropped_keys: list[str]
    image_size: tuple[int, int]
    reference: Callable[[torch.Tensor], torch.Tensor]
    model_scores: Callable[[Any, torch.Tensor], torch.Tensor]
    notes: list[str] = field(default_factory=list)


def full_size_logits(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """A model's logits at the size of its input: `model_scores` of a [`Conversion`]."""
    logits = model(pixel_values).logits
    return torch.nn.functional.interpolate(logits, size=pixel_values.shape[-2:], mode="bilinear", align_corners=False)


# What a conversion, an earlier one too, may have left in a folder.
_ARTIFACTS = ("config.json", "preprocessor_config.json", "parity_report.json", "model*.safetensors*")


def _artifacts(folder: Path) -> Iterator[Path]:
    for pattern in _ARTIFACTS:
        yield from folder.glob(pattern)


@contextmanager
def atomic_directory(folder: Path, overwrite: bool) -> Iterator[Path]:
    """
    Gives a new folder beside `folder` to write to. When the block ends it becomes `folder`; when it fails it is removed
    and nothing has changed.

    Args:
        folder (`Path`): The folder that is to hold the results.
        overwrite (`bool`): Whether it may hold something: files of an earlier conversion are replaced, others kept.

    Raises:
        ConversionError: if it holds something and `overwrite` is not set.
    """
    if folders.is_non_empty(folder) and (not overwrite or not folder.is_dir()):
        advice = (
            "choose another --output_dir, or pass --overwrite" if folder.is_dir() else "choose another --output_dir"
        )
        raise ConversionError(f"{folder} is {'not empty' if folder.is_dir() else 'a file'}: {advice}.")
    with folders.atomic_directory(folder, _artifacts) as partial:
        yield partial


__all__ = ["Conversion", "atomic_directory", "full_size_logits"]
