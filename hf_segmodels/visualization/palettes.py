# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Colors for classes: the data set's own where they are known, generated ones otherwise."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from transformers.configuration_utils import PreTrainedConfig

from ..labels import DATASETS, load_labels


def palette_for(config: PreTrainedConfig) -> np.ndarray:
    """
    Colors for the classes of a model.

    Args:
        config (`PreTrainedConfig`):
            Configuration of a segmentation model. In this order: its own `palette` (a list of `[red, green, blue]`, one
            for each class) if it has one, the palette of the data set whose class names are those in `id2label`, or
            [`generate_palette`].

    Returns:
        `np.ndarray` of shape `(num_labels, 3)`, uint8.
    """
    palette = getattr(config, "palette", None)
    if palette is None:
        palette = _dataset_palette([name for _, name in sorted((config.id2label or {}).items())])
    if palette is None:
        return generate_palette(config.num_labels)
    palette = check_palette(palette)
    if len(palette) != config.num_labels:
        raise ValueError(
            f"The palette has {len(palette)} colors but the model has {config.num_labels} classes: give `palette` in "
            "the configuration one [red, green, blue] for each class, or remove it."
        )
    return palette


@lru_cache(maxsize=8)
def generate_palette(num_labels: int) -> np.ndarray:
    """
    Colors that are as different as possible from each other, from black and from white; always the same ones, and the
    first ones of a longer palette are those of a shorter.

    Each color is the one farthest (in CIELAB) from all colors before it.

    Args:
        num_labels (`int`): How many. Beyond 4096 they repeat.

    Returns:
        `np.ndarray` of shape `(num_labels, 3)`, uint8, read-only.
    """
    levels = np.linspace(0, 255, 16).round()
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _rgb_to_lab(candidates)
    black, white = np.zeros((1, 3)), np.full((1, 3), 255.0)
    distance = np.minimum(*(np.linalg.norm(lab - _rgb_to_lab(taken), axis=1) for taken in (black, white)))
    chosen = []
    for _ in range(min(num_labels, len(candidates))):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
        distance[chosen[-1]] = -1.0  # never twice, even when all distances have become 0
    palette = np.resize(candidates[chosen], (num_labels, 3)).astype(np.uint8)
    palette.setflags(write=False)
    return palette


def check_palette(palette: np.ndarray | list) -> np.ndarray:
    """`palette` as a uint8 array `(num_labels, 3)`; a `ValueError` where it cannot be one."""
    array = np.asarray(palette)
    if array.ndim != 2 or array.shape[1] != 3 or array.size == 0:
        raise ValueError(f"A palette needs the shape (num_labels, 3), red, green and blue, but has {array.shape}.")
    if not np.issubdtype(array.dtype, np.integer) or array.min() < 0 or array.max() > 255:
        raise ValueError("The colors of a palette must be integers from 0 to 255.")
    return array.astype(np.uint8)


def _dataset_palette(names: Sequence[str]) -> np.ndarray | None:
    wanted = [name.lower() for name in names]
    for dataset in DATASETS:
        dataset_names, palette = load_labels(dataset)
        if wanted == dataset_names:
            return np.array(palette)
    return None


def _rgb_to_lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB `(n, 3)` from 0 to 255 -> CIELAB (D65)."""
    scaled = rgb / 255
    linear = np.where(scaled <= 0.04045, scaled / 12.92, ((scaled + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    )
    xyz = linear @ to_xyz.T / to_xyz.sum(axis=1)
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)
