# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Interface of a checkpoint format: the one object that a method adds to the converter."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import ImageProcessingMixin, PreTrainedConfig, PreTrainedModel

from .checkpoint_files import OriginalCheckpoint
from .key_mapping import KeyMap, rename


Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class MappedWeights:
    """Weights of a checkpoint under this package's names."""

    config: Any  # of the model that the weights belong to
    tensors: dict[str, torch.Tensor]  # by this package's names
    key_map: KeyMap  # original names -> this package's names
    dropped_keys: list[str]  # original names without a counterpart in the model
    originals: dict[str, torch.Tensor]  # by their original names, without those that no layer uses


class CheckpointFormat(ABC):
    """
    How one original repository saves its checkpoints. `values` is the original's configuration, in its own terms.

    - `method` (`str`): value of `--method`.
    - `title` (`str`): name of the kind of checkpoint in messages.
    - `signature` (`tuple[str, ...]`): beginnings of keys that only this kind of checkpoint has.
    - `model_class` (`type`): the model that the weights are loaded into.
    - `keys` (`KeyMap`): key map, if all weights have the same.
    - `dropped` (`tuple[str, ...]`): patterns of keys without a counterpart in the model.
    """

    method: ClassVar[str]
    title: ClassVar[str]
    signature: ClassVar[tuple[str, ...]]
    model_class: ClassVar[type[PreTrainedModel]]
    keys: ClassVar[KeyMap]
    dropped: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def read_config(self, checkpoint: OriginalCheckpoint, path: Path | None) -> tuple[dict[str, Any], list[str]]:
        """
        Read the original's configuration from `path`, by default from where the method keeps it.

        Returns:
            The values, and notes for the user.

        Raises:
            ConversionError: if there is no readable configuration.
        """

    @abstractmethod
    def model_config(self, weights: Weights, tensors: Weights, values: Mapping[str, Any]) -> PreTrainedConfig:
        """
        Configuration with which the model behaves as the code that trained the checkpoint.

        `weights` have the original names and `tensors` this package's; only names and shapes count.

        Raises:
            ConversionError: if a value contradicts the weights or is not supported.
        """

    @abstractmethod
    def image_processor(self, config: Any, values: Mapping[str, Any]) -> ImageProcessingMixin:
        """Image processor that prepares images as the original's evaluation does."""

    @abstractmethod
    def reference(self, weights: Weights, config: Any, pixel_values: torch.Tensor) -> torch.Tensor:
        """The original's forward pass over the original weights; the result is compared with [`model_scores`]."""

    def key_map(self, weights: Weights) -> KeyMap:
        """Key map for these weights; defaults to `keys`."""
        return self.keys

    def drop_unused(self, weights: Weights, values: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], list[str]]:
        """Return the weights that a layer uses, and the names of the others."""
        return dict(weights), []

    def map_tensors(self, weights: Weights, renamed: Mapping[str, str]) -> dict[str, torch.Tensor]:
        """Tensors by this package's names, in this package's layout; `renamed` maps original names to these names."""
        return {ours: weights[original] for original, ours in renamed.items()}

    def notes(self, mapped: MappedWeights, values: Mapping[str, Any]) -> list[str]:
        """Choices of the conversion that a user should know."""
        return []

    def image_size(self, config: Any) -> tuple[int, int]:
        """`(height, width)` in pixels of the images that the model was trained on."""
        backbone = getattr(config, "backbone_config", config)
        rows, columns = backbone.position_grid
        return rows * backbone.patch_size, columns * backbone.patch_size

    def model_scores(self, model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
        """The model's output that is compared with [`reference`]: logits `(batch_size, num_labels, height, width)`."""
        logits = model(pixel_values).logits
        return torch.nn.functional.interpolate(
            logits, size=pixel_values.shape[-2:], mode="bilinear", align_corners=False
        )

    def map_weights(self, weights: Weights, values: Mapping[str, Any]) -> MappedWeights:
        """
        Rename weights and derive the model's configuration.

        Raises:
            ConversionError: if a key has no counterpart, or the configuration contradicts the weights.
        """
        used, unused = self.drop_unused(weights, values)
        key_map = self.key_map(used)
        renamed, dropped = rename(list(used), key_map, self.dropped)
        tensors = self.map_tensors(used, renamed)
        return MappedWeights(self.model_config(used, tensors, values), tensors, key_map, unused + dropped, used)
