# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Class names and palettes of the data sets of the papers."""

import json
from functools import cache
from pathlib import Path


_FOLDER = Path(__file__).parent

DATASETS: tuple[str, ...] = tuple(sorted(path.stem for path in _FOLDER.glob("*.json")))


@cache
def _read(name: str) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    data = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return tuple(data["names"]), tuple((red, green, blue) for red, green, blue in data["palette"])


def load_labels(name: str) -> tuple[list[str], list[tuple[int, int, int]]]:
    """
    Return the class names and the palette of a data set, both in the order of the class ids.

    Args:
        name (`str`):
            One of `DATASETS`: `"ade20k"` (150 classes), `"cityscapes"` (19), `"coco_stuff_171"`,
            `"pascal_context_59"`, or `"pascal_context_60"` (with background as class 0).

    Returns:
        The names, and the colors as `(red, green, blue)` from 0 to 255.

    Raises:
        ValueError: if `name` is not in `DATASETS`.

    Example:

    ```python
    >>> from hf_segmodels.labels import load_labels

    >>> names, palette = load_labels("cityscapes")
    >>> names[0], palette[0]
    ('road', (128, 64, 128))
    ```
    """
    if name not in DATASETS:
        raise ValueError(f"`name` is {name!r}; choose one of {', '.join(DATASETS)}.")
    names, palette = _read(name)
    return list(names), list(palette)


__all__ = ["DATASETS", "load_labels"]
