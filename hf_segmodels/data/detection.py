# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Properties of a data set that its files reveal: the layout, the splits, the classes and their names."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..labels import DATASETS, load_labels
from .layouts import LAYOUTS, detect_layouts, find_layout
from .loading import import_datasets
from .specs import DatasetSpec, LabelSpec, as_dataset_spec


def detect_dataset(dataset: DatasetSpec) -> DatasetSpec:
    """
    Add the layout that the files of a data set have, unless `dataset` specifies one.

    Raises:
        ValueError: if the source is neither a folder nor the name of a repository, does not have the specified layout,
            or fits several layouts.
    """
    source = str(dataset.source)
    is_folder = Path(source).expanduser().is_dir()
    if not is_folder and (dataset.layout or source.count("/") != 1 or source.startswith((".", "/", "~"))):
        raise ValueError(f"there is no folder {source}: give a recipe (.yaml), a folder, or a repository OWNER/NAME.")
    if dataset.layout is not None:
        find_layout(dataset.layout, source)
    if dataset.layout is not None or not is_folder:
        return dataset
    layouts = detect_layouts(source)
    if len(layouts) > 1:
        raise ValueError(f"{source} can be read as {' or '.join(layouts)}: choose one with --layout.")
    return replace(dataset, layout=layouts[0] if layouts else None)


def detect_labels(dataset: DatasetSpec, num_labels: int | None = None, **options: Any) -> LabelSpec:
    """
    The labels of a data set as its files and its layout define them. `num_labels` defaults to the number of class names, and
    `options` are fields of [`LabelSpec`] that replace the detected ones.

    Raises:
        ValueError: if the number of classes is neither given nor known from class names.
    """
    id2label = find_id2label(dataset)
    if num_labels is None:
        if id2label is None:
            raise ValueError(
                f"the number of classes of {dataset.source} is unknown: pass --num-labels, or put the class names into "
                "its id2label.json."
            )
        num_labels = len(id2label)
    elif id2label and len(id2label) != num_labels:
        id2label = None
    if dataset.layout and dataset.label_mapping is None:
        options = {"do_reduce_labels": LAYOUTS[dataset.layout].do_reduce_labels} | options
    return LabelSpec(num_labels, id2label, **options)


def find_splits(dataset: DatasetSpec) -> list[str]:
    """Names of all splits of a data set."""
    if dataset.layout:
        return find_layout(dataset.layout, dataset.source).splits()
    return import_datasets().get_dataset_split_names(str(dataset.source))


def find_id2label(
    dataset: DatasetSpec | str | Path, id2label: Mapping[Any, str] | str | Path | None = None
) -> dict[int, str] | None:
    """
    Find the class names of a data set.

    Args:
        dataset (`DatasetSpec`, `str` or `Path`): The data set.
        id2label (`Mapping`, `str` or `Path`, *optional*):
            The names, a JSON file with them, or one of `hf_segmodels.labels.DATASETS`. Defaults to `id2label.json` in
            the folder of the data set, otherwise to the names of the layout.

    Returns:
        `dict[int, str]`: The names, or None if they are unknown.

    Raises:
        ValueError: if `id2label` is neither a data set of [`hf_segmodels.labels`] nor a readable JSON file, or does not
            name the classes from 0 on.
    """
    dataset = as_dataset_spec(dataset)
    if id2label in DATASETS:
        return dict(enumerate(load_labels(str(id2label))[0]))
    if id2label is None:
        id2label = Path(dataset.source).expanduser() / "id2label.json"
        if not id2label.is_file():
            labels = LAYOUTS[dataset.layout].labels if dataset.layout in LAYOUTS else None
            return dict(enumerate(load_labels(labels)[0])) if labels else None
    names: Any = id2label
    where = "`id2label`"
    if isinstance(id2label, str | Path):
        path = Path(id2label).expanduser()
        if not path.is_file():
            raise ValueError(f"`id2label` is {str(id2label)!r}: neither a JSON file nor one of {', '.join(DATASETS)}.")
        where = f"{id2label}, the class names,"
        try:
            names = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{where} cannot be read: {error}") from error
    found = {str(index): name for index, name in names.items()} if isinstance(names, Mapping) else {}
    if not found or found.keys() != set(map(str, range(len(found)))):
        raise ValueError(f"{where} must name the classes from 0 on, such as {{0: 'road', 1: 'sky'}}.")
    return {index: found[str(index)] for index in range(len(found))}
