# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Writes small data sets as benchmarks lie on disk."""

from pathlib import Path

import numpy as np
from PIL import Image


SIZE = (6, 8)
"""(height, width)"""


def write_image(path: Path, size: tuple[int, int] = SIZE, **options) -> Path:
    """An image of noise that depends on its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(sum(map(ord, path.stem)))
    Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path, **options)
    return path


def write_labels(path: Path, labels: np.ndarray, **options) -> Path:
    """A label map as it is, in its own dtype."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels).save(path, **options)
    return path


def label_map(*values: int, size: tuple[int, int] = SIZE, dtype: type = np.uint8) -> np.ndarray:
    """A label map in which all `values` occur, column by column."""
    columns = np.resize(np.array(values, dtype=dtype), size[1])
    return np.tile(columns, (size[0], 1))


def write_folders(root: Path, maps: dict[str, np.ndarray], suffix: str = ".jpg") -> Path:
    """`images/NAME.jpg` and `labels/NAME.png`."""
    for name, labels in maps.items():
        write_image(root / "images" / f"{name}{suffix}", labels.shape[:2])
        write_labels(root / "labels" / f"{name}.png", labels)
    return root


def write_ade20k(root: Path, maps: dict[str, np.ndarray], split: str = "validation") -> Path:
    """`ADEChallengeData2016`, of which `root` is the folder around."""
    root = root / "ADEChallengeData2016"
    for name, labels in maps.items():
        write_image(root / "images" / split / f"{name}.jpg", labels.shape)
        write_labels(root / "annotations" / split / f"{name}.png", labels)
    return root


def write_cityscapes(root: Path, maps: dict[str, np.ndarray], split: str = "train", kind: str = "labelIds") -> Path:
    """`leftImg8bit` and `gtFine`, names as `CITY_000000_000019`."""
    for name, labels in maps.items():
        city = name.partition("_")[0]
        write_image(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", labels.shape)
        write_labels(root / "gtFine" / split / city / f"{name}_gtFine_{kind}.png", labels)
    return root


def write_pascal_context(root: Path, maps: dict[str, np.ndarray], split: str = "train") -> Path:
    """mmsegmentation's `VOC2010`."""
    for name, labels in maps.items():
        write_image(root / "JPEGImages" / f"{name}.jpg", labels.shape)
        write_labels(root / "SegmentationClassContext" / f"{name}.png", labels)
    names = root / "ImageSets" / "SegmentationContext" / f"{split}.txt"
    names.parent.mkdir(parents=True, exist_ok=True)
    names.write_text("\n".join(maps) + "\n")
    return root


def write_coco_stuff(root: Path, maps: dict[str, np.ndarray], split: str = "train") -> Path:
    """`cocostuff-10k-v1.1` with its `.mat` files."""
    from scipy.io import savemat

    for name, labels in maps.items():
        write_image(root / "images" / f"{name}.jpg", labels.shape)
        (root / "annotations").mkdir(exist_ok=True)
        savemat(root / "annotations" / f"{name}.mat", {"S": labels, "captions": np.zeros(3)})
    (root / "imageLists").mkdir(exist_ok=True)
    (root / "imageLists" / f"{split}.txt").write_text("\n".join(maps) + "\n")
    return root
