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
    """Evaluation results of the model of a card, with the complete protocol."""

    results: EvaluationResults
    dataset: str
    """Key of [`DATASETS`], or the name of the folder or repository."""
    window: tuple[tuple[int, int], tuple[int, int]] | None
    """Window and stride as `(height, width)` pairs; `None` for whole images."""
    scales: tuple[float, ...]
    flip: bool
    precision: str | None
    """Data type of the computation."""

    @property
    def scores(self) -> dict[str, float]:
        """Scores over all classes, most important first."""
        return {name: float(self.results.scores[name]) for name in self.results.score_names()}

    @property
    def run(self) -> dict[str, Any]:
        """Versions, device and commit, as far as the results have them."""
        environment = ("hf_segmodels", "torch", "transformers", "device", "commit")
        return {name: self.results.details[name] for name in environment if name in self.results.details}

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

    def eval_results(self) -> list[EvalResult]:
        """One entry of the metadata for each score, with the arguments of `predict`; a `window_size` of 0 is the whole image."""
        known = DATASETS.get(self.dataset)
        arguments: dict[str, Any] = {"window_size": 0}
        if self.window is not None:
            arguments = {"window_size": list(self.window[0]), "window_stride": list(self.window[1])}
        return [
            EvalResult(
                task_type=TASK,
                task_name="Semantic segmentation",
                dataset_type=(known.hub_id if known else None) or self.dataset,
                dataset_name=self.dataset_name,
                dataset_split=self.results.split,
                metric_type=name,
                metric_name=metric_name(name),
                metric_value=score,
                metric_args={**arguments, "scales": list(self.scales), "flip": self.flip},
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
    Read evaluation results (or the path or the content of a results file) of a model with the configuration `config`.

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
    # without the path
    name = Path(str(dataset)).name if dataset else "unknown"
    known = next((key for key in (layout, name.lower()) if key in DATASETS), None)
    protocol = result.protocol or result.details
    return Measurement(
        result,
        dataset=known or name,
        window=choose_windows(config)
        if "window_size" not in protocol
        else choose_windows(config, protocol["window_size"] or 0, protocol.get("window_stride")),
        scales=tuple(float(scale) for scale in protocol.get("scales") or (1.0,)),
        flip=bool(protocol.get("flip", False)),
        precision=result.dtype or {"bf16": "bfloat16", "fp16": "float16"}.get(result.recipe.get("mixed_precision", "")),
    )
