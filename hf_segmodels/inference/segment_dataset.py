# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Segment a data set shard by shard, with one or more processes."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..data.label_reader import open_image
from ..data.shards import ImageRow, ImageShards, open_image_shards
from ..data.specs import DatasetSpec
from ..image_processing import to_rgb
from ..utils.errors import UserError, first_line
from ..visualization import ClassShare, class_shares, label_image, palette_for
from .predictor import Predictor, describe_failure, load_predictor
from .shard_writer import COLUMNS, FORMATS, DatasetResults, RowResult, png_bytes, summarize


logger = logging.getLogger(__name__)

# Number of batches that an image of a rare size waits for other images of its size.
_LOOK_AHEAD = 8


@dataclass
class SegmentedDataset:
    """Result of [`segment_dataset`] in one process."""

    num_new_shards: int
    """Shards that this call segmented."""
    num_skipped_shards: int
    """Shards of this process that were complete."""
    process_index: int
    num_processes: int
    summary: dict[str, Any] | None
    """Contents of `summary.json`; `None` if another process writes it."""

    @property
    def totals(self) -> list[ClassShare]:
        """Classes in the data set, largest first."""
        classes = self.summary["classes"] if self.summary else ()
        return [ClassShare(item["index"], item["name"], item["pixels"], item["share"]) for item in classes]


def segment_dataset(
    dataset: str,
    model: str,
    output: Path,
    *,
    split: str | None = None,
    layout: str | None = None,
    image_column: str = "image",
    keep_columns: Sequence[str] = (),
    format: str = "parquet",
    shard_size: int = 500,
    batch_size: int = 1,
    num_workers: int = 0,
    overwrite: bool = False,
    device: str | None = None,
    dtype: str = "float32",
    **options: Any,
) -> SegmentedDataset:
    """
    Segment the images of a data set, shard by shard. Writes label maps and class shares.

    A shard's results appear once the shard is complete. A later call with the same model, data and options segments the
    missing shards. With several processes (`RANK` and `WORLD_SIZE` in the environment, as set by `torchrun` and `accelerate
    launch`), each process segments every n-th shard. Processes share only the output folder. Images that cannot be read or
    segmented are skipped and reported.

    Args:
        dataset (`str`), layout, image_column: See [`~hf_segmodels.data.DatasetSpec`].
        split, shard_size: See [`~hf_segmodels.data.shards.open_image_shards`].
        model (`str`): Folder of a model, or name of a repository on the Hub.
        output (`Path`): Folder for the results.
        keep_columns (`Sequence[str]`, *optional*): Columns of the data to copy to the results; `image` for the images.
        format (`str`, *optional*, defaults to `"parquet"`): `"parquet"` writes a file per shard, whose label maps
            `datasets` reads as images. `"png"` writes a folder of label maps per shard.
        batch_size (`int`, *optional*, defaults to 1): Maximum number of images per batch. Only images of the same size
            after preprocessing are batched.
        num_workers (`int`, *optional*, defaults to 0): Worker processes that decode and preprocess, for each process.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to replace earlier results.
        device (`str`, *optional*): Device of the model. Defaults to the GPU of this process if there is one, otherwise the
            CPU.
        dtype, options: See [`~hf_segmodels.inference.predictor.load_predictor`].

    Returns:
        [`SegmentedDataset`]: What this process did, with the summary if it was the last one to finish.

    Raises:
        UserError: if data, model, options or output folder cannot be used, or if `output` contains results of another
            model, of other data, or with other options.
    """
    process_index, num_processes = _find_process()
    if format not in FORMATS:
        raise UserError(f"`format` is {format!r}: choose one of {', '.join(FORMATS)}.")
    if taken := [column for column in keep_columns if column in COLUMNS]:
        raise UserError(f"the results have a column {taken[0]!r} of their own: remove it from --keep-columns.")
    data = _open_data(DatasetSpec(dataset, layout, image_column), split, keep_columns, shard_size, output, format)
    predictor = load_predictor(model, device=device or _local_device(), dtype=dtype, **options)
    manifest = {
        "model": model,
        "model_fingerprint": _fingerprint(predictor),
        "dataset": dataset,
        "split": data.split,
        "data_fingerprint": data.fingerprint,
        "shards": len(data.shards),
        "format": format,
        "keep_columns": list(keep_columns),
        "options": {"dtype": dtype, **options},
    }
    palette = palette_for(predictor.model.config)
    results = DatasetResults(output, manifest, len(data.shards), palette, predictor.id2label, data.kept_features)
    results.open(overwrite, process_index, num_processes)
    if process_index == 0 and len(data.shards) < num_processes:
        logger.warning(
            f"{len(data.shards)} shards are too few for {num_processes} processes, some of which have nothing to do: choose a "
            "smaller --shard-size or fewer processes."
        )
    shards = range(process_index, len(data.shards), num_processes)
    try:
        todo = [index for index in shards if not results.is_complete(index)]
        _segment_shards(todo, data, predictor, results, batch_size, num_workers, show_progress=process_index == 0)
        # The process that finishes last writes the summary. Without new results, the first process returns it.
        records = results.records()
        summary = None if records is None else summarize(records)
        if summary is not None and not (results.write_summary(summary) if todo else process_index == 0):
            summary = None
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error.strerror or error}.") from error
    return SegmentedDataset(len(todo), len(shards) - len(todo), process_index, num_processes, summary)


