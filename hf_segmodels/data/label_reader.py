# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Readers for the values of a data set's rows: files, bytes, arrays or run lengths become images and label maps."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from ..image_processing.label_maps import label_map_to_tensor


# Largest difference between two values of a label mapping: the lookup table has an entry for each value between them
_MAX_SPAN = 2**20


def open_image(value: Any) -> PIL.Image.Image:
    """
    Open an image of a row without decoding it: `{"path": ..., "bytes": ...}` as `datasets.Image(decode=False)` gives, a path,
    or an image. Raises an `OSError` if the file does not exist or is not an image.
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
    Reader for label maps. Applies the `mapping` from each value in the files to its class, or to None for void values, which get
    the label `ignore_index`. Without a mapping, the values are the classes.

    Raises:
        ValueError: if the values of `mapping` span more than 2^20.
    """

    def __init__(self, mapping: Mapping[int, int | None] | None = None, ignore_index: int = 255):
        self.mapping: dict[int, int] | None = None
        if mapping is None:
            return
        self.mapping = {value: ignore_index if label is None else label for value, label in mapping.items()}
        self.lowest = min(self.mapping)
        span = max(self.mapping) - self.lowest + 1
        if span > _MAX_SPAN:
            raise ValueError(
                f"The label mapping spans {span} values, starting at {self.lowest}: the limit is {_MAX_SPAN}."
            )
        # a label that no class has, for values outside the mapping
        self.unmapped = min(0, *self.mapping.values()) - 1
        self.table = np.full(span + 1, self.unmapped, dtype=np.int32)
        for value, label in self.mapping.items():
            self.table[value - self.lowest] = label

    def read_raw(self, value: Any) -> PIL.Image.Image | np.ndarray:
        """
        Read a label map without applying the mapping: an image (see [`open_image`]), the path of a COCO-Stuff `.mat` file, `size`
        and `segments` of Pascal in Detail as JSON text, or nested lists or an array of integers.
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
        Read a label map of classes, see [`LabelReader.read_raw`]: the image of the file, without a mapping. With one: an image of
        mode "L", or "I" if the classes exceed 8 bits. `name` appears in error messages.

        Raises:
            ValueError: if the mapping lacks a value of the label map, or the label map does not hold integers.
        """
        raw = self.read_raw(value)
        if self.mapping is None and isinstance(raw, PIL.Image.Image):
            return raw
        labels = label_map_to_tensor(raw, name).numpy()
        if self.mapping is None:
            return _as_image(labels)
        is_inside = (labels >= self.lowest) & (labels < self.lowest + len(self.table) - 1)
        # the last entry of the table is for values outside its range
        mapped = self.table[np.where(is_inside, labels - self.lowest, len(self.table) - 1)]
        is_unmapped = mapped == self.unmapped
        if is_unmapped.any():
            values = np.unique(labels[is_unmapped])
            shown = ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")
            raise ValueError(
                f"{name} holds values that have no class in the label mapping: {shown}. Add them to `label_mapping` "
                "(null for void); `hf-segmodels check-data` counts them."
            )
        return _as_image(mapped)

    def decode_batch(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Transform for [`~datasets.Dataset.with_transform`]. Reads the column `label` if it was requested."""
        if "label" not in batch:
            return batch
        return batch | {"label": [self.read(value, name_of(value)) for value in batch["label"]]}

    def decode_row(self, row: dict[str, Any]) -> dict[str, Any]:
        """Function for [`~datasets.IterableDataset.map`]."""
        return row | {"label": self.read(row["label"], name_of(row["label"]))}


def name_of(value: Any, name: str = "label map") -> str:
    """`name`, followed by the file of `value` if that is known."""
    path = value.get("path") if isinstance(value, Mapping) else None
    return f"{name} ({path})" if path else name


def _as_image(labels: np.ndarray) -> PIL.Image.Image:
    """Image of mode "L" if all values fit 8 bits, otherwise "I"."""
    fits_uint8 = labels.size == 0 or (labels.min() >= 0 and labels.max() <= 255)
    return PIL.Image.fromarray(labels.astype(np.uint8 if fits_uint8 else np.int32))


def _decode_segments(text: str) -> np.ndarray:
    """Decode run lengths, as JSON text, to the category of each pixel, `(height, width)` int32."""
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
    """Ids in a COCO-Stuff file, `(height, width)`."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError("COCO-Stuff's `.mat` files need SciPy: pip install scipy") from error
    return loadmat(path, variable_names=["S"])["S"]


def read_label_mapping(source: Mapping[Any, Any] | str | Path) -> dict[int, int | None]:
    """
    Read the `label_mapping` of a [`~hf_segmodels.data.DatasetSpec`], or a JSON file with one.

    Raises:
        ValueError: if the file cannot be read, or its content does not map integers to integers or null.
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
            # the keys of JSON objects are strings
            mapping[int(value)] = None if label is None else int(label)
        except (TypeError, ValueError):
            raise ValueError(f"{where} must map integers to integers or null, not {value!r} to {label!r}.") from None
    return mapping
