# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Figures for a model card, from the files that `hf-segmodels evaluate --output` and the training scripts write."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from ...inference import choose_windows
from .facts import DATASETS


TASK = "image-segmentation"
# Name in a results file -> what readers call it, most important first; any other `mean_*` follows.
_METRICS = {"mean_iou": "mean IoU", "mean_accuracy": "mean accuracy", "overall_accuracy": "pixel accuracy"}
_MADE_BY = "Give what `hf-segmodels evaluate --output FILE` or a training script (`results.json`) wrote."


@dataclass(frozen=True)
class Measurement:
    """
    The scores of a model on one split, from a results file.

    Args:
        scores (`dict[str, float]`): From 0 to 1, by their name in the file.
        class_scores (`list[float]`): IoU of each class; nan where a class neither occurs nor is predicted.
        dataset (`str`): Key of [`DATASETS`], or the name of the folder or repository.
        split (`str`): Name of the split.
        images (`int`, *optional*): How many there were.
        window (`tuple`, *optional*): Window and stride as pairs; whole images if unset.
        scales (`tuple[float, ...]`): Of the image.
        flip (`bool`): Whether mirrored images took part.
        precision (`str`, *optional*): Data type of the computation.
        source (`str`, *optional*): Name of the file.
        run (`dict[str, Any]`): Versions, device, commit, as far as the file has them.
        recipe (`dict[str, Any]`): What it was trained with; empty where the file does not say.
        step (`int`, *optional*): Updates that it was trained for.
    """

    scores: dict[str, float]
    class_scores: list[float]
    dataset: str
    split: str
    images: int | None
    window: tuple[tuple[int, int], tuple[int, int]] | None
    scales: tuple[float, ...]
    flip: bool
    precision: str | None
    source: str | None
    run: dict[str, Any]
    recipe: dict[str, Any]
    step: int | None

    @property
    def dataset_name(self) -> str:
        return DATASETS[self.dataset].name if self.dataset in DATASETS else self.dataset

    @property
    def protocol(self) -> str:
        """How it was measured, for a reader."""
        parts = [describe_window(self.window)]
        if self.scales != (1.0,):
            parts.append(f"mean over scales {', '.join(f'{scale:g}' for scale in self.scales)}")
        if self.flip:
            parts.append("with mirrored copies")
        if self.precision:
            parts.append(f"in {self.precision}")
        return ", ".join(parts)

    @property
    def protocol_fields(self) -> dict[str, Any]:
        """The same for metadata, as arguments of `predict`: window 0 is the whole image."""
        windows: dict[str, Any] = {"window_size": 0}
        if self.window is not None:
            windows = {"window_size": list(self.window[0]), "window_stride": list(self.window[1])}
        return {**windows, "scales": list(self.scales), "flip": self.flip}

    def eval_results(self) -> list[EvalResult]:
        """One for each score, with the protocol as arguments of the metric."""
        known = DATASETS.get(self.dataset)
        return [
            EvalResult(
                task_type=TASK,
                task_name="Semantic segmentation",
                dataset_type=(known.hub_id if known else None) or self.dataset,
                dataset_name=self.dataset_name,
                dataset_split=self.split,
                metric_type=name,
                metric_name=metric_name(name),
                metric_value=score,
                metric_args=self.protocol_fields,
            )
            for name, score in self.scores.items()
        ]


def metric_name(name: str) -> str:
    """What readers call a score."""
    return _METRICS.get(name, name.replace("_", " ").replace("iou", "IoU"))


def describe_window(window: tuple[tuple[int, int], tuple[int, int]] | None) -> str:
    """Window and stride (both height, width) in words, as width x height."""
    if window is None:
        return "whole images"
    size, stride = (f"{width}x{height}" if width != height else f"{width}" for height, width in window)
    size = size if "x" in size else f"{size}x{size}"
    return f"windows of {size} pixels every {stride}"


def read_results(
    results: "str | Path | Mapping[str, Any] | Sequence[str | Path | Mapping[str, Any]] | None", config: Any
) -> list[Measurement]:
    """
    Reads results of a model.

    Args:
        results (path, `dict`, or a sequence of them, *optional*): What `hf-segmodels evaluate --output` or a training script
            wrote, or what such a file holds.
        config (`PreTrainedConfig`): The model's configuration.

    Returns:
        `list[Measurement]`: In the same order.

    Raises:
        ValueError: if it is no such file, of a model with other classes or of another method, or holds a score that is
            no number from 0 to 1.
    """
    if results is None:
        return []
    each = [results] if isinstance(results, (str, Path, Mapping)) else list(results)
    return [_read(result, config) for result in each]


