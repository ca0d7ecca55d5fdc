# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Times the label checks (`hf-segmodels check-data`) on synthetic label maps, as many as ADE20K's validation set has.

    python benchmarks/check_data.py [--maps 2000] [--num-workers 2] [--repeats 3] [--output benchmarks/results]

Writes a temporary folder in ADE20K's layout: PNG label maps of 683x512 pixels with 150 classes in blobs with rough
edges (more blobs, and so more bytes, than ADE20K's have), and JPEG images of the same size. One label map has a planted
issue, and the pixels of each class are counted while the label maps are made. The checks have to find the issue and to
report the counts, otherwise the run ends. Then times the whole check and the quick form that runs before training. The
files were just written, so they are read from memory, not from a disk.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from segment_image import commit, processor_name
from tqdm import tqdm

from hf_segmodels.data import DatasetSpec, LabelSpec, SegmentationData, check_data, quick_check


NUM_LABELS = 150
SIZE = (512, 683)
CELL = 32
PLANTED_VALUE = 200


def make_label_map(generator: np.random.Generator) -> np.ndarray:
    """A label map of some ten to twenty classes, `(height, width)` uint8; 0 is "other"."""
    present = generator.integers(0, NUM_LABELS + 1, generator.integers(8, 20)).astype(np.uint8)
    grid = present[generator.integers(0, len(present), (SIZE[0] // CELL + 2, SIZE[1] // CELL + 2))]
    # edges move by a few pixels from row to row and from column to column
    rows, columns = np.indices(SIZE)
    rows = rows + generator.integers(-1, 2, SIZE[1]).cumsum() % CELL
    columns = columns + (generator.integers(-1, 2, SIZE[0]).cumsum() % CELL)[:, None]
    return grid[rows // CELL, columns // CELL]


def make_data(folder: Path, number: int) -> np.ndarray:
    """Writes the data set; returns the pixels of each value, `(256,)`."""
    generator = np.random.default_rng(0)
    images, annotations = folder / "images" / "validation", folder / "annotations" / "validation"
    for place in (images, annotations):
        place.mkdir(parents=True)
    counts = np.zeros(256, dtype=np.int64)
    small = Image.fromarray(generator.integers(0, 256, (SIZE[0] // 8, SIZE[1] // 8, 3), dtype=np.uint8))
    image = small.resize(SIZE[::-1])
    for index in tqdm(range(number), desc="making label maps"):
        labels = make_label_map(generator)
        if index == number // 2:
            labels[100, 200] = PLANTED_VALUE
        Image.fromarray(labels).save(annotations / f"ADE_val_{index:08d}.png")
        image.save(images / f"ADE_val_{index:08d}.jpg")
        counts += np.bincount(labels.ravel(), minlength=256)
    return counts


def remove_issue(folder: Path, number: int) -> None:
    """Removes the planted issue, for which the quick form raises an error."""
    path = folder / "annotations" / "validation" / f"ADE_val_{number // 2:08d}.png"
    labels = np.array(Image.open(path))
    Image.fromarray(np.where(labels == PLANTED_VALUE, 0, labels).astype(np.uint8)).save(path)


def check_results(report: Any, counts: np.ndarray, number: int) -> None:
    """Ends the run if the counts or the issues are wrong."""
    (split,) = report.splits
    issues = [issue.name for issue in report.issues()]
    if split.pixels != counts[1 : NUM_LABELS + 1].tolist() or split.ignored_pixels != counts[0]:
        sys.exit("the pixel counts of the checks are wrong")
    if issues != ["void-value"] or split.other_values != {PLANTED_VALUE: 1} or split.num_read != number:
        sys.exit(f"the checks found {issues} in {split.num_read} label maps, not the planted void-value")
    print(f"the checks counted {number} label maps correctly and found the planted issue")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=2000, help="how many label maps (default: 2000)")
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="folder for the results file")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "ADEChallengeData2016"
        counts = make_data(folder, arguments.maps)
        dataset = DatasetSpec(folder, "ade20k")
        labels = LabelSpec(NUM_LABELS, do_reduce_labels=True)
        size = sum(path.stat().st_size for path in (folder / "annotations").rglob("*.png")) / arguments.maps
        seconds, quick_seconds = [], []
        for _ in range(arguments.repeats):
            start = time.perf_counter()
            report = check_data(dataset, ["validation"], labels, num_workers=arguments.num_workers)
            seconds.append(time.perf_counter() - start)
            if len(seconds) == 1:
                check_results(report, counts, arguments.maps)
        remove_issue(folder, arguments.maps)
        data = SegmentationData(dataset, "validation", labels)
        for _ in range(arguments.repeats):
            start = time.perf_counter()
            quick_check(data)
            quick_seconds.append(time.perf_counter() - start)

    results = {
        "machine": processor_name(),
        "workers": arguments.num_workers,
        "versions": {"torch": torch.__version__, "pillow": PIL.__version__, "numpy": np.__version__},
        "commit": commit(),
        "label maps": arguments.maps,
        "size": list(SIZE),
        "mean bytes of a label map": round(size),
        "seconds": {"all label maps": median(seconds), "quick form": median(quick_seconds)},
        "rounds": {"all label maps": seconds, "quick form": quick_seconds},
    }
    print(json.dumps(results["seconds"], indent=1))
    print(f"{arguments.maps / median(seconds):.0f} label maps a second")
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
        path = arguments.output / "check_data_cpu.json"
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
