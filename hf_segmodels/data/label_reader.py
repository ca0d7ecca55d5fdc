# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""From what a row of a data set holds (a file, its bytes, a `.mat`, run lengths) to an image or a map of classes."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from ..image_processing.label_maps import label_map_to_tensor


# Values of a label map that one mapping may span
_MAX_SPAN = 2**20


def open_image(value: Any) -> PIL.Image.Image:
    """
    Opens an image that a row holds, without decoding it yet: `{"path": ..., "bytes": ...}` as `datasets.Image(decode=False)`
    gives, a path, or an image.

    Raises:
        OSError: if there is no such file, or it is no image.
    """
    if isinstance(value, PIL.Image.Image):
        return value
    path, content = (value["path"], value["bytes"]) if isinstance(value, Mapping) else (value, None)
    if content is not None:
        return PIL.Image.open(io.BytesIO(content))
    if path is None:
        raise OSError("the row has neither an image nor a path")
    if "://" in str(path):
        import datasets

        return datasets.Image().decode_example(value)
    return PIL.Image.open(path)


class LabelReader:
    """
    Reads label maps and gives their values the meaning of classes.

    Args:
        mapping (`Mapping[int, int | None]`, *optional*):
            Class of each value in the files, None for values that do not count. Unset: values are classes already.
        ignore_index (`int`, *optional*, defaults to 255): Label of pixels that do not count.

    Raises:
        ValueError: if the values that `mapping` names lie too far apart.
    """

    def __init__(self, mapping: Mapping[int, int | None] | None = None, ignore_index: int = 255):
        self.ignore_index = ignore_index
        self.mapping: dict[int, int] | None = None
        if mapping is None:
            return
        self.mapping = {value: ignore_index if label is None else label for value, label in mapping.items()}
        self.lowest = min(self.mapping)
        span = max(self.mapping) - self.lowest + 1
        if span > _MAX_SPAN:
            raise ValueError(
                f"The label mapping spans {span} values, from {self.lowest} on: at most {_MAX_SPAN} can be."
            )
        # one more label, outside all others, for values without one
        self.unnamed = min(0, *self.mapping.values()) - 1
        self.table = np.full(span + 1, self.unnamed, dtype=np.int32)
        for value, label in self.mapping.items():
            self.table[value - self.lowest] = label

    def read_raw(self, value: Any) -> PIL.Image.Image | np.ndarray:
        """
        A label map with the values that its file has.

        Args:
            value: What a row holds: an image (see [`open_image`]), the path of a `.mat` file with `S (height, width)`, run
                lengths in JSON (see [`encode_segments`]), or nested lists or an array of integers.
        """
        if isinstance(value, str) and value.startswith("{"):
            return _decode_segments(value)
        path = value.get("path") if isinstance(value, Mapping) else value if isinstance(value, str | Path) else None
        if path is not None and str(path).endswith(".mat"):
            return _read_mat(str(path))
        if isinstance(value, list | np.ndarray):
            return np.asarray(value)
        return open_image(value)

    def read(self, value: Any, name: str = "label map") -> PIL.Image.Image:
        """
        A label map of classes, as an image.

        Args:
            value: See [`LabelReader.read_raw`].
            name (`str`, *optional*): What error messages call it.

        Returns:
            `PIL.Image.Image`: as it is in its file where there is no mapping; otherwise of mode "L", or "I" where its
            classes do not fit 8 bits.

        Raises:
            ValueError: if it has values that the mapping does not name, or holds no classes.
        """
        raw = self.read_raw(value)
        if self.mapping is None and isinstance(raw, PIL.Image.Image):
            return raw
        labels = label_map_to_tensor(raw, name).numpy()
        if self.mapping is None:
            return _as_image(labels)
        inside = (labels >= self.lowest) & (labels < self.lowest + len(self.table) - 1)
        # the last entry is for all that lies outside
        mapped = self.table[np.where(inside, labels - self.lowest, len(self.table) - 1)]
        unnamed = mapped == self.unnamed
        if unnamed.any():
            values = np.unique(labels[unnamed])
            shown = ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")
            raise ValueError(
                f"{name} holds values that have no class in the label mapping: {shown}. Name them in `label_mapping`, with "
                "null where they do not count; `hf-segmodels check-data` counts them."
            )
        return _as_image(mapped)

    def decode_batch(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """For [`~datasets.Dataset.with_transform`]: reads the column `label`, where it is among those asked for."""
        if "label" not in batch:
            return batch
        return batch | {"label": [self.read(value, name_of(value)) for value in batch["label"]]}

    def decode_row(self, row: dict[str, Any]) -> dict[str, Any]:
        """For [`~datasets.IterableDataset.map`]."""
        return row | {"label": self.read(row["label"], name_of(row["label"]))}


def name_of(value: Any, name: str = "label map") -> str:
    """`name`, with the file that `value` is from where that is known."""
    path = value.get("path") if isinstance(value, Mapping) else None
    return f"{name} ({path})" if path else name


def encode_segments(label: Mapping[str, Any]) -> str:
    """`size (height, width)` and `segments` (see [`~hf_segmodels.data.layouts.read_detail`]) as JSON."""
    return json.dumps(label)


def _as_image(labels: np.ndarray) -> PIL.Image.Image:
    """Of mode "L" where all values fit 8 bits, otherwise "I"."""
    fits_a_byte = labels.size == 0 or (labels.min() >= 0 and labels.max() <= 255)
    return PIL.Image.fromarray(labels.astype(np.uint8 if fits_a_byte else np.int32))


def _decode_segments(text: str) -> np.ndarray:
    """Category of each pixel, `(height, width)`: later segments lie over earlier ones, 0 is where there is none."""
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


def _read_mat(path: str) -> np.ndarray:
    """COCO-Stuff's ids, `(height, width)`."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError("COCO-Stuff's `.mat` files need SciPy: pip install scipy") from error
    return loadmat(path, variable_names=["S"])["S"]


def read_label_mapping(source: Mapping[Any, Any] | str | Path) -> dict[int, int | None]:
    """
    Reads a recipe's `label_mapping`.

    Args:
        source (`Mapping`, `str` or `Path`): Class of each value in the label maps, None (null) for values that do not
            count; or a JSON file of such a mapping.

    Raises:
        ValueError: if it is no mapping of whole numbers.
    """
    where = "`label_mapping`"
    if isinstance(source, str | Path):
        where = f"{source}, the `label_mapping`,"
        try:
            source = json.loads(Path(source).expanduser().read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{where} cannot be read: {error}") from error
    if not isinstance(source, Mapping) or not source:
        raise ValueError(f"{where} must map values of the label maps to classes, such as {{0: null, 1: 0}}.")
    mapping: dict[int, int | None] = {}
    for value, label in source.items():
        try:
            # JSON has no keys but strings
            mapping[int(value)] = None if label is None else int(label)
        except (TypeError, ValueError):
            raise ValueError(
                f"{where} must map whole numbers to whole numbers or null, not {value!r} to {label!r}."
            ) from None
    return mapping


__all__ = ["LabelReader", "encode_segments", "name_of", "open_image", "read_label_mapping"]