def _find_process() -> tuple[int, int]:
    """Index of this process, and number of processes."""
    rank, world_size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and world_size.isdecimal() and int(rank) < int(world_size)):
        raise UserError(
            f"RANK is {rank!r} and WORLD_SIZE is {world_size!r} in the environment: set them to the index of this process, "
            "from 0 on, and to the number of processes, or unset both."
        )
    return int(rank), int(world_size)


def _local_device() -> str | None:
    """GPU of this process on its machine; `None` without CUDA."""
    if not torch.cuda.is_available():
        return None
    return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"


def _open_data(
    dataset: DatasetSpec,
    split: str | None,
    keep_columns: Sequence[str],
    shard_size: int,
    output: Path,
    format: str,
) -> ImageShards:
    try:
        data = open_image_shards(dataset, split, keep_columns=keep_columns, shard_size=shard_size, output=output)
        if format == "parquet":
            import datasets  # noqa: F401
    except ImportError as error:
        raise UserError(f"this needs {error.name}: pip install 'hf_segmodels[train]'.") from error
    except (ValueError, OSError) as error:
        raise UserError(f"cannot read {dataset.source}: {first_line(error)}") from error
    if format == "png":
        for name, feature in data.kept_features.items():
            if any(kind in str(feature) for kind in ("Image(", "Audio(", "Video(", "binary")):
                raise UserError(
                    f"--format png does not support the column {name!r}, which contains files: use --format parquet."
                )
    return data


