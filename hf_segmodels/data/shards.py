# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""The images of a data set in shards, so that processes can share them: folders, native layouts, parquet and the Hub."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from .layouts import IMAGE_SUFFIXES, detect_layouts, find_layout, image_files
from .loading import import_datasets


# Single files that can be a data set, and what `datasets` calls their format
_FORMATS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
# Files that make a folder more than one of images
_TABLES = (*(f"*{suffix}" for suffix in _FORMATS), "metadata.csv", "metadata.jsonl")


@dataclass
class ImageRow:
    """An image of a data set, not decoded yet."""

    name: str | None
    """Its file's name, where that is known."""
    image: Any
    """What [`~hf_segmodels.data.label_reader.open_image`] takes, or the file's bytes."""
    kept: dict[str, Any] = field(default_factory=dict)
    """Other columns."""


@dataclass(frozen=True)
class ImageShard:
    """A part of a data set. `read` opens it anew each time and gives its rows one after another."""

    name: str
    read: Callable[[], Iterator[ImageRow]]
    num_images: int | None = None
    """None where that is only known once it is read."""


@dataclass
class ImageShards:
    """A split of a data set."""

    shards: list[ImageShard]
    fingerprint: str
    """Differs where a file was added, removed or changed, or the shards are others."""
    split: str | None = None
    kept_features: dict[str, Any] = field(default_factory=dict)
    """Features, as of `datasets`, of the columns that are kept."""


def open_image_shards(
    source: str | Path,
    split: str | None = None,
    layout: str | None = None,
    *,
    image_column: str = "image",
    keep_columns: Sequence[str] = (),
    shard_size: int = 500,
    output: Path | None = None,
) -> ImageShards:
    """
    Opens the images of a data set; label maps are not needed. Nothing is read before it is asked for, and rows are
    streamed. Shards and their order only depend on the data.

    Args:
        source (`str` or `Path`): A folder of images (those in folders inside it count, too), the folder of a native layout,
            or what `datasets.load_dataset` takes: a folder with parquet files, a Hub repository; or one parquet file.
        split (`str`, *optional*): The split; may be left out where there is only one. Of a folder of images: a folder in
            it.
        layout (`str`, *optional*): How the files lie, see [`load_segmentation_dataset`].
        image_column (`str`, *optional*, defaults to `"image"`): The images' column; that of files is always `"image"`.
        keep_columns (`Sequence[str]`, *optional*): Other columns to give, or the images' own.
        shard_size (`int`, *optional*, defaults to 500): Image files are cut into shards of this size, in the order of
            their names. Otherwise each file of the data set is a shard.
        output (`Path`, *optional*): A folder for results; images in it do not count.

    Raises:
        ImportError: if `datasets` is needed and not installed.
        ValueError: if there is no such layout, split or column, no image, or the column holds something else.
        OSError: if there is no such data set.
    """
    root = Path(source).expanduser()
    if layout is not None:
        native = find_layout(layout, root)
        split = native.find_split(split or _only_split(native.splits(), str(source)))
        images = [pair.image for pair in native.files(split).pairs if pair.image is not None]
        return _cut_files(images, native.root, split, keep_columns, shard_size)
    if root.is_dir() and not any(next(root.rglob(pattern), None) for pattern in _TABLES):
        if found := detect_layouts(root):
            raise ValueError(
                f"{source} looks like a data set with label maps: add --layout {' or '.join(found)}, or give the folder "
                "that has nothing but the images."
            )
        folder = root / (split or "")
        if output is not None and output.resolve() == folder.resolve():
            raise ValueError(f"The output folder {output} is that of the images: choose another.")
        images = [path for _, path in image_files(folder)]
        if output is not None and _is_in(output, folder):
            images = [path for path in images if not _is_in(path, output)]
        if not images:
            raise ValueError(f"There are no images in the folder {folder}, and no parquet files.")
        return _cut_files(images, root, split, keep_columns, shard_size)
    if root.is_dir() and output is not None and _is_in(output, root):
        raise ValueError(
            f"The output folder {output} is in that of the data, and would be read as data: choose another."
        )
    return _open_tables(str(source), root, split, image_column, keep_columns, shard_size)


