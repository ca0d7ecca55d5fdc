# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Scores trained models on a split that they have not seen, side by side.

    python -m hf_segmodels.training.compare_runs RUN [RUN ...] --output FOLDER [--split test] [--image photo.jpg]

A RUN is the output folder of a training script. Writes `comparison.json` (scores, the recipes and figures over the updates),
`comparison.md` (tables), `curves.svg`, and `predictions.jpg` with `--image`: what each model makes of that photograph.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..evaluation.evaluate import describe_run, evaluate_model, results_as_json
from ..hub.cards.facts import METHODS
from ..hub.cards.results import load_results
from ..image_processing import read_image
from ..inference.predictor import Predictor, load_predictor
from ..utils.errors import UserError, first_line
from ..visualization import add_legend, class_shares, overlay, palette_for, side_by_side
from .factory import build_data
from .recipe import Recipe


# columns of the table: name of the score, heading
SCORES = (
    ("mean_iou", "mIoU"),
    ("mean_boundary_iou", "boundary IoU"),
    ("mean_accuracy", "mean accuracy"),
    ("overall_accuracy", "pixel accuracy"),
)


def score_run(folder: Path, split: str, device: str | None) -> tuple[Predictor, dict[str, Any]]:
    """
    What a run trained, and how good it is on `split`, in float32 by the model's own protocol.

    Raises:
        UserError: if the folder is not that of a finished run, or its data cannot be read.
    """
    try:
        trained = load_results(folder / "results.json")
        recipe, history = Recipe(**trained["recipe"]), trained["history"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} has no results.json of a finished run: give a training script's output_dir."
        ) from error
    predictor = load_predictor(str(folder), device=device)
    model = predictor.model
    try:
        data = build_data(recipe, predictor.image_processor, split)
        with torch.inference_mode():
            scores = evaluate_model(model, predictor.image_processor, data, boundary_iou=True)
    except (ValueError, OSError) as error:
        raise UserError(f"cannot evaluate on {recipe.dataset}: {first_line(error)}") from error
    return predictor, {
        "name": folder.name,
        "method": METHODS[model.config.model_type].name
        if model.config.model_type in METHODS
        else type(model).__name__.removesuffix("ForSemanticSegmentation"),
        "parameters": model.num_parameters(),
        "updates": trained["step"],
        "seconds": trained["seconds"],
        "cpu_seconds": trained["cpu_seconds"],
        "final_loss": trained["final_loss"],
        "trained_with": {name: trained[name] for name in ("torch", "transformers", "device", "seed")},
        "end_of_training": {"split": trained["split"], "mean_iou": trained["mean_iou"]},
        "test": {name: scores[name] for name, _ in SCORES} | {"per_category_iou": scores["per_category_iou"]},
        "images": scores["images"],
        "id2label": model.config.id2label,
        "recipe": {name: value for name, value in trained["recipe"].items() if name != "output_dir"},
        "history": history,
    }


def page(results: dict[str, Any], has_pictures: bool) -> str:
    """The runs in Markdown, a line each, best first."""
    runs = sorted(results["runs"], key=lambda run: -run["test"]["mean_iou"])
    headings = ["run", "method", "parameters, M", "updates", "CPU minutes", *(heading for _, heading in SCORES)]
    lines = [headings, ["---"] * len(headings)]
    for run in runs:
        scores = [f"{100 * run['test'][name]:.1f}" for name, _ in SCORES]
        size, minutes = f"{run['parameters'] / 1e6:.2f}", f"{run['cpu_seconds'] / 60:.0f}"
        lines.append([run["name"], run["method"], size, str(run["updates"]), minutes, *scores])
    classes = list(runs[0]["id2label"].values())
    lines_of_classes = [["IoU", *(run["method"] for run in runs)], ["---"] * (len(runs) + 1)]
    for index, name in enumerate(classes):
        lines_of_classes.append([name, *(f"{100 * run['test']['per_category_iou'][index]:.1f}" for run in runs)])
    paragraphs = [
        "# Trained models side by side",
        f"Scores on the {results['split']} split ({runs[0]['images']} images) in float32, each model by its own protocol. "
        f"CPU minutes are those of one core, evaluation during training included. torch {results['torch']}, transformers "
        f"{results['transformers']}, {results['device']}. Written by",
        f"    {results['command']}",
        "from runs of `accelerate launch training/run_segmentation_accelerate.py training/recipes/RUN.yaml`.",
        _rows(lines),
        "![loss over the updates](curves.svg)",
        _rows(lines_of_classes),
    ]
    if has_pictures:
        paragraphs.append("![a photograph, and what each model makes of it](predictions.jpg)")
    return "\n\n".join(paragraphs) + "\n"


def _rows(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def draw_curves(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Loss over the updates, each run's relative to its first: the methods' losses have different scales."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    panel = figure.subplots()
    for run in runs:
        points = [(entry["step"], entry["loss"]) for entry in run["history"] if "loss" in entry]
        if points:
            steps, losses = zip(*points, strict=True)
            panel.plot(steps, [loss / losses[0] for loss in losses], linewidth=1.2, label=run["method"])
    panel.set(xlabel="update", ylabel="loss over the first loss", ylim=(0, 1.1))
    panel.grid(alpha=0.3)
    panel.legend()
    figure.savefig(path, metadata={"Date": None})


def draw_predictions(
    predictors: Sequence[Predictor], runs: Sequence[dict[str, Any]], photograph: Path, path: Path
) -> None:
    """The photograph and, beside it, what each model makes of it, in rows of three."""
    image = read_image(photograph)
    image.thumbnail((480, 480))
    panels = [side_by_side([image], ["photograph"])]
    for predictor, run in zip(predictors, runs, strict=True):
        label_map, palette = predictor(image), palette_for(predictor.model.config)
        shares = class_shares(label_map, predictor.id2label, ignore_index=None)
        picture = overlay(image, label_map, palette, alpha=0.6, ignore_index=None)
        panels.append(side_by_side([add_legend(picture, shares, palette)], [run["method"]]))
    rows = [side_by_side(panels[start : start + 3]) for start in range(0, len(panels), 3)]
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height + 8 for row in rows) - 8), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + 8
    sheet.save(path, quality=88)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Scores trained models side by side.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="output_dir of a training script")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER")
    parser.add_argument("--split", default="test", help="(default: test)")
    parser.add_argument("--image", type=Path, help="photograph for predictions.jpg")
    parser.add_argument("--device", help="(default: cuda where there is one, else cpu)")
    arguments = parser.parse_args(argv)
    try:
        scored = [score_run(folder, arguments.split, arguments.device) for folder in arguments.runs]
        predictors, runs = zip(*scored, strict=True)
        arguments.output.mkdir(parents=True, exist_ok=True)
        command = shlex.join(
            ["python", "-m", "hf_segmodels.training.compare_runs", *(sys.argv[1:] if argv is None else argv)]
        )
        results = {
            "split": arguments.split,
            "command": command,
            "runs": runs,
            **describe_run(predictors[0].model.device),
        }
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
