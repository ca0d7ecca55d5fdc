# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Reading foreign checkpoints without running what is in them, and telling whose they are."""

import pickle
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..utils.errors import UserError, first_line


class ConversionError(UserError):
    """A checkpoint or configuration that cannot be converted; the message says why and what to do."""


# Container keys of the original training scripts (Segmenter and DeiT; mmcv).
_CONTAINERS = ("model", "state_dict")


def find_checkpoint(path: Path, filename: str | None = None, revision: str | None = None) -> Path:
    """
    The file to convert: a local one, or one in a repository on the Hub, which is downloaded to the usual cache.

    Args:
        path (`Path`): The file; or, with a `filename`, the repository as `owner/name`.
        filename (`str`, *optional*): The file's path in the repository.
        revision (`str`, *optional*): The repository's branch, tag or commit.

    Raises:
        ConversionError: if there is no such repository or file, or it cannot be reached.
    """
    if filename is None:
        if revision is not None:
            raise ConversionError("--revision belongs to a repository on the Hub: name its file with --filename, too.")
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
            f"Cannot get {filename} from {place} on the Hub ({first_line(error)}). Compare both names with those on its "
            "page, and check the connection; or download the file and give its path with --checkpoint."
        ) from error


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """
    Reads the weights in a `.pth` (bare or inside `{"model"}` or `{"state_dict"}`), `.safetensors` or `.npz` file.

    Only numbers are read: a file that would have to run pickled code is refused.

    Returns:
        Tensors by their original names, on the CPU.

    Raises:
        ConversionError: if there is no such file, or it is damaged, holds code, or holds no weights.
    """
    return _find_weights(_read(path), path)


def read_checkpoint_and_meta(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """
    Reads the weights and the `meta` (configuration text, class names, ...) of a checkpoint that mmcv wrote.

    Returns:
        Tensors by their original names, on the CPU, and what stands under `meta`; empty where the file has none.

    Raises:
        ConversionError: as [`read_checkpoint`].
    """
    contents = _read(path)
    meta = contents.get("meta") if isinstance(contents, dict) else None
    return _find_weights(contents, path), meta if isinstance(meta, dict) else {}


def _read(path: Path) -> Any:
    if not path.is_file():
        raise ConversionError(f"There is no file {path}. Give the checkpoint's path with --checkpoint.")
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise _damaged(path, first_line(error)) from error
    return _read_torch(path)


def _find_weights(tensors: Any, path: Path) -> dict[str, torch.Tensor]:
    if isinstance(tensors, dict):
        tensors = next((tensors[name] for name in _CONTAINERS if isinstance(tensors.get(name), dict)), tensors)
    if not isinstance(tensors, dict) or not any(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise ConversionError(
            f"{path} holds no weights: expected a dictionary of tensors, bare or under "
            f"{' or '.join(repr(name) for name in _CONTAINERS)}."
        )
    return {name: value for name, value in tensors.items() if isinstance(value, torch.Tensor)}


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        forbidden = re.search(r"GLOBAL (\S+)", str(error))
        if forbidden is None:
            raise _damaged(path, "it is no pickle of weights") from error
        raise ConversionError(
            f"{path} holds pickled Python objects ({forbidden[1]}), not only weights; it was not loaded, because that could "
            "run any code. If you trust where it comes from, save its weights alone in the environment that made it: "
            "`torch.save({'model': torch.load(FILE, weights_only=False)['model']}, 'weights.pth')`."
        ) from error
    except (RuntimeError, EOFError, KeyError, ValueError, UnicodeDecodeError, AttributeError, IndexError) as error:
        raise _damaged(path, first_line(error)) from error


def _read_npz(path: Path) -> dict[str, torch.Tensor]:
    if not zipfile.is_zipfile(path):
        raise _damaged(path, "it is no zip archive, as .npz files are")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, TypeError, ValueError, KeyError) as error:
        if "allow_pickle" not in str(error):
            raise _damaged(path, first_line(error)) from error
        raise ConversionError(
            f"{path} holds pickled Python objects; it was not loaded, because that could run any code. Save its arrays "
            "alone with `numpy.savez`."
        ) from error


def _damaged(path: Path, reason: str) -> ConversionError:
    return ConversionError(
        f"{path} ({path.stat().st_size} bytes) is damaged or no checkpoint ({reason}). Compare its size with the "
        "original's and download it again."
    )


# First match wins: (start of a key, what has such keys, --method that converts it if there is one).
_SIGNATURES = (
    ("decode_head.affinity_head.", "RegProxy", "regproxy"),
    ("decode_head.q.", "SegViT", "segvit"),
    ("decode_head.atm.", "SegViT", "segvit"),
    ("context_branch.", "UN-EPT", "unept"),
    ("decode_head.", "an mmsegmentation model", None),
    ("encoder.patch_embed.", "Segmenter", "segmenter"),
    ("patch_embed.", "an ImageNet ViT or DeiT", "backbone"),
    ("Transformer/", "an AugReg ViT", "backbone"),
    ("opt/target/Transformer/", "an AugReg ViT", "backbone"),
    ("backbone.embeddings.", "a checkpoint that is converted already", None),
    ("embeddings.", "a transformers model", None),
)


def check_method(state_dict: dict[str, torch.Tensor], method: str, path: Path) -> None:
    """
    Checks that weights are of the kind that `--method` converts.

    Raises:
        ConversionError: if they are of another method; says which it looks like.
    """
    found = (signature for signature in _SIGNATURES if any(key.startswith(signature[0]) for key in state_dict))
    _, origin, origin_method = next(found, ("", "nothing that is known here", None))
    if origin_method == method:
        return
    advice = f"use `--method {origin_method}`" if origin_method else "which cannot be converted"
    shown = ", ".join(list(state_dict)[:3])
    raise ConversionError(
        f"{path} is no checkpoint for `--method {method}`: it looks like {origin}; {advice}. Its first keys: {shown}."
    )