def load_results(path: str | Path) -> dict[str, Any]:
    """
    What a results file holds.

    Raises:
        ValueError: if it is missing or no JSON object.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"Cannot read the results {path} ({error.strerror}). {_MADE_BY}") from error
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}). {_MADE_BY}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no results. {_MADE_BY}")
    return values


def _read(result: str | Path | Mapping[str, Any], config: Any) -> Measurement:
    source = None
    if not isinstance(result, Mapping):
        source, result = Path(result).name, load_results(result)
    origin = source or "the results"
    recipe = result.get("recipe") or {}
    _check_model(result, recipe, config, origin)
    scores = {name: _score(result, name, origin) for name in _score_names(result)}
    dataset, layout = (result.get(key) or recipe.get(key) for key in ("dataset", "layout"))
    protocol = result.get("protocol") or {key: result[key] for key in ("scales", "flip") if key in result}
    return Measurement(
        scores=scores,
        class_scores=[math.nan if iou is None else float(iou) for iou in result["per_category_iou"]],
        dataset=_dataset_key(dataset, layout),
        split=str(result.get("split", "unknown")),
        images=result.get("images"),
        window=choose_windows(config)
        if "window_size" not in protocol
        else choose_windows(config, protocol["window_size"] or 0, protocol.get("window_stride")),
        scales=tuple(float(scale) for scale in protocol.get("scales") or (1.0,)),
        flip=bool(protocol.get("flip", False)),
        precision=result.get("dtype") or {"bf16": "bfloat16", "fp16": "float16"}.get(recipe.get("mixed_precision", "")),
        source=source,
        run={
            key: result[key] for key in ("hf_segmodels", "torch", "transformers", "device", "commit") if key in result
        },
        recipe=dict(recipe),
        step=result.get("step"),
    )


def _score_names(result: Mapping[str, Any]) -> list[str]:
    return [*_METRICS, *(name for name in result if name.startswith("mean_") and name not in _METRICS)]


def _score(result: Mapping[str, Any], name: str, origin: str) -> float:
    score = result.get(name)
    if not isinstance(score, (int, float)) or not 0 <= score <= 1:
        raise ValueError(
            f"`{name}` in {origin} is {score}, but scores are numbers from 0 to 1. "
            + (
                "Nothing was counted: check the labels of the data set (`hf-segmodels check-data`)."
                if score is None or score != score
                else _MADE_BY
            )
        )
    return float(score)


def _check_model(result: Mapping[str, Any], recipe: Mapping[str, Any], config: Any, origin: str) -> None:
    class_scores = result.get("per_category_iou")
    if not isinstance(class_scores, list) or "mean_iou" not in result:
        raise ValueError(f"{origin} holds no `mean_iou` and `per_category_iou`. {_MADE_BY}")
    if any(
        iou is not None and (not isinstance(iou, (int, float)) or not (0 <= iou <= 1 or iou != iou))
        for iou in class_scores
    ):
        raise ValueError(f"`per_category_iou` in {origin} holds something that is no score from 0 to 1. {_MADE_BY}")
    if len(class_scores) != config.num_labels:
        raise ValueError(
            f"{origin} is of a model with {len(class_scores)} classes, this one has {config.num_labels}: give the results "
            "of this model."
        )
    method = (recipe.get("model") or {}).get("model_type", config.model_type)
    if method != config.model_type:
        raise ValueError(
            f"{origin} is of a {method!r} model, this is {config.model_type!r}: give the results of this model."
        )


def _dataset_key(dataset: Any, layout: str | None) -> str:
    """A key of `DATASETS` where layout or name say that it is one; else the folder's or repository's name, no path."""
    if layout in DATASETS:
        return str(layout)
    name = Path(str(dataset)).name if dataset else "unknown"
    return name.lower() if name.lower() in DATASETS else name


__all__ = ["TASK", "Measurement", "describe_window", "load_results", "metric_name", "read_results"]
