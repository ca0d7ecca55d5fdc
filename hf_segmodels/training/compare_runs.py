# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Comparison of training runs: evaluate the trained models on a split they were not trained on.

    python -m hf_segmodels.training.compare_runs RUN [RUN ...] --output FOLDER [--split test] [--image photo.jpg]

A RUN is the output folder of a training run. FOLDER receives `comparison.json` (scores, recipes and metrics over the training
steps), `comparison.md` (tables), `curves.svg`, and with `--image` `predictions.jpg` (predictions of all models for this image).
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..evaluation import EvaluationResults, describe_run, evaluate_model, results_as_json
from ..hub.cards.facts import METHODS
from ..image_processing import read_image
from ..inference.predictor import Predictor, load_predictor
from ..utils.errors import UserError, first_line
from ..visualization import add_legend, class_shares, overlay, palette_for, side_by_side
from .factory import build_data
from .recipe import Recipe
from .reporting import History, stack_rows


# score -> heading of its column
SCORES = {"mean_iou": "mIoU", "mean_boundary_iou": "boundary IoU", "mean_accuracy": "mean accuracy"}
SCORES |= {"overall_accuracy": "pixel accuracy"}


def score_run(folder: Path, split: str, device: str | None) -> tuple[Predictor, dict[str, Any]]:
    """
    Load the model of a run and evaluate it on `split`, in float32 and by the model's own protocol. Return the predictor and the
    entry of the run in `comparison.json`.

    Raises:
        UserError: if the folder does not belong to a finished run, or if the data cannot be read.
    """
    try:
        trained = EvaluationResults.from_json(folder / "results.json")
        recipe, details = Recipe(**trained.recipe), trained.details
        history = details["history"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} has no results.json of a finished run: give the output_dir of a training run."
        ) from error
    predictor = load_predictor(str(folder), device=device)
    model = predictor.model
    method = METHODS.get(model.config.model_type)
    try:
        data = build_data(recipe, predictor.image_processor, split)
        with torch.inference_mode():
            scores = evaluate_model(model, predictor.image_processor, data, boundary_iou=True)
    except (ValueError, OSError) as error:
        raise UserError(f"cannot evaluate on {recipe.dataset}: {first_line(error)}") from error
    return predictor, {
        "name": folder.name,
        "method": method.name if method else type(model).__name__.removesuffix("ForSemanticSegmentation"),
        "parameters": model.num_parameters(),
        "training_steps": trained.step,
        **{name: details[name] for name in ("seconds", "cpu_seconds", "final_loss")},
        "trained_with": {name: details[name] for name in ("torch", "transformers", "device", "seed")},
        "end_of_training": {"split": trained.split, "mean_iou": trained.scores["mean_iou"]},
        "test": {name: scores[name] for name in SCORES} | {"per_category_iou": scores["per_category_iou"]},
        "images": scores["images"],
        "id2label": model.config.id2label,
        "recipe": {name: value for name, value in trained.recipe.items() if name != "output_dir"},
        "history": history,
    }


def page(results: dict[str, Any], has_pictures: bool) -> str:
    """Return the comparison in Markdown: a row for each run, best first, and a table of the classes."""
    runs = sorted(results["runs"], key=lambda run: -run["test"]["mean_iou"])
    rows = [["run", "method", "parameters, M", "training steps", "CPU minutes", *SCORES.values()]]
    for run in runs:
        scores = [f"{100 * run['test'][name]:.1f}" for name in SCORES]
        size, minutes = f"{run['parameters'] / 1e6:.2f}", f"{run['cpu_seconds'] / 60:.0f}"
        rows.append([run["name"], run["method"], size, str(run["training_steps"]), minutes, *scores])
    class_rows = [["IoU", *(run["method"] for run in runs)]]
    for index, name in enumerate(runs[0]["id2label"].values()):
        class_rows.append([name, *(f"{100 * run['test']['per_category_iou'][index]:.1f}" for run in runs)])
    paragraphs = [
        "# Comparison of trained models",
        f"Scores on the {results['split']} split ({runs[0]['images']} images) in float32, each model by its own protocol. "
        f"CPU minutes are those of one core, including evaluation during training. torch {results['torch']}, transformers "
        f"{results['transformers']}, {results['device']}. Written by",
        f"    {results['command']}",
        "from runs of `accelerate launch training/run_segmentation_accelerate.py training/recipes/RUN.yaml`.",
        _table(rows),
        "![loss over the training steps](curves.svg)",
        _table(class_rows),
    ]
    if has_pictures:
        paragraphs.append("![a photograph and the predictions of each model](predictions.jpg)")
    return "\n\n".join(paragraphs) + "\n"


def _table(rows: list[list[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def draw_curves(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the loss over the training steps, relative to the first loss, since the losses of the methods have different scales."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    panel = figure.subplots()
    for run in runs:
        if points := History(run["history"]).curve("loss"):
            steps, losses = zip(*points, strict=True)
            panel.plot(steps, [loss / losses[0] for loss in losses], linewidth=1.2, label=run["method"])
    panel.set(xlabel="training step", ylabel="loss over the first loss", ylim=(0, 1.1))
    panel.grid(alpha=0.3)
    panel.legend()
    figure.savefig(path, metadata={"Date": None})


def draw_predictions(
    predictors: Sequence[Predictor], runs: Sequence[dict[str, Any]], photograph: Path, path: Path
) -> None:
    """Draw the photograph and the predictions of all models, in rows of three."""
    image = read_image(photograph)
    image.thumbnail((480, 480))
    panels = [side_by_side([image], ["photograph"])]
    for predictor, run in zip(predictors, runs, strict=True):
        label_map, palette = predictor(image), palette_for(predictor.model.config)
        shares = class_shares(label_map, predictor.id2label, ignore_index=None)
        picture = overlay(image, label_map, palette, alpha=0.6, ignore_index=None)
        panels.append(side_by_side([add_legend(picture, shares, palette)], [run["method"]]))
    rows = [side_by_side(panels[start : start + 3]) for start in range(0, len(panels), 3)]
    stack_rows(rows).save(path, quality=88)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare training runs on a test split.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output_dir of a training run")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER")
    parser.add_argument("--split", default="test", help="(default: test)")
    parser.add_argument("--image", type=Path, help="photograph for predictions.jpg")
    parser.add_argument("--device", help="(default: cuda if available, else cpu)")
    arguments = parser.parse_args(argv)
    try:
        scored = [score_run(folder, arguments.split, arguments.device) for folder in arguments.runs]
        predictors, runs = zip(*scored, strict=True)
        arguments.output.mkdir(parents=True, exist_ok=True)
        command = ["python", "-m", "hf_segmodels.training.compare_runs", *(sys.argv[1:] if argv is None else argv)]
        results = {"split": arguments.split, "command": shlex.join(command), "runs": runs}
        results |= describe_run(predictors[0].model.device)
        (arguments.output / "comparison.json").write_text(results_as_json(results))
        text = page(results, has_pictures=arguments.image is not None)
        (arguments.output / "comparison.md").write_text(text)
        draw_curves(runs, arguments.output / "curves.svg")
        if arguments.image:
            draw_predictions(predictors, runs, arguments.image, arguments.output / "predictions.jpg")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
