# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Package the output of a training run as the demo model.

    python model_cards/package_demo_model.py RUN_FOLDER --recipe training/recipes/segmenter_camvid.yaml [--minutes MINUTES]
    python model_cards/package_demo_model.py --card-only

Writes the weights in half precision, the processor and a model card to hf_segmodels/demo/model/, and the scores of the written
model to benchmarks/results/demo_model_camvid.json. --card-only writes only the card, from this file and the existing model.
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation

import hf_segmodels  # noqa: F401  (registers the models)
from hf_segmodels.data import SegmentationData
from hf_segmodels.evaluation import EvaluationResults, describe_run, evaluate_model, results_as_json
from hf_segmodels.hub import create_model_card
from hf_segmodels.hub.cards.facts import METHODS


REPOSITORY = Path(__file__).resolve().parents[1]
MODEL_FOLDER = REPOSITORY / "hf_segmodels" / "demo" / "model"
RESULTS = REPOSITORY / "benchmarks" / "results" / "demo_model_camvid.json"

DESCRIPTION = "A small model for street scenes, to try the package with. It was trained only on the 367 images of CamVid's training split."
# observed with the current model; check again with a new one
LIMITS = (
    "The training images show the streets of one English town from a car. In other photographs the model finds many of the "
    "buildings, trees and sky, and assigns wrong classes to the rest (road to hazy sky or water).",
)
PROTOCOL = """\
CamVid in the SegNet split, 480x360 pixels, by `model.predict`. Pixels with label 255 (void) are ignored in training and
evaluation. No decision was made on the test split. The validation scores are those at the end of training. All scores are from
`{results}`.

Trained with the recipe below; the head of the recipe lists changes since then.

    accelerate launch training/run_segmentation_accelerate.py {command}
"""


def measure(folder: Path, dataset: str, split: str) -> dict[str, Any]:
    """Return the scores of the model in `folder` on a split, by `predict` at the size of the images."""
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    data = SegmentationData(dataset, split, processor=processor)
    started = time.perf_counter()
    scores = evaluate_model(model, processor, data)
    return {"split": split, "seconds": time.perf_counter() - started, **scores}


def write_model(run: Path) -> None:
    """Write the weights in half precision. The configuration keeps float32, so that the model runs in float32."""
    model = AutoModelForSemanticSegmentation.from_pretrained(run, dtype=torch.float32)
    shutil.rmtree(MODEL_FOLDER, ignore_errors=True)
    halves = {name: value.half() for name, value in model.state_dict().items()}
    model.save_pretrained(MODEL_FOLDER, state_dict=halves)
    (MODEL_FOLDER / "model.safetensors").chmod(0o644)
    AutoImageProcessor.from_pretrained(run).save_pretrained(MODEL_FOLDER)


def demo_card(results: Path) -> ModelCard:
    """Return the model card. All numbers come from `results` and the configuration; the weights are not needed."""
    measured = json.loads(results.read_text(encoding="utf-8"))
    with torch.device("meta"):
        model = AutoModelForSemanticSegmentation.from_config(AutoConfig.from_pretrained(MODEL_FOLDER))
    trained = {"recipe": measured["recipe"], "step": measured["step"]}
    minutes = measured.get("training_minutes")
    protocol = PROTOCOL.format(results=results.relative_to(REPOSITORY), command=measured["command"])
    return create_model_card(
        model,
        AutoImageProcessor.from_pretrained(MODEL_FOLDER),
        repo_id="hf_segmodels/demo/model",
        # `measure` computes in float32
        results=[{**measured["test"], **trained, "dtype": "float32"}, {**measured["validation"], **trained}],
        license="other",
        license_name="research-use",
        title=f"{METHODS[model.config.model_type].name}, demo size, trained on CamVid",
        description=DESCRIPTION,
        limits=LIMITS,
        sections={
            "How it was trained and measured": protocol
            + (f"\nin {minutes:.0f} minutes on two CPU cores." if minutes else "")
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Package the demo model.")
    parser.add_argument("run", type=Path, nargs="?", help="output_dir of the recipe")
    parser.add_argument("--recipe", type=Path, help="recipe of the run")
    parser.add_argument("--overrides", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the run")
    parser.add_argument("--dataset", default="../shared/data/camvid")
    parser.add_argument("--minutes", type=float, help="duration of the training on two CPU cores")
    parser.add_argument("--card-only", action="store_true", help="write only the card of the existing model")
    arguments = parser.parse_args()
    if not arguments.card_only:
        if arguments.run is None or arguments.recipe is None:
            parser.error("give RUN and --recipe, or --card-only")
        package(arguments)
    (MODEL_FOLDER / "README.md").write_text(f"{demo_card(RESULTS)}\n", encoding="utf-8")


def package(arguments: argparse.Namespace) -> None:
    """Write model and results."""
    write_model(arguments.run)
    trained = EvaluationResults.from_json(arguments.run / "results.json").to_dict()
    recipe = {key: value for key, value in trained["recipe"].items() if key != "output_dir"}
    path = arguments.recipe.resolve().relative_to(REPOSITORY)
    results: dict[str, Any] = {
        "command": " ".join([path.as_posix(), *arguments.overrides]),
        "step": trained["step"],
        "training_minutes": arguments.minutes,
        "recipe": recipe,
    }
    results["validation"] = {key: value for key, value in trained.items() if key not in {"step", "recipe"}}
    results["test"] = measure(MODEL_FOLDER, arguments.dataset, "test")
    print(f"test: mIoU {100 * results['test']['mean_iou']:.2f}")
    results |= describe_run("cpu")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(results_as_json(results))


if __name__ == "__main__":
    main()