def _fingerprint(predictor: Predictor) -> str:
    """Hash of weights, configuration and image processor. Independent of where they were loaded from."""
    digest = hashlib.sha256()
    for settings in (predictor.model.config.to_dict(), predictor.image_processor.to_dict()):
        about_versions = ("_name_or_path", "_commit_hash", "transformers_version")
        kept = {name: value for name, value in settings.items() if name not in about_versions}
        digest.update(json.dumps(kept, sort_keys=True, default=str).encode())
    for name, tensor in sorted(predictor.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class _Unreadable(Exception):
    """Some rows of a shard cannot be read."""


def _segment_shards(
    indices: Sequence[int],
    data: ImageShards,
    predictor: Predictor,
    results: DatasetResults,
    batch_size: int,
    num_workers: int,
    show_progress: bool,
) -> None:
    numbers = [data.shards[index].num_images for index in indices]
    total = None if None in numbers else sum(number or 0 for number in numbers)
    with tqdm(total=total, desc="segment", unit="image", disable=None if show_progress else True) as bar:
        for number, index in enumerate(indices, 1):
            bar.set_postfix_str(f"shard {number} of {len(indices)}")
            shard = data.shards[index]
            try:
                with results.writing(index, shard.name) as shard_results:
                    for image in segment_rows(_checked(shard.read), predictor, batch_size, num_workers):
                        shard_results.write(image)
                        bar.update()
            except _Unreadable as error:
                results.write_record(index, {"shard": shard.name, "error": first_line(error)})


def _checked(read: Any) -> Iterator[ImageRow]:
    """Rows of a shard. Errors while reading become [`_Unreadable`], to distinguish them from errors while writing."""
    try:
        yield from read()
    except Exception as error:  # files, decoders and networks raise any exception
        raise _Unreadable(first_line(error)) from error


@dataclass
class _PreparedImage:
    """A row with its model inputs, or with the error that it caused."""

    index: int
    row: ImageRow
    size: tuple[int, int] = (0, 0)
    """`(height, width)` of the image."""
    inputs: dict[str, torch.Tensor] | None = None
    error: str | None = None

    @property
    def shapes(self) -> tuple[Any, ...]:
        """Shapes of the inputs. Images with the same shapes can share a batch."""
        assert self.inputs is not None
        return tuple((name, tuple(tensor.shape)) for name, tensor in sorted(self.inputs.items()))


class _Preparation(torch.utils.data.Dataset):
    """Decodes and preprocesses in workers. Its items are requested by `(index, row)`, which the sampler provides."""

    def __init__(self, predictor: Predictor):
        # The model must not be copied to the workers.
        self.prepare = Predictor(None, predictor.image_processor).prepare

    def __getitem__(self, numbered_row: tuple[int, ImageRow]) -> _PreparedImage:
        index, row = numbered_row
        prepared = _PreparedImage(index, replace(row, image=None))
        try:
            image = _decode(row.image)
            prepared.size = image.height, image.width
            prepared.inputs = self.prepare(image)
        except Exception as error:  # decoders raise any exception for damaged files
            prepared.error = first_line(error)
        return prepared


def _decode(value: Any) -> PIL.Image.Image:
    """Decode the image of a row to RGB, rotated upright by its EXIF orientation."""
    if isinstance(value, np.ndarray):
        return to_rgb(PIL.Image.fromarray(value))
    if isinstance(value, bytes):
        value = {"bytes": value, "path": None}
    with open_image(value) as image:
        return to_rgb(PIL.ImageOps.exif_transpose(image))


def segment_rows(
    rows: Iterable[ImageRow], predictor: Predictor, batch_size: int = 1, num_workers: int = 0
) -> Iterator[RowResult]:
    """
    Segment images of any sizes. Images of the same size after preprocessing are batched.

    Args:
        rows (`Iterable[ImageRow]`): The images. Few rows are read ahead of the results, so that streams are supported.
        predictor (`Predictor`): The model.
        batch_size (`int`, *optional*, defaults to 1): Maximum number of images per batch.
        num_workers (`int`, *optional*, defaults to 0): Worker processes that decode and preprocess.

    Returns:
        `Iterator[RowResult]`: Result of each row, in order.
    """
    if predictor.is_batch_dependent:
        batch_size = 1
    loader = DataLoader(_Preparation(predictor), sampler=enumerate(rows), batch_size=None, num_workers=num_workers)
    waiting: dict[tuple[Any, ...], list[_PreparedImage]] = {}  # by shapes, longest waiting first
    done: dict[int, RowResult] = {}
    next_index = 0

    def run(shapes: tuple[Any, ...]) -> None:
        for image in _segment_batch(waiting.pop(shapes), predictor):
            done[image.index] = image

    for item in loader:
        if item.inputs is None:
            done[item.index] = RowResult(item.index, item.row.name, error=item.error)
        else:
            group = waiting.setdefault(item.shapes, [])
            group.append(item)
            if len(group) == batch_size:
                run(item.shapes)
        if waiting:
            longest = next(iter(waiting))
            if item.index - waiting[longest][0].index >= _LOOK_AHEAD * batch_size:
                run(longest)
        while next_index in done:
            yield done.pop(next_index)
            next_index += 1
    for shapes in list(waiting):
        run(shapes)
    yield from (done[index] for index in sorted(done))


def _segment_batch(items: Sequence[_PreparedImage], predictor: Predictor) -> list[RowResult]:
    try:
        label_maps = predictor.predict([item.inputs or {} for item in items], [item.size for item in items])
    except torch.AcceleratorError:
        raise  # such as a lost GPU: all following images would fail
    except (ValueError, RuntimeError) as error:
        message = describe_failure(error)
    else:
        return [
            RowResult(item.index, item.row.name, item.row.kept, label_map)
            for item, label_map in zip(items, label_maps, strict=True)
        ]
    if len(items) > 1:
        return [image for item in items for image in _segment_batch([item], predictor)]
    return [RowResult(items[0].index, items[0].row.name, error=message)]


class BatchSegmenter:
    """
    Callable that segments batches of rows, for systems that distribute batches, such as Ray Data's `map_batches`.

    Args:
        model (`str`): See [`segment_dataset`].
        image_column (`str`, *optional*, defaults to `"image"`): Column of the images.
        batch_size (`int`, *optional*, defaults to 1): Maximum number of images per batch.
        options: See [`~hf_segmodels.inference.predictor.load_predictor`].

    Example:

    ```python
    >>> dataset.map_batches(  # doctest: +SKIP
    ...     BatchSegmenter, fn_constructor_kwargs={"model": "path/to/model"}, batch_size=32, concurrency=4, num_gpus=1
    ... )
    ```
    """

    def __init__(self, model: str, *, image_column: str = "image", batch_size: int = 1, **options: Any):
        self.predictor = load_predictor(model, **options)
        self.palette = palette_for(self.predictor.model.config)
        self.image_column, self.batch_size = image_column, batch_size

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """
        Add the results to a batch.

        Args:
            batch (`Mapping[str, Any]`): Columns. An image is the bytes of a file, `{"bytes": ..., "path": ...}`, a path, a
                PIL image, or an array `(height, width, 3)`, uint8.

        Returns:
            `dict`: The columns of `batch`, and the object arrays `label_map` (PNG files, as written by [`segment_dataset`]),
            `classes` (JSON, share of each class) and `error`. A row has either a label map and classes, or an error; the
            others are `None`.
        """
        rows = (ImageRow(None, value) for value in batch[self.image_column])
        columns: dict[str, list[Any]] = {"label_map": [], "classes": [], "error": []}
        for image in segment_rows(rows, self.predictor, self.batch_size):
            columns["error"].append(image.error)
            if image.label_map is None:
                columns["label_map"].append(None)
                columns["classes"].append(None)
                continue
            shares = class_shares(image.label_map, self.predictor.id2label, ignore_index=None)
            columns["label_map"].append(png_bytes(label_image(image.label_map, self.palette)))
            columns["classes"].append(json.dumps({share.name: share.share for share in shares}, ensure_ascii=False))
        return {**batch, **{name: np.array(values, dtype=object) for name, values in columns.items()}}
