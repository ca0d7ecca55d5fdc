# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""A model with its image processor: PIL image in, label map out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import BatchFeature

from ..utils.errors import UserError, first_line
from .prediction import choose_windows


@dataclass
class Predictor:
    """A model with its image processor: PIL image in, label map out."""

    model: Any
    """A `PreTrainedModel`. Models of transformers itself have no `predict`."""
    image_processor: Any
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the model's `predict`."""

    @property
    def id2label(self) -> dict[int, str]:
        return self.model.config.id2label

    @property
    def is_batch_dependent(self) -> bool:
        """Whether a label map depends on which other images are in the batch."""
        return getattr(self.model.config, "decoder_self_attention", None) == "across_batch"

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Segment an RGB image of `(height, width)`. Returns its label map `(height, width)`, int64."""
        return self.predict([self.prepare(image)], [(image.height, image.width)])[0]

    def prepare(self, image: Image.Image) -> dict[str, torch.Tensor]:
        """Preprocess an RGB image to model inputs on the CPU, with `batch_size` 1."""
        return dict(self.image_processor(images=[image], return_tensors="pt"))

    @torch.inference_mode()
    def predict(
        self, inputs: Sequence[dict[str, torch.Tensor]], target_sizes: Sequence[tuple[int, int]]
    ) -> list[np.ndarray]:
        """
        Segment preprocessed images in one batch.

        Args:
            inputs (`Sequence[dict[str, torch.Tensor]]`): Inputs from `prepare`, all of the same shapes.
            target_sizes (`Sequence[tuple[int, int]]`): Target `(height, width)` of each label map.

        Returns:
            `list[np.ndarray]`: Label map `(height, width)` of each image, int64.
        """
        # each (1, ...) -> (batch_size, ...)
        batch = BatchFeature({name: torch.cat([item[name] for item in inputs]) for name in inputs[0]})
        batch = batch.to(self.model.device, self.model.dtype)
        if hasattr(self.model, "predict"):
            # Some models take more inputs than `pixel_values`.
            label_maps = self.model.predict(**batch, target_sizes=target_sizes, **self.options)
        else:
            outputs = self.model(pixel_values=batch["pixel_values"])
            label_maps = self.image_processor.post_process_semantic_segmentation(outputs, target_sizes)
        return [label_map.cpu().numpy() for label_map in label_maps]


def load_predictor(
    model: str,
    *,
    device: str | None = None,
    dtype: str = "float32",
    attention: str | None = None,
    **options: Any,
) -> Predictor:
    """
    Load a model and its image processor with the Auto classes.

    Args:
        model (`str`): Folder of a model, or name of a repository on the Hub.
        device (`str`, *optional*): Device of the model. Defaults to CUDA if available, otherwise the CPU.
        dtype (`str`, *optional*, defaults to `"float32"`): Data type of weights and computation. `"auto"` is the data type
            of the saved weights.
        attention (`str`, *optional*): `attn_implementation`. Defaults to that of transformers.
        options: Arguments of `predict`. Not supported for models of transformers itself, which have no `predict`.

    Returns:
        [`Predictor`]: The model in evaluation mode.

    Raises:
        UserError: if the model does not exist, is damaged or is not a semantic segmentation model, if the device does not
            exist, or if `window_stride` exceeds `window_size`.
    """
    torch_device = _find_device(device)
    path = Path(model).expanduser()
    if path.is_dir():
        model = str(path)
        if not (path / "config.json").is_file():
            raise UserError(f"no config.json in {model}: give the folder that `save_pretrained` wrote.")
    elif path.is_file():
        raise UserError(
            f"{model} is a file: give the folder of a model. Convert a checkpoint of an original repository with "
            "`hf-segmodels convert` first."
        )
    elif model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UserError(
            f"there is no folder {model}: give the folder of a model, or the name of a repository on the Hub."
        )

    transformers.utils.logging.disable_progress_bar()
    load_options: dict[str, Any] = {"dtype": dtype if dtype == "auto" else getattr(torch, dtype)}
    if attention is not None:
        load_options["attn_implementation"] = attention
    source = model if path.is_dir() else f"the repository {model} (there is no such folder here)"
    try:
        network, loading_info = transformers.AutoModelForSemanticSegmentation.from_pretrained(
            model, output_loading_info=True, **load_options
        )
        image_processor = transformers.AutoImageProcessor.from_pretrained(model)
    except Exception as error:  # transformers, json and safetensors raise any exception for damaged or foreign folders
        raise UserError(f"cannot load a semantic segmentation model from {source}: {first_line(error)}") from error
    missing = sorted(loading_info["missing_keys"])
    if missing:
        raise UserError(
            f"{source} lacks weights that segmentation needs ({', '.join(missing[:3])}{', ...' if missing[3:] else ''}): "
            "give a model that was trained for segmentation."
        )
    if hasattr(network, "predict"):
        try:
            choose_windows(network.config, options.get("window_size"), options.get("window_stride"))
        except ValueError as error:
            raise UserError(f"--window and --stride do not fit together: {error}") from error
    else:
        if options:
            flags = {"window_size": "--window", "window_stride": "--stride", "scales": "--scales", "flip": "--flip"}
            used = ", ".join(flags.get(name, name) for name in options)
            raise UserError(
                f"{type(network).__name__} has no `predict` and does not support {used}: remove these options."
            )
        if not hasattr(image_processor, "post_process_semantic_segmentation"):
            raise UserError(
                f"{type(network).__name__} has no `predict`, and {type(image_processor).__name__} has no "
                "`post_process_semantic_segmentation`: choose a model that returns label maps."
            )
    return Predictor(network.to(torch_device).eval(), image_processor, options)


def _find_device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()  # fails on "meta" too
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = first_line(error).partition(". ")[0]
        raise UserError(f"cannot use the device {name} ({reason}): try --device cpu.") from error
    return device


def describe_failure(error: ValueError | RuntimeError) -> str:
    """Message for an image that the model could not segment."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory: try a smaller --window, fewer --scales or --device cpu"
    return first_line(error)
