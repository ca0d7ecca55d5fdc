# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Readers for annotations that are not images: the segments of Pascal in Detail and the `.mat` files of COCO-Stuff."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np


def read_detail(path: Path, split: str) -> dict[str, dict[str, Any]]:
    """
    Read the segments of Pascal in Detail.

    Args:
        path (`Path`): `trainval_merged.json`: `images` with `phase`, `file_name`, `height` and `width`, and
            `annos_segmentation` with `image_id`, `category_id` and a compressed run-length `segmentation`.
        split (`str`): The phase.

    Returns:
        `dict[str, dict]`: For each image file `size (height, width)` and `segments`, pairs of a category and its run
        lengths. Later segments cover earlier ones.
    """
    data = json.loads(path.read_text(encoding="utf-8"))
    entries = {entry["image_id"]: entry for entry in data["images"] if entry["phase"] == split}
    segments = defaultdict(list)
    for segment in data["annos_segmentation"]:
        if segment["image_id"] in entries:
            segments[segment["image_id"]].append((segment["category_id"], segment["segmentation"]["counts"]))
    return {
        entry["file_name"]: {"size": (entry["height"], entry["width"]), "segments": segments[image_id]}
        for image_id, entry in entries.items()
    }


def decode_segments(text: str) -> np.ndarray:
    """Decode the JSON text of an entry of [`read_detail`] to the category of each pixel, `(height, width)` int32."""
    try:
        from pycocotools import mask as run_lengths
    except ImportError as error:
        raise ImportError(
            "Pascal Context's `trainval_merged.json` needs pycocotools: pip install pycocotools"
        ) from error
    label = json.loads(text)
    categories = np.zeros(label["size"], dtype=np.int32)
    for category, counts in label["segments"]:
        categories[run_lengths.decode({"size": label["size"], "counts": counts}) > 0] = category
    return categories


def read_mat(path: str) -> np.ndarray:
    """Ids in a COCO-Stuff file, `(height, width)`."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError("COCO-Stuff's `.mat` files need SciPy: pip install scipy") from error
    return loadmat(path, variable_names=["S"])["S"]