def _is_in(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _only_split(splits: Sequence[str], source: str) -> str:
    if len(splits) != 1:
        raise ValueError(f"{source} has the splits {', '.join(splits) or 'none'}: choose one with --split.")
    return splits[0]


def _cut_files(
    images: Sequence[Path], root: Path, split: str | None, keep_columns: Sequence[str], shard_size: int
) -> ImageShards:
    """Shards of image files, which are named by their place in `root`."""
    named = sorted((path.relative_to(root).as_posix(), str(path)) for path in images)
    return _shards_of_files(named, [_state(Path(path)) for _, path in named], split, keep_columns, shard_size)


def _state(path: Path) -> tuple[int, int] | None:
    """Changes with the file."""
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
    """Shards of image files: names, with paths or URLs, and what changes with each file."""
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
    names = [name for name, _ in named]
    fingerprint = _digest([names, list(states), shard_size])
    kept_features = dict.fromkeys(keep_columns, import_datasets().Image(decode=False)) if keep_columns else {}
    return ImageShards(shards, fingerprint, split, kept_features)


def _open_tables(
    source: str, path: Path, split: str | None, image_column: str, keep_columns: Sequence[str], shard_size: int
) -> ImageShards:
    """What the library `datasets` reads."""
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
    states = [[*metadata, _state(Path(file))] for file, metadata in zip(data_files, _metadata(data_files), strict=True)]
    names = [_place(file, path) for file in data_files]
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
                yield ImageRow(_name_of_image(value, path), value, kept)

        return ImageShard(shard_names[index], read)

    fingerprint = _digest([names, states, builder.hash if not names else None, num_shards, image_column])
    return ImageShards([shard(index) for index in range(num_shards)], fingerprint, split, kept_features)


def _metadata(files: Any) -> Sequence[Sequence[Any]]:
    """Of each file in a `DataFilesList` the ETag, or the repository's commit; the time of local ones is in `_state`."""
    # a filtered list keeps the metadata of all its files
    known = getattr(files, "origin_metadata", ())
    return known if len(known) == len(files) and any("://" in file for file in files) else [()] * len(files)


def _name_of_image(value: Any, root: Path) -> str | None:
    name = value.get("path") if isinstance(value, Mapping) else value
    if not isinstance(name, str):
        return None
    return _place(name, root) if "://" in name or Path(name).is_absolute() else name


def _place(file: str, root: Path) -> str:
    """A file's place in the data set's folder or repository."""
    if "://" not in file:
        return Path(file).relative_to(root.resolve()).as_posix() if _is_in(Path(file), root) else Path(file).name
    # hf://datasets/user/name@commit/place
    return file.partition("@")[2].partition("/")[2] or file.rpartition("/")[2]


def _select(rows: Any, source: str, image_column: str, keep_columns: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """Rows with the columns that are asked for, of which images are not decoded; and the features of the kept ones."""
    from datasets import Features, Image

    # streamed rows may not know their columns
    columns = rows.column_names or list(next(iter(rows)))
    images = [column for column, feature in (rows.features or {}).items() if isinstance(feature, Image)]
    wanted = list(dict.fromkeys([image_column, *keep_columns]))
    if missing := [column for column in wanted if column not in columns]:
        raise ValueError(
            f"{source} has no column {missing}: set --image-column and --keep-columns to some of {columns}."
        )
    rows = rows.select_columns(wanted)
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
    for column in wanted:
        if rows.features and isinstance(features[column], Image):
            rows = rows.cast_column(column, Image(decode=False))
    return rows, {column: features[column] for column in keep_columns}


def _can_hold_images(feature: Any) -> bool:
    from datasets import Image, Value

    if isinstance(feature, Value):
        return feature.dtype in ("string", "large_string", "binary", "large_binary")
    return isinstance(feature, Image) or (isinstance(feature, Mapping) and "bytes" in feature)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


__all__ = ["ImageRow", "ImageShard", "ImageShards", "open_image_shards"]
