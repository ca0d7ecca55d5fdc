# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Readers for checkpoints of other repositories; code in a checkpoint is never run."""

import pickle
import re
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..utils.errors import UserError, first_line


class ConversionError(UserError):
    """A checkpoint or configuration that cannot be converted; the message gives the reason and the fix."""


@dataclass(frozen=True)
class OriginalCheckpoint:
    """Contents of a checkpoint of another repository."""

    path: Path
    weights: dict[str, torch.Tensor]  # by their original keys, on the CPU
    meta: dict[str, Any]  # stored by mmcv beside the weights: configuration text, class names


# Container keys of the original training scripts (Segmenter and DeiT; mmcv).
_CONTAINERS = ("model", "state_dict")
# Errors of torch and numpy for a damaged file, beside their own.
_DAMAGED = (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError)


def find_checkpoint(path: Path, filename: str | None = None, revision: str | None = None) -> Path:
    """
    Return the path of a checkpoint on this machine: `path`; or, with `filename`, the file in the repository `path`
    (`owner/name`) on the Hub, at its branch, tag or commit `revision`, downloaded to the usual cache.

    Raises:
        ConversionError: if the repository or the file does not exist or cannot be reached.
    """
    if filename is None:
        if revision is not None:
            raise ConversionError("--revision needs a repository on the Hub: name its file with --filename, too.")
        if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", path.as_posix()):
            raise ConversionError(
                f"There is no file {path}. If it is a repository on the Hub, name the file in it with --filename."
            )
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(hf_hub_download(path.as_posix(), filename, revision=revision))
    except (OSError, HFValidationError) as error:  # the Hub's own errors are OSErrors
        place = f"{path.as_posix()} at {revision}" if revision else path.as_posix()
        raise ConversionError(
            f"Cannot get {filename} from {place} on the Hub ({first_line(error)}). Check both names on the repository's "
            "page and the connection; or download the file and give its path with --checkpoint."
        ) from error


def read_checkpoint(path: Path) -> OriginalCheckpoint:
    """
    Read a `.pth` file (bare, or with the weights under `"model"` or `"state_dict"`), a `.safetensors` or an `.npz` file.

    A file that can only be read by running pickled code is refused.

    Raises:
        ConversionError: if the file does not exist, is damaged, holds pickled code, or holds no weights.
    """
    contents = _read(path)
    meta = weights = None
    if isinstance(contents, dict):
        meta = contents.get("meta")
        weights = next((contents[name] for name in _CONTAINERS if isinstance(contents.get(name), dict)), contents)
        weights = {name: value for name, value in weights.items() if isinstance(value, torch.Tensor)}
    if not weights:
        raise ConversionError(
            f"{path} holds no weights: expected a dictionary of tensors, bare or under "
            f"{' or '.join(repr(name) for name in _CONTAINERS)}."
        )
    return OriginalCheckpoint(path, weights, meta if isinstance(meta, dict) else {})


def _read(path: Path) -> Any:
    if not path.is_file():
        raise ConversionError(f"There is no file {path}. Give the checkpoint's path with --checkpoint.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix != ".npz":
            return torch.load(path, map_location="cpu", weights_only=True)
        if not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile("not a zip archive, which every .npz file is")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (SafetensorError, pickle.UnpicklingError, *_DAMAGED) as error:
        reason = first_line(error)
        if isinstance(error, pickle.UnpicklingError):
            reason = "not a pickle of weights"
            if forbidden := re.search(r"GLOBAL (\S+)", str(error)):
                raise ConversionError(
                    f"{path} holds pickled Python objects ({forbidden[1]}) beside weights; loading it could run any code, so "
                    "it was not loaded. If you trust its source, save its weights alone in the environment that made it: "
                    "`torch.save({'model': torch.load(FILE, weights_only=False)['model']}, 'weights.pth')`."
                ) from error
        elif "allow_pickle" in str(error):
            raise ConversionError(
                f"{path} holds pickled Python objects; loading it could run any code, so it was not loaded. Save its arrays "
                "alone with `numpy.savez`."
            ) from error
        raise ConversionError(
            f"{path} ({path.stat().st_size} bytes) is damaged or not a checkpoint ({reason}). Compare its size with the "
            "original's and download it again."
        ) from error
