# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""A loaded model with its image processor: PIL image in, label map out."""

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

    model: Any  # a `PreTrainedModel`; not every one has `predict`
    image_processor: Any
    options: dict[str, Any] = field(default_factory=dict)
    """For the model's `predict`."""

    @property
    def id2label(self) -> dict[int, str]:
        return self.model.config.id2label

    @property
    def is_batch_dependent(self) -> bool:
        """Whether a label map depends on which other images are in the batch."""
        return getattr(self.model.config, "decoder_self_attention", None) == "across_batch"

    def __call__(self, image: Image.Image) -> np.ndarray:
        """The label map `(height, width)`, int64, of an RGB image of that size."""
        return self.predict([self.prepare(image)], [(image.height, image.width)])[0]

    def prepare(self, image: Image.Image) -> dict[str, torch.Tensor]:
        """What the model takes of an RGB image, on the CPU: a batch of one."""
        return dict(self.image_processor(images=[image], return_tensors="pt"))

    @torch.inference_mode()
    def predict(
        self, inputs: Sequence[dict[str, torch.Tensor]], target_sizes: Sequence[tuple[int, int]]
    ) -> list[np.ndarray]:
        """
        Segments prepared images in one batch.

        Args:
            inputs (`Sequence[dict[str, torch.Tensor]]`): From `prepare`, all of the same shapes.
            target_sizes (`Sequence[tuple[int, int]]`): For each image the `(height, width)` wanted.

        Returns:
            `list[np.ndarray]`: For each image the label map `(height, width)`, int64.
        """
        # each (1, ...) -> (batch_size, ...)
        batch = BatchFeature({name: torch.cat([item[name] for item in inputs]) for name in inputs[0]})
        batch = batch.to(self.model.device, self.model.dtype)
        if hasattr(self.model, "predict"):
            # all that the processor gives: some models take more than pixels
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
    Loads a model and its image processor with the Auto classes.

    Args:
        model (`str`): Folder, or name of a repository on the Hub.
        device (`str`, *optional*): Where it runs; CUDA where there is one if unset, otherwise the CPU.
        dtype (`str`, *optional*, defaults to `"float32"`): Data type of the weights and of the computation; `"auto"` for
            the one that they are saved in.
        attention (`str`, *optional*): `attn_implementation`; transformers' choice if unset.
        options: For `predict`. Models of transformers itself, which have no `predict`, take none.

    Raises:
        UserError: if there is no such model, it is damaged or of another kind, the device does not exist, or the
            window's options do not fit together.
    """
    torch_device = _find_device(device)
    path = Path(model).expanduser()
    if path.is_dir():
        model = str(path)
        if not (path / "config.json").is_file():
            raise UserError(f"no config.json in {model}: give the folder that `save_pretrained` wrote.")
    elif path.is_file():
        raise UserError(
            f"{model} is a file: give the folder of a model. A checkpoint of an original repository goes through "
            "`hf-segmodels convert` first."
        )
    elif model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise UserError(f"there is no folder {model}: give the folder of a model, or the name of a repository.")

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
    except Exception as error:  # transformers, json, safetensors: a damaged or foreign folder raises anything
        raise UserError(f"cannot load a semantic segmentation model from {source}: {first_line(error)}") from error
    missing = sorted(loading_info["missing_keys"])
    if missing:
        raise UserError(
            f"{source} lacks weights that segmentation needs ({', '.join(missing[:3])}{', ...' if missing[3:] else ''}): "
            "give a model that was trained or converted for it."
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
            raise UserError(f"{type(network).__name__} has no `predict` and so cannot do {used}: leave that out.")
        if not hasattr(image_processor, "post_process_semantic_segmentation"):
            raise UserError(
                f"{type(image_processor).__name__} has no `post_process_semantic_segmentation` and {type(network).__name__} "
                "no `predict`: choose a model that gives label maps."
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
    """What is said of an image that the model could not segment."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory: try a smaller --window, fewer --scales or --device cpu"
    return first_line(error)


__all__ = ["Predictor", "describe_failure", "load_predictor"]
