# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Results files: the scores of a model on a split, and everything the scores depend on."""

import json
import math
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..inference import choose_windows


# Scores of every results file. Files may hold further scores named `mean_*`.
MAIN_SCORES = ("mean_iou", "mean_accuracy", "overall_accuracy")
_FIELDS = ("split", "images", "dataset", "layout", "protocol", "dtype", "step", "recipe")
_SCORE_PREFIXES = ("mean_", "overall_", "per_category_")
_MADE_BY = "Give a file written by `hf-segmodels evaluate --output FILE` or by training (`results.json`)."


@dataclass
class EvaluationResults:
    """
    Scores of a model on one split, and everything the scores depend on. `hf-segmodels evaluate --output` and training write
    them as a JSON file; model cards and comparisons read the file.
    """

    scores: dict[str, Any]
    """See [`~hf_segmodels.metrics.SegmentationScores.compute`]: scores from 0 to 1 and, in `per_category_*`, a list of one score
    per class (NaN for a class that does not occur)."""
    split: str = "unknown"
    images: int | None = None
    """Number of images."""
    dataset: str | None = None
    layout: str | None = None
    protocol: dict[str, Any] = field(default_factory=dict)
    """Options of `predict`, see [`describe_protocol`]."""
    dtype: str | None = None
    step: int | None = None
    """Training steps of the model so far."""
    recipe: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    """All other values of the file, such as those of [`describe_run`]."""
    source: str | None = None
    """Name of the file the results were read from; not written."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str | None = None) -> "EvaluationResults":
        """Return the results in the flat form of a results file."""
        results = cls({}, source=source)
        for name, value in values.items():
            if name.startswith(_SCORE_PREFIXES):
                is_list = isinstance(value, list)
                results.scores[name] = [math.nan if score is None else score for score in value] if is_list else value
            elif name not in _FIELDS:
                results.details[name] = value
            elif value is not None:
                setattr(results, name, value)
        return results

    @classmethod
    def from_json(cls, path: str | Path) -> "EvaluationResults":
        """
        Read a results file.

        Raises:
            ValueError: if the file is missing or does not hold a JSON object.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"Cannot read the results {path} ({error.strerror}). {_MADE_BY}") from error
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON ({error}). {_MADE_BY}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} does not hold results. {_MADE_BY}")
        return cls.from_dict(values, Path(path).name)

    def to_dict(self) -> dict[str, Any]:
        """Return the flat form of a results file. Values that are not known are left out."""
        values = {name: getattr(self, name) for name in _FIELDS if getattr(self, name) not in (None, {})}
        return {**values, **self.scores, **self.details}

    def to_json(self) -> str:
        return results_as_json(self.to_dict())

    def check(self, config: Any) -> None:
        """
        Check that the results are those of a model with the configuration `config`.

        Raises:
            ValueError: if scores are missing or not between 0 and 1, or if the results have another number of classes or are
                those of another method than `config`.
        """
        origin = self.source or "`results`"
        class_scores = self.scores.get("per_category_iou")
        if not isinstance(class_scores, list) or "mean_iou" not in self.scores:
            raise ValueError(f"Missing scores: {origin} must hold `mean_iou` and `per_category_iou`. {_MADE_BY}")
        if not all(_is_score(score) or score != score for score in class_scores):
            raise ValueError(f"`per_category_iou` in {origin} must hold scores from 0 to 1. {_MADE_BY}")
        if len(class_scores) != config.num_labels:
            raise ValueError(
                f"The model has {config.num_labels} classes, but {origin} has scores of {len(class_scores)}: give the results of this "
                "model."
            )
        method = (self.recipe.get("model") or {}).get("model_type", config.model_type)
        if method != config.model_type:
            raise ValueError(
                f"The model is of type {config.model_type!r}, but the recipe in {origin} is of type {method!r}: give the "
                "results of this model."
            )
        for name in self.score_names():
            score = self.scores.get(name)
            if not _is_score(score):
                is_empty = score is None or score != score
                hint = "Nothing was counted: check the data set (`hf-segmodels check-data`)." if is_empty else _MADE_BY
                raise ValueError(f"`{name}` in {origin} is {score}, but scores are numbers from 0 to 1. {hint}")

    def score_names(self) -> list[str]:
        """Return the names of the scores over all classes, most important first."""
        return list(dict.fromkeys([*MAIN_SCORES, *(name for name in self.scores if name.startswith("mean_"))]))


def describe_protocol(config: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `options` of `predict`, with the window and stride that a model with `config` uses under them."""
    windows = choose_windows(config, options.get("window_size"), options.get("window_stride"))
    window_size, window_stride = windows or (None, None)
    return {**options, "window_size": window_size, "window_stride": window_stride}


def describe_run(device: torch.device | str) -> dict[str, Any]:
    """Return versions, `device`, number of threads and [`package_commit`] for a results file."""
    is_cuda = torch.device(device).type == "cuda"
    return {
        **{name: version(name) for name in ("hf_segmodels", "torch", "transformers")},
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if is_cuda else f"CPU, {torch.get_num_threads()} threads",
        "commit": package_commit(),
    }


def package_commit() -> str | None:
    """Return this package's git commit, with "+" appended if there are uncommitted changes; `None` outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # an installed package may be inside another repository, which does not track it
        if not git("ls-files", Path(__file__).name):
            return None
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def results_as_json(values: Any) -> str:
    """Return the text of a results file. Scores that do not exist become null, since JSON has no NaN."""

    def replace_nan(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: replace_nan(part) for name, part in value.items()}
        if isinstance(value, list | tuple):
            return [replace_nan(part) for part in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return json.dumps(replace_nan(values), indent=1) + "\n"


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1
