# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Data sets of images and label maps with the `datasets` library (native layouts, folders, parquet and the Hub), and what their files
reveal: the layout, the splits, the classes and their names.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..labels import DATASETS, load_labels
from .label_reader import LabelReader, read_label_mapping
from .layouts import LAYOUTS, Layout, SplitFiles, detect_layouts, find_layout
from .specs import DatasetSpec, LabelSpec, as_dataset_spec


if TYPE_CHECKING:
    import datasets


# Shards of streamed files, which are divided among processes and workers
_MAX_SHARDS = 64


@dataclass
class RawSplit:
    """A split with undecoded rows, for the label checks, [`SegmentationData`] and [`load_segmentation_dataset`]."""

    dataset: DatasetSpec
    split: str
    rows: Any
    """`Dataset` or `IterableDataset` with the columns `image` (`datasets.Image(decode=False)`) and `label` (values for
    [`LabelReader`])."""
    reader: LabelReader
    layout: Layout | None = None
    files: SplitFiles | None = None
    """All files of a native layout, those without a partner included."""


def load_segmentation_dataset(
    dataset: DatasetSpec | str | Path,
    split: str,
    *,
    ignore_index: int = 255,
    process_index: int = 0,
    num_processes: int = 1,
) -> "datasets.Dataset | datasets.IterableDataset":
    """
    Open one split of a data set for semantic segmentation. Rows are decoded on access.

    Args:
        dataset (`DatasetSpec`, `str` or `Path`): The data set, or the source of one that needs no other options.
        split (`str`): Name of the split. In native layouts `train` also finds `training`, and `validation` also `val`.
        ignore_index (`int`, *optional*, defaults to 255): Label of the void values of a mapping.
        process_index, num_processes (`int`, *optional*): The shard to return, and the number of shards. Defaults to the
            whole split.

    Returns:
        `Dataset`, or `IterableDataset` if the data set is streamed: with the columns `image` and `label`, PIL images.
        Labels are classes from 0 on, except in the layout `"ade20k"`: 0 means "other" there, and the image processor
        has to reduce labels (`do_reduce_labels`).

    Raises:
        ImportError: if `datasets` is not installed.
        ValueError: if the layout, the split or a column does not exist, or an image or label map has no partner.

    Example:

    ```python
    >>> from hf_segmodels.data import DatasetSpec, load_segmentation_dataset

    >>> spec = DatasetSpec("ADEChallengeData2016", layout="ade20k")
    >>> dataset = load_segmentation_dataset(spec, "validation")  # doctest: +SKIP
    >>> dataset[0]["label"].size  # doctest: +SKIP
    (683, 512)
    ```
    """
    raw = open_split(as_dataset_spec(dataset), split, ignore_index, num_processes)
    check_partners(raw)
    from datasets import Image
    from datasets.distributed import split_dataset_by_node

    rows = raw.rows
    if num_processes > 1:
        rows = split_dataset_by_node(rows, process_index, num_processes)
    rows = cast_images(rows, ["image"], decode=True)
    if raw.reader.mapping is None and isinstance((rows.features or {}).get("label"), Image):
        return rows.cast_column("label", Image())
    if raw.dataset.streaming:
        return rows.map(raw.reader.decode_row)
    return rows.with_transform(raw.reader.decode_batch)


