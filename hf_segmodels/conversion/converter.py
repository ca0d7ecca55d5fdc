# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Conversion of an original repository's checkpoint into a model and an image processor."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import ImageProcessingMixin, PreTrainedModel

from ..utils import files
from .checkpoint_files import ConversionError, OriginalCheckpoint, read_checkpoint
from .checkpoint_format import CheckpointFormat
from .formats import FORMATS
from .key_mapping import load_strictly
from .mmcv_config import raise_as_conversion_error


@dataclass(frozen=True)
class Conversion:
    """
    A converted checkpoint.

    Args:
        checkpoint (`Path`): The file that was converted.
        format (`CheckpointFormat`): The format that it was read with.
        model (`PreTrainedModel`): The model, in eval mode.
        image_processor (`ImageProcessingMixin`): The model's image processor.
        originals (`dict[str, torch.Tensor]`): The original weights in float32.
        dropped_keys (`list[str]`): Original keys without a counterpart in the model.
        notes (`list[str]`): Choices of the conversion that a user should know.
    """

    checkpoint: Path
    format: CheckpointFormat
    model: PreTrainedModel
    image_processor: ImageProcessingMixin
    originals: dict[str, torch.Tensor]
    dropped_keys: list[str]
    notes: list[str]

    def save_pretrained(self, folder: Path) -> None:
        """Write model and image processor to a folder for `from_pretrained`."""
        self.model.save_pretrained(folder)
        self.image_processor.save_pretrained(folder)


# Kinds of files that people try to convert: (beginning of a key, name).
_UNSUPPORTED = (
    ("decode_head.", "an mmsegmentation model"),
    ("backbone.embeddings.", "a checkpoint that is converted already"),
    ("embeddings.", "a transformers model"),
)


def find_format(checkpoint: OriginalCheckpoint, method: str | None = None) -> CheckpointFormat:
    """
    Recognize the format of a checkpoint by its keys.

    Raises:
        ConversionError: if the keys are of another method, or of none that can be converted.
    """
    found = next((known for known in FORMATS if _has_key(checkpoint, known.signature)), None)
    if found is not None:
        if method in (None, found.method):
            return found
        kind, advice = found.title, f"use `--method {found.method}`, or leave --method out"
    else:
        kind = next((kind for key, kind in _UNSUPPORTED if _has_key(checkpoint, key)), "nothing that is known here")
        advice = f"only checkpoints of {', '.join(known.method for known in FORMATS)} can be converted"
    target = "a checkpoint that can be converted" if method is None else f"a checkpoint for `--method {method}`"
    keys = ", ".join(list(checkpoint.weights)[:3])
    raise ConversionError(f"{checkpoint.path} is not {target}: it looks like {kind}; {advice}. Its first keys: {keys}.")


def _has_key(checkpoint: OriginalCheckpoint, beginning: str | tuple[str, ...]) -> bool:
    return any(key.startswith(beginning) for key in checkpoint.weights)


def convert(checkpoint: str | Path, config: str | Path | None = None, method: str | None = None) -> Conversion:
    """
    Convert a checkpoint of an original repository. The model then behaves as the code that trained it.

    Args:
        checkpoint (`str` or `Path`):
            The file: `checkpoint.pth` of Segmenter; a `.pth` of SegViT, UN-EPT or RegProxy; or an encoder pre-trained on
            ImageNet: AugReg's `.npz`, DeiT's `.pth`, or a timm state dict (`.pth` or `.safetensors`).
        config (`str` or `Path`, *optional*):
            The original's configuration. Segmenter: `variant.yml`; defaults to the one beside the checkpoint. SegViT,
            UN-EPT, RegProxy: JSON or self-contained Python; defaults to the text inside the checkpoint, or to the
            configuration of the released checkpoint with the same keys and shapes. Encoders: a JSON file with any of
            `num_attention_heads`, `position_grid`, `layer_norm_eps` and `normalization` (`"vit"` or `"deit"`).
        method (`str`, *optional*):
            `"segmenter"`, `"segvit"`, `"unept"`, `"regproxy"` or `"backbone"`; defaults to the method that the keys
            belong to.

    Returns:
        [`Conversion`]: model in eval mode, image processor, and what a parity check needs.

    Raises:
        ConversionError: if a file is missing, damaged or of another method, if a weight is missing, left over or of
            another shape, or if the configuration does not describe the checkpoint.

    Example:

    ```python
    >>> from hf_segmodels.conversion import convert

    >>> conversion = convert("seg_small_mask/checkpoint.pth")  # doctest: +SKIP
    >>> conversion.save_pretrained("seg-small")  # doctest: +SKIP
    ```
    """
    original = read_checkpoint(Path(checkpoint))
    checkpoint_format = find_format(original, method)
    values, notes = checkpoint_format.read_config(original, None if config is None else Path(config))
    with raise_as_conversion_error(original.path):
        mapped = checkpoint_format.map_weights(original.weights, values)
        image_processor = checkpoint_format.image_processor(mapped.config, values)
    with torch.device("meta"):
        model = checkpoint_format.model_class(mapped.config)
    load_strictly(model, mapped.tensors, mapped.key_map)
    return Conversion(
        checkpoint=original.path,
        format=checkpoint_format,
        model=model.eval(),
        image_processor=image_processor,
        originals={key: tensor.float() for key, tensor in mapped.originals.items()},
        dropped_keys=mapped.dropped_keys,
        notes=notes + checkpoint_format.notes(mapped, values),
    )


# Files that an earlier conversion may have left in a folder.
_ARTIFACTS = ("config.json", "preprocessor_config.json", "parity_report.json", "model*.safetensors*")


def output_directory(folder: Path, overwrite: bool) -> AbstractContextManager[Path]:
    """
    Context manager that writes the output folder of a conversion as a whole or not at all; see
    [`~utils.files.atomic_directory`]. With `overwrite`, an earlier conversion is replaced and other files are kept.

    Raises:
        ConversionError: if `folder` is a file, or has contents and `overwrite` is not set.
    """
    if folder.exists() and not folder.is_dir():
        raise ConversionError(f"{folder} is a file: choose another --output_dir.")
    if files.is_non_empty(folder) and not overwrite:
        raise ConversionError(f"{folder} is not empty: choose another --output_dir, or pass --overwrite.")
    return files.atomic_directory(folder, lambda old: [file for pattern in _ARTIFACTS for file in old.glob(pattern)])
