# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Time the streaming confusion matrix against the baseline, three histograms per image, after checking that both give the
same scores, and measure that its memory does not grow.

    python benchmarks/mean_iou.py [--threads 2] [--repeats 15] [--images 2000] [--output benchmarks/results]

Label maps are 512x512 with 150 classes: large regions, a twentieth of the pixels ignored, seven in eight predicted
correctly. The baseline is the method of mmsegmentation's early versions and of `evaluate`'s `mean_iou`: numpy
histograms of the labels, of the predictions and of their intersection. Maps are uint8, as in files, or int64, as from
models.

The variants are timed alternately, one call each, and medians are compared. The time per image of boundary IoU and of
all scores is reported, too. Memory is measured in a separate process (Linux only) that counts `--images` images, made
one by one: the peak above the memory after the first ten.
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from segment_image import commit, interleaved, peak_memory_over_start, processor_name

from hf_segmodels.metrics import BoundaryIoU, ConfusionMatrix, SegmentationScores


NUM_LABELS, IGNORED, SIZE = 150, 255, (512, 512)


def random_pair(generator: np.random.Generator, dtype: type = np.uint8) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and labeled classes of one image."""
    cells = generator.integers(0, NUM_LABELS, (8, 8))
    labels = cells.repeat(SIZE[0] // 8, axis=0).repeat(SIZE[1] // 8, axis=1)
    labels = np.roll(labels, generator.integers(0, SIZE[0], 2), axis=(0, 1))
    is_wrong = generator.random(SIZE) < 1 / 8
    predictions = np.where(is_wrong, generator.integers(0, NUM_LABELS, SIZE), labels)
    return predictions.astype(dtype), np.where(generator.random(SIZE) < 1 / 20, IGNORED, labels).astype(dtype)


def count_histograms(predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Intersection, predicted and labeled pixels of each class, `(3, NUM_LABELS)`."""
    is_valid = references != IGNORED
    predictions, references = predictions[is_valid], references[is_valid]
    shared = predictions[predictions == references]
    bounds = (0, NUM_LABELS - 1)
    parts = (shared, predictions, references)
    return np.stack([np.histogram(part, bins=NUM_LABELS, range=bounds)[0] for part in parts])


def mean_iou_of(counts: np.ndarray) -> float:
    shared, predicted, labeled = counts
    with np.errstate(invalid="ignore"):
        return float(np.nanmean(shared / (predicted + labeled - shared)))


def check(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Exit if the confusion matrix and the baseline give different scores."""
    matrix = ConfusionMatrix(NUM_LABELS, IGNORED)
    for pair in pairs:
        matrix.update(*pair)
    expected, found = mean_iou_of(sum(count_histograms(*pair) for pair in pairs)), matrix.compute()["mean_iou"]
    if not math.isclose(found, expected, rel_tol=1e-12):
        sys.exit(f"mean IoU: {found} differs from {expected}")
    print(f"mean IoU: both give {found:.6f}")


def measure(repeats: int) -> dict[str, Any]:
    results = {}
    for dtype in (np.uint8, np.int64):
        generator = np.random.default_rng(0)
        pairs = [random_pair(generator, dtype) for _ in range(4)]
        check(pairs)
        pair = pairs[0]
        matrix, boundaries = ConfusionMatrix(NUM_LABELS, IGNORED), BoundaryIoU(NUM_LABELS, IGNORED)
        scores = SegmentationScores(NUM_LABELS, IGNORED, boundary_iou=True, object_sizes=True)
        variants = {
            "three histograms": lambda pair=pair: count_histograms(*pair),
            "confusion matrix": lambda pair=pair, matrix=matrix: matrix.update(*pair),
            "boundary IoU": lambda pair=pair, boundaries=boundaries: boundaries.update(*pair),
            "all scores": lambda pair=pair, scores=scores: scores.update(*pair),
        }
        seconds = interleaved(variants, repeats, torch.device("cpu"))
        ratio = seconds["three histograms"] / seconds["confusion matrix"]
        results[np.dtype(dtype).name] = {
            "seconds": seconds,
            "ratios": {"three histograms over confusion matrix": ratio},
        }
    return results


def peak_memory(images: int) -> int:
    """Count images in this process, and return the bytes of its peak above the memory after the first ten."""
    generator = np.random.default_rng(0)
    scores = SegmentationScores(NUM_LABELS, IGNORED, boundary_iou=True, object_sizes=True)

    def count(number: int) -> None:
        for _ in range(number):
            scores.update(*random_pair(generator))

    count(10)
    return peak_memory_over_start(lambda: count(images - 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--images", type=int, default=2000, help="number of images for measuring memory")
    parser.add_argument("--output", type=Path, help="folder for the results; defaults to printing only")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.images <= 10:
        parser.error("--images must be more than 10")
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print(peak_memory(arguments.memory_of))
        return

    results: dict[str, Any] = {
        "machine": processor_name(),
        "threads": arguments.threads,
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "commit": commit(),
        **measure(arguments.repeats),
    }
    for dtype in ("uint8", "int64"):
        for variant, seconds in results[dtype]["seconds"].items():
            print(f"{dtype}: {variant}: {1000 * seconds:.2f} ms per image")
        for text, ratio in results[dtype]["ratios"].items():
            print(f"{dtype}: {text}: {ratio:.1f}")
    if Path("/proc/self/clear_refs").exists():
        command = [sys.executable, __file__, "--threads", str(arguments.threads), "--memory-of", str(arguments.images)]
        process = subprocess.run(command, check=True, capture_output=True, text=True)
        growth = int(process.stdout.split()[-1])
        results["memory"] = {"images": arguments.images, "bytes over the first ten": growth}
        print(f"memory over {arguments.images} images: {growth / 2**20:.1f} MiB above the first ten")
    if arguments.output is not None:
        arguments.output.mkdir(parents=True, exist_ok=True)
        path = arguments.output / "mean_iou_cpu.json"
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
