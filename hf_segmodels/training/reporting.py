# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Output of a run: `results.json`, learning curves and pictures of predictions."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..evaluation.results import EvaluationResults, describe_protocol, describe_run
from ..modeling_utils import SegmentationPreTrainedModel
from ..visualization import overlay, palette_for, side_by_side
from .factory import Run


@dataclass
class History:
    """Metrics over the training steps of a run. A checkpoint of Accelerate includes them."""

    entries: list[dict[str, float]] = field(default_factory=list)
    """Each has `step` and the metrics logged at this step."""

    @property
    def losses(self) -> list[float]:
        return [loss for _, loss in self.curve("loss")]

    def curve(self, name: str) -> list[tuple[float, float]]:
        """Return the pairs of step and value of a metric."""
        return [(entry["step"], entry[name]) for entry in self.entries if name in entry]

    def state_dict(self) -> dict[str, Any]:
        return {"entries": self.entries}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.entries = list(state["entries"])


@dataclass
class RunReport:
    """Writer of the output of a run. The time of the run starts when the report is created."""

    run: Run
    history: History
    first_step: int = 0
    """Training step the run was resumed from."""
    started: float = field(default_factory=time.monotonic)

    def write(self, model: SegmentationPreTrainedModel, step: int, scores: dict[str, Any]) -> None:
        """
        Write `results.json`, `curves.png` and `predictions.png` of the model after `step` training steps and of its `scores` on the
        evaluation split into the recipe's `output_dir`. `seconds` and `cpu_seconds` in `results.json` are the wall time since the
        start or the last resume and the CPU time of this process.
        """
        recipe, output_dir = self.run.recipe, Path(self.run.recipe.output_dir)
        options = {
            name: value for name, value in recipe.evaluation.items() if name not in ("boundary_iou", "object_sizes")
        }
        values = {"step": step, "split": recipe.eval_split, **scores, "recipe": dataclasses.asdict(recipe)}
        values |= {"protocol": describe_protocol(model.config, options)}
        values |= {**describe_run(model.device), "seed": recipe.seed}
        values |= {"seconds": round(time.monotonic() - self.started), "cpu_seconds": round(time.process_time())}
        values |= {"seconds_since_step": self.first_step, "final_loss": next(reversed(self.history.losses), None)}
        values["history"] = self.history.entries
        (output_dir / "results.json").write_text(EvaluationResults.from_dict(values).to_json())
        draw_curves(self.history, output_dir / "curves.png")
        draw_predictions(self.run, model, output_dir / "predictions.png")


def log_metrics(scores: dict[str, Any]) -> dict[str, float]:
    """Return the scores that trackers and the history can hold: those without lists over classes."""
    return {name: score for name, score in scores.items() if isinstance(score, float)}


def draw_curves(history: History, path: Path) -> None:
    """Draw loss, mean IoU and learning rate over the training steps into a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.2), layout="constrained")
    metrics = {"loss": "loss", "mean_iou": "mean IoU", "learning_rate": "learning rate"}
    for panel, (name, label) in zip(figure.subplots(1, 3), metrics.items(), strict=True):
        points = history.curve(name)
        panel.plot(*zip(*points, strict=True) if points else ((), ()), "o-" if len(points) < 30 else "-", markersize=3)
        panel.set(xlabel="training step", ylabel=label)
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


@torch.no_grad()
def draw_predictions(run: Run, model: SegmentationPreTrainedModel, path: Path) -> None:
    """Draw the first four images of the evaluation split into a PNG file: in each row the image, its labels and the prediction."""
    palette = palette_for(model.config)
    rows = []
    for image, label_map in islice(run.eval_data, 4):
        inputs = run.processor(image, return_tensors="pt").to(model.device, model.dtype)
        (prediction,) = model.predict(**inputs, target_sizes=[tuple(label_map.shape)])
        # (3, height, width) -> (height, width, 3)
        picture = Image.fromarray(image.as_subclass(torch.Tensor).permute(1, 2, 0).numpy())
        labels = label_map.as_subclass(torch.Tensor)
        labeled = overlay(picture, labels, palette, alpha=0.7, ignore_index=run.processor.ignore_index)
        rows.append(side_by_side([picture, labeled, overlay(picture, prediction.cpu(), palette, alpha=0.7)], gap=0))
    stack_rows(rows, gap=0).save(path)


def stack_rows(rows: Sequence[Image.Image], gap: int = 8) -> Image.Image:
    """Return the pictures below each other, aligned on the left on white, with `gap` pixels between them."""
    tops = [0, *accumulate(row.height + gap for row in rows)]
    sheet = Image.new("RGB", (max(row.width for row in rows), tops.pop() - gap), "white")
    for row, top in zip(rows, tops, strict=True):
        sheet.paste(row, (0, top))
    return sheet
