# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Evaluation results as a model card shows them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from ...evaluation.results import EvaluationResults
from ...inference import choose_windows
from .facts import DATASETS


TASK = "image-segmentation"
_METRIC_NAMES = {"mean_iou": "mean IoU", "mean_accuracy": "mean accuracy", "overall_accuracy": "pixel accuracy"}
# Results, or the path or content of a results file.
Results = EvaluationResults | str | Path | Mapping[str, Any]


@dataclass(frozen=True)
class Measurement:
    """
    Evaluation results of the model of a card, see [`EvaluationResults`].

    Args:
        scores (`dict[str, float]`): Scores over all classes, most important first.
        class_scores (`list[float]`): IoU of each class; NaN for a class that does not occur.
        dataset (`str`): Key of [`DATASETS`], or the name of the folder or repository.
        split, images, source, recipe, step: As in the results.
        run (`dict[str, Any]`): Versions, device and commit, as far as the results have them.
        window (`tuple`, *optional*): Window and stride as `(height, width)` pairs; `None` for whole images.
        scales (`tuple[float, ...]`): Scales of the image.
        flip (`bool`): Whether predictions of flipped images were averaged in.
        precision (`str`, *optional*): Data type of the computation.
    """

    scores: dict[str, float]
    class_scores: list[float]
    dataset: str
    split: str
    images: int | None
    source: str | None
    recipe: dict[str, Any]
    step: int | None
    run: dict[str, Any]
    window: tuple[tuple[int, int], tuple[int, int]] | None
    scales: tuple[float, ...]
    flip: bool
    precision: str | None

    @property
    def dataset_name(self) -> str:
        return DATASETS[self.dataset].name if self.dataset in DATASETS else self.dataset

    @property
    def protocol(self) -> str:
        """The protocol of the evaluation in words."""
        parts = [describe_window(self.window)]
        if self.scales != (1.0,):
            parts.append(f"mean over scales {', '.join(f'{scale:g}' for scale in self.scales)}")
        if self.flip:
            parts.append("with flipped copies")
        if self.precision:
            parts.append(f"in {self.precision}")
        return ", ".join(parts)

    @property
    def protocol_fields(self) -> dict[str, Any]:
        """The protocol as arguments of `predict`; a `window_size` of 0 is the whole image."""
        windows: dict[str, Any] = {"window_size": 0}
        if self.window is not None:
            windows = {"window_size": list(self.window[0]), "window_stride": list(self.window[1])}
        return {**windows, "scales": list(self.scales), "flip": self.flip}

    def eval_results(self) -> list[EvalResult]:
        """One entry of the metadata for each score, with the protocol as arguments of the metric."""
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
    """Return the name of a score in a card."""
    return _METRIC_NAMES.get(name, name.replace("_", " ").replace("iou", "IoU"))


def describe_window(window: tuple[tuple[int, int], tuple[int, int]] | None) -> str:
    """Return window and stride, both `(height, width)`, in words, as width x height."""
    if window is None:
        return "whole images"
    size, stride = (f"{width}x{height}" if width != height else f"{width}" for height, width in window)
    size = size if "x" in size else f"{size}x{size}"
    return f"windows of {size} pixels every {stride}"


def read_results(results: Results | Sequence[Results] | None, config: Any) -> list[Measurement]:
    """
    Read evaluation results of a model.

    Args:
        results (`EvaluationResults`, path, `dict`, or a sequence of these, *optional*):
            Results, or the path or the content of a results file.
        config (`PreTrainedConfig`): Configuration of the model.

    Returns:
        `list[Measurement]`: In the same order.

    Raises:
        ValueError: if a file is not a results file, or see [`EvaluationResults.check`].
    """
    if results is None:
        return []
    each = [results] if isinstance(results, EvaluationResults | str | Path | Mapping) else results
    return [_read(result, config) for result in each]


def _read(result: Results, config: Any) -> Measurement:
    if isinstance(result, Mapping):
        result = EvaluationResults.from_dict(result)
    elif not isinstance(result, EvaluationResults):
        result = EvaluationResults.from_json(result)
    result.check(config)
    dataset, layout = (getattr(result, name) or result.recipe.get(name) for name in ("dataset", "layout"))
    protocol = result.protocol or result.details
    environment = ("hf_segmodels", "torch", "transformers", "device", "commit")
    return Measurement(
        scores={name: float(result.scores[name]) for name in result.score_names()},
        class_scores=[float(score) for score in result.scores["per_category_iou"]],
        dataset=_dataset_key(dataset, layout),
        split=result.split,
        images=result.images,
        source=result.source,
        recipe=result.recipe,
        step=result.step,
        run={name: result.details[name] for name in environment if name in result.details},
        window=choose_windows(config)
        if "window_size" not in protocol
        else choose_windows(config, protocol["window_size"] or 0, protocol.get("window_stride")),
        scales=tuple(float(scale) for scale in protocol.get("scales") or (1.0,)),
        flip=bool(protocol.get("flip", False)),
        precision=result.dtype or {"bf16": "bfloat16", "fp16": "float16"}.get(result.recipe.get("mixed_precision", "")),
    )


def _dataset_key(dataset: Any, layout: str | None) -> str:
    """Return the key of `DATASETS` for a layout or a name; for other data the name of the folder or repository, without path."""
    if layout in DATASETS:
        return str(layout)
    name = Path(str(dataset)).name if dataset else "unknown"
    return name.lower() if name.lower() in DATASETS else name
