# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Turns the output of the demo recipe into the model that the package ships.

    python training/package_demo_model.py RUN_FOLDER [--dataset FOLDER] [--split test] [--minutes MINUTES]

Writes the weights in half precision, the processor and a model card to hf_segmodels/demo_model/, and the scores that the
card quotes, measured on what was written, to benchmarks/results/demo_model_camvid.json.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation


sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hf_segmodels.data import SegmentationData
from hf_segmodels.evaluation import describe_run, evaluate_model


REPOSITORY = Path(__file__).resolve().parents[1]
RECIPE = "training/recipes/segmenter_camvid_demo.yaml"
MODEL_FOLDER = REPOSITORY / "hf_segmodels" / "demo_model"
RESULTS = REPOSITORY / "benchmarks" / "results" / "demo_model_camvid.json"

CARD = """\
---
license: other
license_name: research-use
library_name: transformers
pipeline_tag: image-segmentation
tags: [semantic-segmentation, segmenter, camvid]
---
# Segmenter, demo size, trained on CamVid

A small [Segmenter](https://huggingface.co/papers/2105.05633) ({parameters:.2f} M parameters) for street scenes in {num_labels} classes. It
is there to try the package with: it was trained from scratch, without any pre-trained weights, on 367 images. It knows the
streets of one English town seen from a car; on other photographs it finds much of the buildings, trees and sky, and takes
the rest for something it knows (hazy sky or water for road).

- Encoder: a convolutional ResNetV2 stem ({depths} bottlenecks, stride {stride}), then {layers} transformer layers of width
  {width}. Decoder: mask transformer, {decoder_layers} layer.
- Input: RGB, shorter edge {edge}. Output: one class per pixel; labels 255 (void) were not trained on.
- Licence: code Apache-2.0; **weights trained on CamVid: research use**.

```python
import hf_segmodels
from transformers import pipeline

segment = pipeline("image-segmentation", model="PATH_TO/hf_segmodels/demo_model")
segment("street.jpg")
```

## Scores

CamVid in the SegNet split, 480x360 pixels, whole images through `model.predict`, totals over the split, void left out
(`{results}`). Nothing was chosen on the test split.

| | mIoU | mean accuracy | pixel accuracy |
|---|---|---|---|
| test ({test_images} images) | **{miou:.1f}** | {macc:.1f} | {acc:.1f} |
| validation, at the end of training in bfloat16 | {val_miou:.1f} | {val_macc:.1f} | {val_acc:.1f} |

| class | test IoU |
|---|---|
{classes}

## Training

    accelerate launch {recipe}

{steps} updates with {batch} crops of {crop} pixels each{minutes}: AdamW, cosine schedule,
random scale, crop, flip and colours, loss weighted by class frequency, moving average of the weights, bfloat16.
"""


def measure(folder: Path, dataset: str, split: str) -> dict[str, Any]:
    """Scores of the model in `folder` on a split, through `predict` at the images' own size."""
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    data = SegmentationData(dataset, split, processor=processor)
    started = time.perf_counter()
    scores = evaluate_model(model, processor, data)
    return {"split": split, "seconds": time.perf_counter() - started, **scores}


def write_model(run: Path) -> None:
    """Weights in half precision; the configuration says float32, so that they are computed with in float32."""
    model = AutoModelForSemanticSegmentation.from_pretrained(run, dtype=torch.float32)
    shutil.rmtree(MODEL_FOLDER, ignore_errors=True)
    halves = {name: value.half() for name, value in model.state_dict().items()}
    model.save_pretrained(MODEL_FOLDER, state_dict=halves)
    (MODEL_FOLDER / "model.safetensors").chmod(0o644)
    AutoImageProcessor.from_pretrained(run).save_pretrained(MODEL_FOLDER)


def write_card(results: dict[str, Any], minutes: float | None) -> None:
    """The model card, every figure in it from `results` and the configuration."""
    model = AutoModelForSemanticSegmentation.from_pretrained(MODEL_FOLDER)
    config, encoder = model.config, model.config.backbone_config
    recipe = results["recipe"]
    overrides = {"max_steps": recipe["max_steps"]} if recipe["max_steps"] != results["recipe_file"]["max_steps"] else {}
    command = f"training/run_segmentation_accelerate.py {RECIPE}"
    plain, validation = results["test"], results["validation"]
    rows = [f"| {config.id2label[i]} | {100 * iou:.1f} |" for i, iou in enumerate(plain["per_category_iou"])]
    card = CARD.format(
        parameters=model.num_parameters() / 1e6,
        num_labels=config.num_labels,
        depths=" + ".join(map(str, encoder.stem_depths)),
        stride=encoder.patch_size,
        layers=encoder.num_hidden_layers,
        width=encoder.hidden_size,
        decoder_layers=config.decoder_num_hidden_layers,
        edge=AutoImageProcessor.from_pretrained(MODEL_FOLDER).size["shortest_edge"],
        results=RESULTS.relative_to(REPOSITORY),
        test_images=plain["images"],
        **{
            prefix + key: 100 * scores[name]
            for prefix, scores in (("", plain), ("val_", validation))
            for key, name in (("miou", "mean_iou"), ("macc", "mean_accuracy"), ("acc", "overall_accuracy"))
        },
        classes="\n".join(rows),
        recipe=" ".join([command, *(f"{key}={value}" for key, value in overrides.items())]),
        steps=results["step"],
        batch=recipe["batch_size"] * recipe["gradient_accumulation_steps"],
        crop="x".join(map(str, reversed(recipe["crop_size"]))),
        minutes=f" in {minutes:.0f} minutes on two CPU cores" if minutes else "",
    )
    (MODEL_FOLDER / "README.md").write_text(card)


def main() -> None:
    parser = argparse.ArgumentParser(description="Packages the demo model.")
    parser.add_argument("run", type=Path, help="output_dir of the recipe")
    parser.add_argument("--dataset", default="../shared/data/camvid")
    parser.add_argument("--minutes", type=float, help="how long the training took")
    arguments = parser.parse_args()

    write_model(arguments.run)
    trained = json.loads((arguments.run / "results.json").read_text())
    recipe = {key: value for key, value in trained["recipe"].items() if key != "output_dir"}
    results: dict[str, Any] = {"step": trained["step"], "training_minutes": arguments.minutes, "recipe": recipe}
    results["validation"] = {key: value for key, value in trained.items() if key not in {"step", "recipe"}}
    results["test"] = measure(MODEL_FOLDER, arguments.dataset, "test")
    print(f"test: mIoU {100 * results['test']['mean_iou']:.2f}")
    results |= describe_run("cpu")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    write_card(results | {"recipe_file": yaml.safe_load((REPOSITORY / RECIPE).read_text())}, arguments.minutes)


if __name__ == "__main__":
    main()
