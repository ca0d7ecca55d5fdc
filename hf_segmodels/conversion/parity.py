# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Parity check: a converted model gives the same scores as the original."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForSemanticSegmentation
from transformers.backbone_utils import BackboneMixin

from .checkpoint_files import ConversionError
from .converter import Conversion


TOLERANCE = 1e-4


def compare(scores: torch.Tensor, reference: torch.Tensor) -> dict[str, Any]:
    """
    Compare scores `(batch_size, num_channels, height, width)` with a reference.

    Returns:
        `dict[str, Any]`: `shape`, `max_abs_difference`, `max_relative_difference` (to the largest reference score),
        `labels_equal_percent` (of the channels with the largest scores) and `passed`: whether the difference is at most
        1e-4, or 1e-4 of the largest score if that is above 1 (float32 has no more digits there).

    Raises:
        ConversionError: if the shapes differ.
    """
    if scores.shape != reference.shape:
        raise ConversionError(
            f"The model's scores have shape {tuple(scores.shape)}, the original's {tuple(reference.shape)}."
        )
    difference = (scores - reference).abs().max().item()
    largest = reference.abs().max().item()
    equal = (scores.argmax(dim=1) == reference.argmax(dim=1)).double().mean().item()
    return {
        "shape": list(scores.shape),
        "max_abs_difference": difference,
        "max_relative_difference": difference / max(largest, torch.finfo(torch.float32).tiny),
        "labels_equal_percent": round(100 * equal, 4),
        # a nan does not pass
        "passed": bool(difference <= TOLERANCE * max(1.0, largest)),
    }


@torch.no_grad()
def verify(conversion: Conversion, folder: Path) -> dict[str, Any]:
    """
    Load the model that was saved to a folder and compare it with the original's forward pass: on noise at the training
    size, on noise at an odd size, and on `input.npy` and `logits.npy` if these files are beside the checkpoint.

    Returns:
        `dict[str, Any]`: The report, which is also written to the folder; `report["passed"]` is whether all comparisons
        passed.

    Raises:
        ConversionError: if shapes of scores differ.
    """
    checkpoint, checkpoint_format, config = conversion.checkpoint, conversion.format, conversion.model.config
    model_class = type(conversion.model)
    if issubclass(model_class, BackboneMixin):
        # AutoBackbone.from_pretrained takes repositories of the Hub only
        model = model_class.from_pretrained(folder)
    else:
        # whole images: the original's network is compared, not its merging of windows
        model = AutoModelForSemanticSegmentation.from_pretrained(folder, window_size=None, window_stride=None)
    model.eval()
    height, width = checkpoint_format.image_size(config)
    generator = torch.Generator().manual_seed(0)
    num_channels = getattr(config, "backbone_config", config).num_channels
    inputs = {
        "noise at the training size": torch.randn(1, num_channels, height, width, generator=generator),
        # not a multiple of the patch size, and another grid in both directions
        "noise at an odd size": torch.randn(2, num_channels, height - 5, width // 2 + 3, generator=generator),
    }
    cases = {
        name: compare(
            checkpoint_format.model_scores(model, x), checkpoint_format.reference(conversion.originals, config, x)
        )
        for name, x in inputs.items()
    }
    stored_input, stored_logits = checkpoint.with_name("input.npy"), checkpoint.with_name("logits.npy")
    if stored_input.is_file() and stored_logits.is_file():
        stored_images, expected = (torch.from_numpy(np.load(file)) for file in (stored_input, stored_logits))
        stored = compare(checkpoint_format.model_scores(model, stored_images), expected)
        windows = {name: getattr(config, name, None) for name in ("window_size", "window_stride")}
        if not stored["passed"] and windows["window_size"] is not None:
            # the stored logits may be of the original's whole inference
            predict: Any = model.predict
            scores = torch.stack(predict(stored_images, return_scores=True, **windows))
            cases["stored logits of the original, in windows"] = compare(scores, expected)
        else:
            cases["stored logits of the original"] = stored

    with checkpoint.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    report = {
        "method": checkpoint_format.method,
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": digest.hexdigest(),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dropped_keys": conversion.dropped_keys,
        "tolerance": TOLERANCE,
        "cases": cases,
        "passed": all(case["passed"] for case in cases.values()),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    (folder / "parity_report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def format_report(report: dict[str, Any]) -> str:
    """The report as text."""
    cases = (
        f"  {'ok    ' if case['passed'] else 'FAILED'} {name} {tuple(case['shape'])}: "
        f"max |d| {case['max_abs_difference']:.2e}, relative {case['max_relative_difference']:.2e}, "
        f"labels equal {case['labels_equal_percent']:g} %"
        for name, case in report["cases"].items()
    )
    return "\n".join([f"parity with the original, {report['num_parameters']:,} parameters, float32:", *cases])