def open_split(dataset: DatasetSpec, split: str, ignore_index: int = 255, num_processes: int = 1) -> RawSplit:
    """
    Open a split without decoding it, see [`load_segmentation_dataset`]. Images and label maps without a partner are left out
    of the rows.

    Raises:
        ValueError: if the layout, the split or a column does not exist, or no image has a label map.
    """
    datasets = import_datasets()
    mapping = None if dataset.label_mapping is None else read_label_mapping(dataset.label_mapping)
    if dataset.layout is None:
        rows = datasets.load_dataset(str(dataset.source), split=split, streaming=dataset.streaming)
        return RawSplit(dataset, split, _select(rows, dataset), LabelReader(mapping, ignore_index))

    layout = find_layout(dataset.layout, dataset.source)
    split = layout.find_split(split)
    files = layout.files(split)
    rows = _rows_of_files(files, f"{layout.root} ({split})")
    if dataset.streaming:
        # a multiple of the processes, so that no two processes read the same shard
        num_shards = min(len(rows), max(1, _MAX_SHARDS // num_processes) * num_processes)
        rows = rows.to_iterable_dataset(num_shards=num_shards)
    reader = LabelReader(files.mapping if mapping is None else mapping, ignore_index)
    return RawSplit(dataset, split, rows, reader, layout, files)


def check_partners(raw: RawSplit) -> None:
    """Raise a `ValueError` if an image or a label map of a native layout has no partner or several."""
    if raw.files is None or raw.layout is None:
        return
    for what, names in (
        ("images without a label map", raw.files.missing_labels),
        ("label maps without an image", raw.files.missing_images),
        ("names that several files share", raw.files.ambiguous),
    ):
        if names:
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise ValueError(
                f"{raw.layout.root} ({raw.split}) has {len(names)} {what}: {shown}. Each image needs one label map of "
                "the same name; `hf-segmodels check-data --json FILE` lists all of them."
            )


def import_datasets() -> Any:
    """Import the library `datasets`, with advice in the `ImportError` if it is not installed."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError("Reading data sets needs the `datasets` library: pip install datasets") from error
    return datasets


def select_columns(rows: Any, requested: Sequence[str], source: str | Path, advice: str) -> Any:
    """
    The `requested` columns of a `Dataset` or `IterableDataset`. If a column does not exist, the `ValueError` ends with `advice`, in
    which `{}` stands for the existing columns.
    """
    # streamed rows may not know their columns
    columns = rows.column_names or list(next(iter(rows)))
    if missing := [column for column in requested if column not in columns]:
        raise ValueError(f"{source} has no column {missing}: {advice.format(columns)}.")
    return rows.select_columns(requested)


def cast_images(rows: Any, columns: Iterable[str], decode: bool = False) -> Any:
    """`rows` with the images in `columns` decoded on access or not; columns of other types stay."""
    from datasets import Image

    for column in columns:
        if isinstance((rows.features or {}).get(column), Image):
            rows = rows.cast_column(column, Image(decode=decode))
    return rows


def detect_dataset(dataset: DatasetSpec) -> DatasetSpec:
    """
    Add the layout that the files of a data set have, unless `dataset` specifies one. Raises a `ValueError` if the source is neither
    a folder nor the name of a repository, does not have the specified layout, or fits several layouts.
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


def _rows_of_files(files: SplitFiles, name: str) -> "datasets.Dataset":
    """Rows of the files that have partners."""
    from datasets import Dataset, Image

    pairs = [pair for pair in files.pairs if pair.image is not None and pair.label is not None]
    if not pairs:
        raise ValueError(f"There are no images with label maps in {name}.")
    labels = [json.dumps(pair.label) if isinstance(pair.label, dict) else str(pair.label) for pair in pairs]
    rows = Dataset.from_dict({"image": [str(pair.image) for pair in pairs], "label": labels})
    if not isinstance(pairs[0].label, dict):
        rows = rows.cast_column("label", Image(decode=False))
    return rows.cast_column("image", Image(decode=False))


def _select(rows: Any, dataset: DatasetSpec) -> Any:
    """Rows with the two columns of `dataset`, renamed to `image` and `label`, undecoded."""
    from datasets import ClassLabel

    image_column, label_column = dataset.image_column, dataset.label_column
    found = detect_layouts(dataset.source) if Path(dataset.source).is_dir() else []
    hint = f", or `layout` to {' or '.join(found)}" if found else ""
    advice = "set `image_column` and `label_column` to two of {}" + hint
    rows = select_columns(rows, [image_column, label_column], dataset.source, advice)
    # in two steps, since each column may have the target name of the other
    rows = rows.rename_columns({image_column: "_image", label_column: "_label"})
    rows = rows.rename_columns({"_image": "image", "_label": "label"})
    if isinstance((rows.features or {}).get("label"), ClassLabel):
        raise ValueError(
            f"The column {label_column!r} of {dataset.source} has one class for each image, not for each pixel: set "
            f"`label_column` to the column of the label maps{hint}."
        )
    return cast_images(rows, ["image", "label"])
