# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Data sets of images and label maps with the `datasets` library: native layouts, folders, parquet and the Hub."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..labels import DATASETS, load_labels
from .label_reader import LabelReader, encode_segments, read_label_mapping
from .layouts import LAYOUTS, Layout, SplitFiles, detect_layouts, find_layout


if TYPE_CHECKING:
    import datasets


# Shards of streamed files: processes and workers share them
_MAX_SHARDS = 64


@dataclass
class OpenedSplit:
    """A split whose rows are not decoded yet."""

    rows: Any
    """`Dataset` or `IterableDataset` with the columns `image` (`datasets.Image(decode=False)`) and `label` (what [`LabelReader`] takes)."""
    reader: LabelReader
    split: str
    layout: Layout | None = None
    files: SplitFiles | None = None
    """Of a native layout: those without a partner too."""
    is_mapped: bool = False
    """Whether classes are those of a mapping that the caller gave."""

    @property
    def is_streamed(self) -> bool:
        return not hasattr(self.rows, "__len__")


def load_segmentation_dataset(
    source: str | Path,
    split: str,
    layout: str | None = None,
    *,
    image_column: str = "image",
    label_column: str = "label",
    label_mapping: Mapping[int, int | None] | str | None = None,
    ignore_index: int = 255,
    streaming: bool = False,
    process_index: int = 0,
    num_processes: int = 1,
) -> "datasets.Dataset | datasets.IterableDataset":
    """
    Opens one split of a data set for semantic segmentation. Nothing is decoded before it is asked for.

    Args:
        source (`str` or `Path`): The folder of a native layout; otherwise what `datasets.load_dataset` takes: a folder with
            parquet files, or a Hub repository.
        split (`str`): The split's name; in native layouts `train` also finds `training`, `validation` also `val`.
        layout (`str`, *optional*):
            How the files lie: one of [`LAYOUTS`], `"ade20k"`, `"cityscapes"`, `"pascal_context_59"`,
            `"pascal_context_60"`, `"coco_stuff_10k"` or `"folder"` (`images/` and `labels/`). Unset:
            `datasets.load_dataset`.
        image_column, label_column (`str`, *optional*): The columns' names, without a layout.
        label_mapping (`Mapping[int, int | None]` or `str`, *optional*):
            Class of each value in the label maps, None for what does not count, or a JSON file of it. Replaces the
            layout's own.
        ignore_index (`int`, *optional*, defaults to 255): Label of what does not count in a mapping.
        streaming (`bool`, *optional*, defaults to `False`): Whether to give an `IterableDataset`.
        process_index, num_processes (`int`, *optional*): Which share to give, of how many.

    Returns:
        `Dataset` or `IterableDataset`: with the columns `image` and `label`, PIL images. Labels of all layouts but
        `"ade20k"`, where 0 is "other" and the image processor reduces (`do_reduce_labels`), are classes from 0 on.

    Raises:
        ImportError: if `datasets` is not installed.
        ValueError: if there is no such layout, split or column, or an image or label map has no partner.

    Example:

    ```python
    >>> from hf_segmodels.data import load_segmentation_dataset

    >>> dataset = load_segmentation_dataset("ADEChallengeData2016", "validation", layout="ade20k")  # doctest: +SKIP
    >>> dataset[0]["label"].size  # doctest: +SKIP
    (683, 512)
    ```
    """
    import_datasets()
    from datasets import Image
    from datasets.distributed import split_dataset_by_node

    opened = open_split(
        source,
        split,
        layout,
        image_column=image_column,
        label_column=label_column,
        label_mapping=label_mapping,
        ignore_index=ignore_index,
        streaming=streaming,
        num_processes=num_processes,
    )
    check_partners(opened)
    rows = opened.rows
    if num_processes > 1:
        rows = split_dataset_by_node(rows, process_index, num_processes)
    is_image = isinstance((rows.features or {}).get("image"), Image)
    rows = rows.cast_column("image", Image()) if is_image else rows
    if opened.reader.mapping is None and isinstance((rows.features or {}).get("label"), Image):
        return rows.cast_column("label", Image())
    if opened.is_streamed:
        return rows.map(opened.reader.decode_row)
    return rows.with_transform(opened.reader.decode_batch)


