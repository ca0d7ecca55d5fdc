# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Colors of classes: the palette of a known data set, or generated colors."""

from functools import lru_cache

import numpy as np
from transformers.configuration_utils import PreTrainedConfig

from ..labels import DATASETS, load_labels


def palette_for(config: PreTrainedConfig) -> np.ndarray:
    """
    Return colors for the classes of a model.

    Args:
        config (`PreTrainedConfig`):
            Configuration of a segmentation model. The first of these palettes is used: the `palette` of the configuration (a
            list with one `[red, green, blue]` for each class), the palette of the data set with the class names in
            `id2label`, and [`generate_palette`].

    Returns:
        `np.ndarray` of shape `(num_labels, 3)`, uint8.

    Raises:
        ValueError: if `palette` of the configuration does not hold one color for each class.
    """
    palette = getattr(config, "palette", None)
    if palette is None:
        names = [name.lower() for _, name in sorted((config.id2label or {}).items())]
        datasets = (load_labels(dataset) for dataset in DATASETS)
        palette = next((colors for dataset_names, colors in datasets if dataset_names == names), None)
    if palette is None:
        return generate_palette(config.num_labels)
    palette = check_palette(palette)
    if len(palette) != config.num_labels:
        raise ValueError(
            f"`palette` of the configuration has {len(palette)} colors, but the model has {config.num_labels} classes: give "
            "one [red, green, blue] for each class, or remove `palette`."
        )
    return palette


@lru_cache(maxsize=8)
def generate_palette(num_labels: int) -> np.ndarray:
    """
    Generate colors that differ as much as possible from each other, from black and from white. Each color is the farthest (in
    CIELAB) from all colors before it. The result is deterministic, and a shorter palette is the beginning of a longer one.

    Args:
        num_labels (`int`): Number of colors. More than 4096 colors repeat.

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
        distance[chosen[-1]] = -1.0  # not again, even after all distances have become 0
    palette = np.resize(candidates[chosen], (num_labels, 3)).astype(np.uint8)
    palette.setflags(write=False)
    return palette


def check_palette(palette: np.ndarray | list) -> np.ndarray:
    """
    Convert a palette to a uint8 array `(num_labels, 3)`.

    Raises:
        ValueError: if the palette has another shape, or a color is not three integers from 0 to 255.
    """
    array = np.asarray(palette)
    if array.ndim != 2 or array.shape[1] != 3 or array.size == 0:
        raise ValueError(f"`palette` must have the shape (num_labels, 3) for red, green and blue, got {array.shape}.")
    if not np.issubdtype(array.dtype, np.integer) or array.min() < 0 or array.max() > 255:
        raise ValueError("`palette` must hold integers from 0 to 255.")
    return array.astype(np.uint8)


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
