# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""The images of a data set in shards, which several processes divide: folders, native layouts, parquet and the Hub."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from .layouts import IMAGE_SUFFIXES, detect_layouts, find_layout, image_files
from .loading import cast_images, import_datasets, select_columns
from .specs import DatasetSpec, as_dataset_spec


# Single files that can be a data set, and the names of their formats in `datasets`
_FORMATS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
# Files that a folder of nothing but images does not have
_TABLES = (*(f"*{suffix}" for suffix in _FORMATS), "metadata.csv", "metadata.jsonl")


@dataclass
class ImageRow:
    """An undecoded image of a data set."""

    name: str | None
    """File name, if known."""
    image: Any
    """A value for [`~hf_segmodels.data.label_reader.open_image`], or the bytes of the file."""
    kept: dict[str, Any] = field(default_factory=dict)
    """Other columns."""


@dataclass(frozen=True)
class ImageShard:
    """A part of a data set. Each call of `read` opens it again and yields its rows."""

    name: str
    read: Callable[[], Iterator[ImageRow]]
    num_images: int | None = None
    """None if the number is unknown before the shard is read."""


@dataclass
class ImageShards:
    """The shards of a split."""

    shards: list[ImageShard]
    fingerprint: str
    """Changes if a file is added, removed or modified, or if the shards are divided in another way."""
    split: str | None = None
    kept_features: dict[str, Any] = field(default_factory=dict)
    """`datasets` features of the kept columns."""


def open_image_shards(
    dataset: DatasetSpec | str | Path,
    split: str | None = None,
    *,
    keep_columns: Sequence[str] = (),
    shard_size: int = 500,
    output: Path | None = None,
) -> ImageShards:
    """
    Open the images of a data set without reading them. Shards and their order depend only on the data.

    Args:
        dataset (`DatasetSpec`, `str` or `Path`): The data set, or its source: a folder of images (subfolders included),
            the folder of a native layout, a parquet file, or anything else that `datasets.load_dataset` takes. Label
            maps are not needed. Image files have the single column `"image"`.
        split (`str`, *optional*): Name of the split; a subfolder in a folder of images. Defaults to the only split.
        keep_columns (`Sequence[str]`, *optional*): Columns to include in the rows, besides the image.
        shard_size (`int`, *optional*, defaults to 500): Number of images in a shard of image files. Other files are a
            shard each.
        output (`Path`, *optional*): Folder for results. Images in it are skipped.

    Raises:
        ImportError: if `datasets` is needed and not installed.
        ValueError: if the layout, split or column does not exist, there are no images, the column does not hold images,
            or `output` would be read as data.
        OSError: if the data set does not exist.
    """
    dataset = as_dataset_spec(dataset)
    source, root = str(dataset.source), Path(dataset.source).expanduser()
    if dataset.layout is not None:
        layout = find_layout(dataset.layout, root)
        split = layout.find_split(split or _only_split(layout.splits(), source))
        root, images = layout.root, [pair.image for pair in layout.files(split).pairs if pair.image is not None]
    elif root.is_dir() and not any(next(root.rglob(pattern), None) for pattern in _TABLES):
        if found := detect_layouts(root):
            raise ValueError(
                f"{source} looks like a data set with label maps: add --layout {' or '.join(found)}, or give the "
                "folder that holds only the images."
            )
        folder = root / (split or "")
        if output is not None and output.resolve() == folder.resolve():
            raise ValueError(f"The output folder {output} is the folder of the images: choose another.")
        images = [path for _, path in image_files(folder)]
        if output is not None and _is_in(output, folder):
            images = [path for path in images if not _is_in(path, output)]
        if not images:
            raise ValueError(f"There are no images and no parquet files in the folder {folder}.")
    else:
        if root.is_dir() and output is not None and _is_in(output, root):
            raise ValueError(
                f"The output folder {output} is in the folder of the data and would be read as data: choose another."
            )
        return _open_tables(source, root, split, dataset.image_column, keep_columns, shard_size)
    named = sorted((path.relative_to(root).as_posix(), str(path)) for path in images)
    return _shards_of_files(named, [_file_state(Path(path)) for _, path in named], split, keep_columns, shard_size)