def open_split(
    source: str | Path,
    split: str,
    layout: str | None = None,
    *,
    image_column: str = "image",
    label_column: str = "label",
    label_mapping: Mapping[int, int | None] | str | None = None,
    ignore_index: int = 255,
    streaming: bool = False,
    num_processes: int = 1,
) -> OpenedSplit:
    """
    Opens a split as [`load_segmentation_dataset`] does, but leaves its rows as they are. Images and label maps without a
    partner are left out; `files` of the result has them.
    """
    datasets = import_datasets()
    mapping = None if label_mapping is None else read_label_mapping(label_mapping)
    if layout is None:
        rows = datasets.load_dataset(str(source), split=split, streaming=streaming)
        rows = _select(rows, str(source), image_column, label_column)
        return OpenedSplit(rows, LabelReader(mapping, ignore_index), split, is_mapped=mapping is not None)

    native = find_layout(layout, source)
    name = native.find_split(split)
    files = native.files(name)
    rows = _rows_of_files(files, f"{native.root} ({name})")
    if streaming:
        # a multiple of the processes, so that each has shards of its own
        num_shards = min(len(rows), max(1, _MAX_SHARDS // num_processes) * num_processes)
        rows = rows.to_iterable_dataset(num_shards=num_shards)
    reader = LabelReader(files.mapping if mapping is None else mapping, ignore_index)
    return OpenedSplit(rows, reader, name, native, files, mapping is not None)


def check_partners(opened: OpenedSplit) -> None:
    """
    Raises:
        ValueError: if an image or label map of a native layout has no partner, or more than one; names some.
    """
    if opened.files is None:
        return
    for what, names in (
        ("images without a label map", [pair.name for pair in opened.files.pairs if pair.label is None]),
        ("label maps without an image", [pair.name for pair in opened.files.pairs if pair.image is None]),
        ("names that several files have", opened.files.ambiguous),
    ):
        if names:
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            assert opened.layout is not None
            raise ValueError(
                f"{opened.layout.root} ({opened.split}) has {len(names)} {what}: {shown}. Each image needs one label map "
                "of its name; `hf-segmodels check-data --json FILE` lists them all."
            )


def find_id2label(
    source: str | Path, id2label: Mapping[Any, str] | str | Path | None = None, layout: str | None = None
) -> dict[int, str] | None:
    """
    Class names of a data set.

    Args:
        source (`str` or `Path`): The data set.
        id2label (`Mapping`, `str` or `Path`, *optional*): The names, a JSON file of them, or one of
            `hf_segmodels.labels.DATASETS`.
        layout (`str`, *optional*): Its layout.

    Returns:
        `dict[int, str]`: those given; otherwise those in `id2label.json` beside the data, otherwise those of the layout.
        None where nobody says them.

    Raises:
        ValueError: if `id2label` is neither such a name nor a file, or does not name the classes from 0 on.
    """
    if id2label in DATASETS:
        return dict(enumerate(load_labels(str(id2label))[0]))
    if id2label is None:
        beside = Path(source).expanduser() / "id2label.json"
        id2label = beside if beside.is_file() else None
    if id2label is None:
        labels = LAYOUTS[layout].labels if layout in LAYOUTS else None
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


def import_datasets() -> Any:
    """
    The library `datasets`.

    Raises:
        ImportError: if it is not installed; says how to.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError("Reading data sets needs the `datasets` library: pip install datasets") from error
    return datasets


def _rows_of_files(files: SplitFiles, name: str) -> "datasets.Dataset":
    """Rows of the files that have partners."""
    from datasets import Dataset, Image

    pairs = [pair for pair in files.pairs if pair.image is not None and pair.label is not None]
    if not pairs:
        raise ValueError(f"There are no images with label maps in {name}.")
    labels = [encode_segments(pair.label) if isinstance(pair.label, dict) else str(pair.label) for pair in pairs]
    rows = Dataset.from_dict({"image": [str(pair.image) for pair in pairs], "label": labels})
    if not isinstance(pairs[0].label, dict):
        rows = rows.cast_column("label", Image(decode=False))
    return rows.cast_column("image", Image(decode=False))


def _select(rows: Any, source: str, image_column: str, label_column: str) -> Any:
    """The two columns, called `image` and `label`, undecoded."""
    from datasets import ClassLabel, Image

    # streamed rows may not know their columns
    columns = rows.column_names or list(next(iter(rows)))
    missing = {image_column, label_column} - set(columns)
    if missing:
        raise ValueError(
            f"{source} has no column {sorted(missing)}: set `image_column` and `label_column` in the recipe to two of "
            f"{columns}{_layout_hint(source)}."
        )
    rows = rows.select_columns([image_column, label_column])
    # in two steps, since each may have the other's name
    rows = rows.rename_columns({image_column: "_image", label_column: "_label"})
    rows = rows.rename_columns({"_image": "image", "_label": "label"})
    features = rows.features or {}
    if isinstance(features.get("label"), ClassLabel):
        raise ValueError(
            f"The column {label_column!r} of {source} has one class for each image, not for each pixel: set `label_column` "
            f"to that of the label maps{_layout_hint(source)}."
        )
    for column in ("image", "label"):
        if isinstance(features.get(column), Image):
            rows = rows.cast_column(column, Image(decode=False))
    return rows


def _layout_hint(source: str) -> str:
    """For messages: the layout that a folder seems to have."""
    found = detect_layouts(source) if Path(source).is_dir() else []
    return f", or `layout` to {' or '.join(found)}" if found else ""


__all__ = ["OpenedSplit", "check_partners", "find_id2label", "load_segmentation_dataset", "open_split"]
