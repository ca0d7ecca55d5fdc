# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""What a run leaves to look at: results, learning curves and pictures of predictions."""

import dataclasses
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers.image_processing_utils import BaseImageProcessor
from transformers.modeling_utils import PreTrainedModel

from ..data import SegmentationData
from ..evaluation.evaluate import describe_protocol, describe_run, results_as_json
from ..visualization import overlay, palette_for
from .recipe import Recipe


class History:
    """
    Figures over the updates of a run, part of its checkpoints.

    Attributes:
        entries (`list[dict[str, float]]`): With `step`, and what was measured there.
    """

    def __init__(self) -> None:
        self.entries: list[dict[str, float]] = []

    @property
    def losses(self) -> list[float]:
        return losses_of(self.entries)

    def state_dict(self) -> dict[str, Any]:
        return {"entries": self.entries}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.entries = list(state["entries"])


def losses_of(entries: Sequence[dict[str, float]]) -> list[float]:
    """The losses among figures over the updates, in order."""
    return [entry["loss"] for entry in entries if "loss" in entry]


def write_records(
    recipe: Recipe,
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    data: SegmentationData,
    step: int,
    scores: dict[str, Any],
    entries: Sequence[dict[str, float]],
    seconds: float,
    first_step: int = 0,
) -> None:
    """
    Writes `results.json`, `curves.png` and `predictions.png` into the recipe's output folder. `seconds` and `cpu_seconds` in
    the first are the time on the clock and that of this process' CPU cores.

    Args:
        recipe (`Recipe`): What was run.
        model (`PreTrainedModel`), processor (`BaseImageProcessor`): What came of it.
        data (`SegmentationData`): The evaluated split.
        step (`int`): Updates so far.
        scores (`dict`): Of the model on `data`.
        entries (`Sequence[dict]`): Figures over the updates, see [`draw_curves`].
        seconds (`float`): How long it took since it started, or was last resumed.
        first_step (`int`, *optional*, defaults to 0): Updates before that.
    """
    output_dir = Path(recipe.output_dir)
    results = {"step": step, "split": recipe.eval_split, **scores, "recipe": dataclasses.asdict(recipe)}
    protocol = {
        name: value for name, value in recipe.evaluation.items() if name not in ("boundary_iou", "object_sizes")
    }
    results["protocol"] = describe_protocol(model.config, protocol)
    results |= {"final_loss": next(reversed(losses_of(entries)), None), "history": list(entries)}
    results |= {"seconds": round(seconds), "cpu_seconds": round(time.process_time()), "seconds_since_step": first_step}
    results |= describe_run(model.device, recipe.seed)
    (output_dir / "results.json").write_text(results_as_json(results))
    draw_curves(entries, output_dir / "curves.png")
    draw_predictions(model, processor, data, output_dir / "predictions.png")


def draw_curves(entries: Sequence[dict[str, float]], path: Path) -> None:
    """
    Draws `loss`, `learning_rate` and `mean_iou` over `step`.

    Args:
        entries (`Sequence[dict]`): Figures by name; each entry may hold some of them.
        path (`Path`): PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.2), layout="constrained")
    panels = figure.subplots(1, 3)
    for panel, (name, label) in zip(
        panels, (("loss", "loss"), ("mean_iou", "mean IoU"), ("learning_rate", "learning rate")), strict=True
    ):
        points = [(entry["step"], entry[name]) for entry in entries if name in entry]
        panel.plot(*zip(*points, strict=True) if points else ((), ()), "o-" if len(points) < 30 else "-", markersize=3)
        panel.set(xlabel="update", ylabel=label)
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


@torch.no_grad()
def draw_predictions(
    model: PreTrainedModel, processor: BaseImageProcessor, data: SegmentationData, path: Path, count: int = 4
) -> None:
    """
    Draws the first images of `data`, a row each: the image, its labels, the prediction.

    Args:
        model (`PreTrainedModel`), processor (`BaseImageProcessor`): The model and its image processor.
        data (`SegmentationData`): Read with the labels of `processor`.
        path (`Path`): PNG file.
        count (`int`, *optional*, defaults to 4): How many images.
    """
    palette = palette_for(model.config)
    rows = []
    for image, label_map in islice(data, count):
        inputs = processor(image, return_tensors="pt").to(model.device, model.dtype)
        (prediction,) = model.predict(**inputs, target_sizes=[tuple(label_map.shape)])
        # (3, height, width) -> (height, width, 3)
        picture = Image.fromarray(image.as_subclass(torch.Tensor).permute(1, 2, 0).numpy())
        labels = label_map.as_subclass(torch.Tensor)
        rows.append(
            [
                picture,
                overlay(picture, labels, palette, alpha=0.7, ignore_index=processor.ignore_index),
                overlay(picture, prediction.cpu(), palette, alpha=0.7),
            ]
        )
    sheet = Image.new("RGB", (3 * max(row[0].width for row in rows), sum(row[0].height for row in rows)))
    top = 0
    for row in rows:
        for column, picture in enumerate(row):
            sheet.paste(picture, (column * picture.width, top))
        top += row[0].height
    sheet.save(path)
