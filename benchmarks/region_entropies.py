# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
How mixed the classes are in RegProxy's learned regions, in square cells and in superpixels (section 5.3, figure 6).

    python benchmarks/region_entropies.py MODEL DATA [--split validation] [--limit 100] [--picture photo.jpg]
                                          [--output region_entropies]

MODEL is a RegProxy folder or Hub repository; DATA is what `datasets.load_dataset` takes, with the columns `image` and
`label`. Each image has as many cells as tokens, and about as many superpixels (SLIC). Learned regions count a pixel by its
affinity (equation 11), the other two count it once (equation 1). Writes `region_entropies.png`, the densities of entropies
above zero as in figure 6, and `region_entropies.json`: mean entropy and share of pure regions of each kind. `--picture`
adds `regions.png`: the regions of tokens spread over a photograph (figure 8).

Needs `pip install matplotlib '.[train,superpixels]'`.
"""

import argparse
import json
import math
from pathlib import Path

import datasets
import matplotlib
import numpy as np
import torch
from PIL import Image
from scipy.stats import gaussian_kde
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

import hf_segmodels  # noqa: F401  (registers the models)
from hf_segmodels.image_processing.label_maps import label_histograms
from hf_segmodels.image_processing.superpixels import slic_superpixels
from hf_segmodels.metrics import region_entropies
from hf_segmodels.regproxy.loss_regproxy import region_histograms
from hf_segmodels.visualization import draw_regions


matplotlib.use("Agg")
from matplotlib import pyplot


# entropies below are rounding of regions that are pure
_PURE = 1e-4
# how many pixels high a token's cell is drawn at least
_CELL_IN_PICTURE = 24


def square_cells(size: tuple[int, int], grid: tuple[int, int]) -> torch.Tensor:
    """The number of the grid's cell that each pixel lies in, `(height, width)`."""
    rows = torch.arange(size[0]) * grid[0] // size[0]
    columns = torch.arange(size[1]) * grid[1] // size[1]
    return rows[:, None] * grid[1] + columns


def padded_size(model: torch.nn.Module, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width in pixels that the tokens of an image of this size cover."""
    return model.pad_to_whole_patches(torch.empty(1, 3, *size))[1]


def measure(model: torch.nn.Module, processor, rows: datasets.Dataset) -> dict[str, np.ndarray]:
    """Entropies of all regions of a data set, by their kind."""
    found: dict[str, list[torch.Tensor]] = {"square cells": [], "superpixels": [], "learned regions": []}
    num_labels, ignore_index = model.config.num_labels, model.config.semantic_loss_ignore_index
    for row in tqdm(rows, desc="images"):
        inputs = processor(row["image"], segmentation_maps=row["label"], return_tensors="pt")
        pixel_values, labels = inputs["pixel_values"], inputs["labels"]
        # normalizing stretches the channels differently, and with them SLIC's distances between colors
        colors = processor(row["image"], do_normalize=False, return_tensors="pt")["pixel_values"][0]
        size = (pixel_values.shape[-2], pixel_values.shape[-1])
        with torch.inference_mode():
            affinity = model(pixel_values).affinity
        grid = (affinity.shape[-2], affinity.shape[-1])
        number = grid[0] * grid[1]
        cells, segments = square_cells(size, grid)[None], slic_superpixels(colors, number)[None]
        num_segments, covered = int(segments.max()) + 1, padded_size(model, size)
        histograms = {
            "square cells": label_histograms(cells, labels, number, num_labels, ignore_index),
            "superpixels": label_histograms(segments, labels, num_segments, num_labels, ignore_index),
            "learned regions": region_histograms(affinity, labels, num_labels, ignore_index, covered),
        }
        for kind, kind_histograms in histograms.items():
            found[kind].append(region_entropies(kind_histograms))
    return {kind: torch.cat(entropies).numpy() for kind, entropies in found.items()}


def draw_densities(entropies: dict[str, np.ndarray], path: Path) -> None:
    """Kernel density estimates of the entropies above zero."""
    figure, axes = pyplot.subplots(figsize=(6, 4))
    mixed = {kind: values[values > _PURE] for kind, values in entropies.items()}
    grid = np.linspace(0, max((values.max() for values in mixed.values() if len(values)), default=1.0), 200)
    for kind, values in mixed.items():
        if len(values) > 1 and values.std() > 0:
            axes.plot(grid, gaussian_kde(values)(grid), label=kind)
    axes.set(xlabel="entropy of a region's classes (nats)", ylabel="density, entropies of 0 left out")
    axes.legend()
    figure.savefig(path, dpi=150, bbox_inches="tight")
    pyplot.close(figure)


def draw_picture(model: torch.nn.Module, processor, photo: Path, path: Path) -> None:
    """The regions of tokens spread over a photograph."""
    image = Image.open(photo).convert("RGB")
    pixel_values = processor(image, return_tensors="pt")["pixel_values"]
    with torch.inference_mode():
        affinity = model(pixel_values).affinity[0]
    height, width = affinity.shape[-2:]
    tokens = [(row, column) for row in range(2, height, 6) for column in range(2, width, 6)]
    size = (pixel_values.shape[-2], pixel_values.shape[-1])
    covered = padded_size(model, size)
    # large enough to see the shares of pixels inside a cell
    scale = math.ceil(_CELL_IN_PICTURE * height / image.height)
    image = image.resize((scale * image.width, scale * image.height), Image.Resampling.BICUBIC)
    draw_regions(image, affinity, tokens, coverage=(covered[0] / size[0], covered[1] / size[1])).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--limit", type=int, help="only the first images")
    parser.add_argument("--picture", type=Path, help="photograph to draw regions on")
    parser.add_argument("--output", type=Path, default=Path("region_entropies"), help="folder")
    arguments = parser.parse_args()
    if arguments.limit is not None and arguments.limit < 1:
        parser.error("--limit must be at least 1.")

    model = AutoModelForSemanticSegmentation.from_pretrained(arguments.model).eval()
    if model.config.model_type != "regproxy":
        parser.error(f"{arguments.model} is a {model.config.model_type} model, which has no regions: give a RegProxy.")
    # merged windows have no regions
    model.config.window_size = model.config.window_stride = None
    processor = AutoImageProcessor.from_pretrained(arguments.model)
    rows = datasets.load_dataset(arguments.data, split=arguments.split)
    if not {"image", "label"} <= set(rows.column_names):
        parser.error(f"{arguments.data} has the columns {rows.column_names}, but `image` and `label` are needed.")
    if arguments.limit is not None:
        rows = rows.select(range(min(arguments.limit, len(rows))))
    entropies = measure(model, processor, rows)

    arguments.output.mkdir(parents=True, exist_ok=True)
    summary = {
        kind: {"regions": len(values), "mean entropy": float(values.mean()), "pure": float((values <= _PURE).mean())}
        for kind, values in entropies.items()
    }
    for kind, figures in summary.items():
        print(f"{kind}: mean entropy {figures['mean entropy']:.4f} nats, {figures['pure']:.1%} pure")
    report = {
        "model": arguments.model,
        "data": arguments.data,
        "split": arguments.split,
        "images": len(rows),
        **summary,
    }
    (arguments.output / "region_entropies.json").write_text(json.dumps(report, indent=1))
    draw_densities(entropies, arguments.output / "region_entropies.png")
    if arguments.picture:
        draw_picture(model, processor, arguments.picture, arguments.output / "regions.png")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