def _is_in(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _only_split(splits: Sequence[str], source: str) -> str:
    if len(splits) != 1:
        raise ValueError(f"{source} has the splits {', '.join(splits) or 'none'}: choose one with --split.")
    return splits[0]


def _file_state(path: Path) -> tuple[int, int] | None:
    """Size and modification time, None for remote files."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_size, state.st_mtime_ns


def _shards_of_files(
    named: Sequence[tuple[str, str]],
    states: Sequence[Any],
    split: str | None,
    keep_columns: Sequence[str],
    shard_size: int,
) -> ImageShards:
    """Shards of image files, given as names with paths or URLs. The state of a file changes with its content."""
    if unknown := set(keep_columns) - {"image"}:
        raise ValueError(f"There is no column {sorted(unknown)}: image files only have the column 'image'.")

    def shard(files: Sequence[tuple[str, str]]) -> ImageShard:
        def read() -> Iterator[ImageRow]:
            for name, path in files:
                value = {"path": path, "bytes": None}
                yield ImageRow(name, value, dict.fromkeys(keep_columns, value))

        name = files[0][0] if len(files) == 1 else f"{files[0][0]} to {files[-1][0]}"
        return ImageShard(name, read, len(files))

    shards = [shard(named[start : start + shard_size]) for start in range(0, len(named), shard_size)]
    fingerprint = _digest([[name for name, _ in named], list(states), shard_size])
    kept_features = dict.fromkeys(keep_columns, import_datasets().Image(decode=False)) if keep_columns else {}
    return ImageShards(shards, fingerprint, split, kept_features)


def _open_tables(
    source: str, path: Path, split: str | None, image_column: str, keep_columns: Sequence[str], shard_size: int
) -> ImageShards:
    """Shards of a data set that the library `datasets` reads."""
    datasets = import_datasets()
    if path.is_file():
        if path.suffix not in _FORMATS:
            raise ValueError(f"{source} is a file: give a folder, the name of a repository, or a .parquet file.")
        builder = datasets.load_dataset_builder(_FORMATS[path.suffix], data_files=str(path))
    elif not path.is_dir() and (source.startswith((".", "/", "~")) or source.count("/") > 1):
        raise ValueError(f"There is no folder {source}: give one, or the name of a repository.")
    else:
        builder = datasets.load_dataset_builder(str(path) if path.is_dir() else source)
    streams = builder.as_streaming_dataset()
    if split is None:
        split = _only_split([str(name) for name in streams], source)
    elif split not in streams:
        raise ValueError(f"{source} has no split {split!r}: choose one of {', '.join(map(str, streams))}.")

    data_files = {str(name): files for name, files in (builder.config.data_files or {}).items()}.get(split, [])
    # ETag or commit of each remote file; a filtered list keeps the metadata of all its files
    metadata = getattr(data_files, "origin_metadata", ())
    has_metadata = len(metadata) == len(data_files) and any("://" in file for file in data_files)
    states = [
        [*(metadata[index] if has_metadata else ()), _file_state(Path(file))] for index, file in enumerate(data_files)
    ]
    names = [_relative_name(file, path) for file in data_files]
    if names and all(PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES for name in names):
        in_order = sorted(zip(names, data_files, states, strict=True), key=lambda item: item[:2])
        named = [(name, file) for name, file, _ in in_order]
        return _shards_of_files(named, [state for *_, state in in_order], split, keep_columns, shard_size)

    rows, kept_features = _select(streams[split], source, image_column, keep_columns)
    num_shards = rows.num_shards
    shard_names = names if len(names) == num_shards else [f"part {i + 1} of {num_shards}" for i in range(num_shards)]

    def shard(index: int) -> ImageShard:
        def read() -> Iterator[ImageRow]:
            for row in rows.shard(num_shards=num_shards, index=index):
                value = row[image_column]
                kept = {column: row[column] for column in keep_columns}
                yield ImageRow(_image_name(value, path), value, kept)

        return ImageShard(shard_names[index], read)

    fingerprint = _digest([names, states, builder.hash if not names else None, num_shards, image_column])
    return ImageShards([shard(index) for index in range(num_shards)], fingerprint, split, kept_features)


def _image_name(value: Any, root: Path) -> str | None:
    name = value.get("path") if isinstance(value, Mapping) else value
    if not isinstance(name, str):
        return None
    return _relative_name(name, root) if "://" in name or Path(name).is_absolute() else name


def _relative_name(file: str, root: Path) -> str:
    """Path of a file in the folder or repository of the data set."""
    if "://" not in file:
        return Path(file).relative_to(root.resolve()).as_posix() if _is_in(Path(file), root) else Path(file).name
    # hf://datasets/user/name@commit/path
    return file.partition("@")[2].partition("/")[2] or file.rpartition("/")[2]


def _select(rows: Any, source: str, image_column: str, keep_columns: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """Rows with the requested columns, images undecoded, and the features of the kept columns."""
    from datasets import Features, Image

    images = [column for column, feature in (rows.features or {}).items() if isinstance(feature, Image)]
    requested = list(dict.fromkeys([image_column, *keep_columns]))
    rows = select_columns(rows, requested, source, "set --image-column and --keep-columns to some of {}")
    features = rows.features
    if features is None and keep_columns:
        import pyarrow  # type: ignore[import-untyped]

        features = Features.from_arrow_schema(pyarrow.Table.from_pylist(list(rows.take(100))).schema)
    features = features or {}
    if image_column in features and not _can_hold_images(features[image_column]):
        raise ValueError(
            f"The column {image_column!r} of {source} holds {features[image_column]}, not images: set --image-column"
            f"{f' to {images[0]}' if images else ''}."
        )
    return cast_images(rows, requested), {column: features[column] for column in keep_columns}


def _can_hold_images(feature: Any) -> bool:
    from datasets import Image, Value

    if isinstance(feature, Value):
        return feature.dtype in ("string", "large_string", "binary", "large_binary")
    return isinstance(feature, Image) or (isinstance(feature, Mapping) and "bytes" in feature)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
