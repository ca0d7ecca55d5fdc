# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Times the doctor of label maps (`hf-segmodels check-data`) on as many as ADE20K's validation set has, made for it.

    python benchmarks/check_data.py [--maps 2000] [--num-workers 2] [--repeats 3] [--output benchmarks/results]

Makes a folder in ADE20K's layout, in a temporary place: PNG label maps of 683x512 pixels with 150 classes in blobs with
rough edges (more of them, and so more bytes, than ADE20K's have), and JPEG images of the same size. One label map has a planted
fault, and the pixels of each class are counted while they are made: the doctor has to find the one and report the others,
or nothing is timed. Then times the whole check and the quick form that runs before training. The first round reads files
that were just written: they come from memory, not from a disk.
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

from hf_segmodels import SegmenterImageProcessor
from hf_segmodels.data import SegmentationData, check_data, quick_check


NUM_LABELS = 150
SIZE = (512, 683)
CELL = 32
FAULTY_VALUE = 200


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
            labels[100, 200] = FAULTY_VALUE
        Image.fromarray(labels).save(annotations / f"ADE_val_{index:08d}.png")
        image.save(images / f"ADE_val_{index:08d}.jpg")
        counts += np.bincount(labels.ravel(), minlength=256)
    return counts


def mend(folder: Path, number: int) -> None:
    """Takes the planted fault out, which would end the quick form."""
    path = folder / "annotations" / "validation" / f"ADE_val_{number // 2:08d}.png"
    labels = np.array(Image.open(path))
    Image.fromarray(np.where(labels == FAULTY_VALUE, 0, labels).astype(np.uint8)).save(path)


def check_results(report: Any, counts: np.ndarray, number: int) -> None:
    """Ends the run where the doctor's counts or faults are not those of the data."""
    (split,) = report.splits
    faults = [fault.name for fault in report.faults()]
    if split.pixels != counts[1 : NUM_LABELS + 1].tolist() or split.ignored_pixels != counts[0]:
        sys.exit("the doctor counts other pixels than there are")
    if faults != ["void-value"] or split.other_values != {FAULTY_VALUE: 1} or split.num_read != number:
        sys.exit(f"the doctor found {faults} in {split.num_read} label maps, not the planted void-value")
    print(f"the doctor's counts are those of the {number} label maps, and it found the planted fault")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=2000, help="how many label maps (default: 2000)")
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="folder for the results file")
    arguments = parser.parse_args()

    options: dict[str, Any] = {"num_labels": NUM_LABELS, "layout": "ade20k", "do_reduce_labels": True}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "ADEChallengeData2016"
        counts = make_data(folder, arguments.maps)
        size = sum(path.stat().st_size for path in (folder / "annotations").rglob("*.png")) / arguments.maps
        seconds, quick_seconds = [], []
        for _ in range(arguments.repeats):
            start = time.perf_counter()
            report = check_data(str(folder), ["validation"], num_workers=arguments.num_workers, **options)
            seconds.append(time.perf_counter() - start)
            if len(seconds) == 1:
                check_results(report, counts, arguments.maps)
        mend(folder, arguments.maps)
        processor = SegmenterImageProcessor(do_reduce_labels=True, num_labels=NUM_LABELS)
        data = SegmentationData(folder, "validation", processor=processor, layout="ade20k")
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
