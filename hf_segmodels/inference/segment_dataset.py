# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""What `hf-segmodels segment-dataset` does: segment a data set shard by shard, with as many processes as there are."""

import hashlib
import json
import os
import sys
from collections import Counter
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
from ..visualization import class_shares, label_image, palette_for
from .predictor import Predictor, describe_failure, load_predictor
from .segment_images import print_totals
from .shard_writer import COLUMNS, FORMATS, DatasetResults, SegmentedImage, png_bytes, summarize


# Images of rare sizes wait for others of their size for at most so many batches
_LOOK_AHEAD = 8
_MAX_ERRORS = 20


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
) -> int:
    """
    Segments the images of a data set and writes label maps and class shares, shard by shard.

    A shard's results appear once it is complete, with a record; a later call with the same model, data and options does
    what is missing. Of several processes (`RANK` and `WORLD_SIZE` in the environment, as `torchrun` and `accelerate
    launch` set them) each takes every n-th shard; they need nothing but the folder in common. An image that cannot be read
    or segmented does not stop the others.

    Args:
        dataset (`str`), layout, image_column: See [`~hf_segmodels.data.DatasetSpec`].
        split, shard_size: See [`~hf_segmodels.data.shards.open_image_shards`].
        model (`str`): Folder of a model, or name of a repository on the Hub.
        output (`Path`): Folder for the results.
        keep_columns (`Sequence[str]`, *optional*): Columns of the data that the results have, too; `image` for the images.
        format (`str`, *optional*, defaults to `"parquet"`): A parquet file for each shard, whose label maps `datasets`
            reads as images; or `"png"`, a folder of label maps.
        batch_size (`int`, *optional*, defaults to 1): How many images go through the model together; only those that have
            one size after preprocessing do.
        num_workers (`int`, *optional*, defaults to 0): Processes, of each process, that decode and preprocess.
        overwrite (`bool`, *optional*, defaults to `False`): Whether to start again where there are results.
        device (`str`, *optional*): Where the model runs; of each process its own GPU, or the CPU, if unset.
        dtype, options: See [`~hf_segmodels.inference.segment_images.load_predictor`].

    Returns:
        `int`: 0; 1 where images failed. Of several processes, only the one that is last to finish gives 1: launchers end
        all processes when one fails.

    Raises:
        UserError: if data, model, options or output folder cannot be used, or `output` has results of something else.
    """
    process_index, num_processes = _find_process()
    if format not in FORMATS:
        raise UserError(f"there is no format {format!r}: choose one of {', '.join(FORMATS)}.")
    if taken := [column for column in keep_columns if column in COLUMNS]:
        raise UserError(f"the results have a column {taken[0]!r} of their own: leave it out of --keep-columns.")
    spec = DatasetSpec(dataset, layout, image_column)
    data = _open_data(spec, split, keep_columns, shard_size, output, format)
    predictor = load_predictor(model, device=device or _own_device(), dtype=dtype, **options)
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
        print(
            f"only {_number(len(data.shards), 'shard')} for {num_processes} processes: the others have nothing to do",
            file=sys.stderr,
        )
    try:
        mine = range(process_index, len(data.shards), num_processes)
        todo = [index for index in mine if not results.is_complete(index)]
        _segment_shards(todo, data, predictor, results, batch_size, num_workers, is_shown=process_index == 0)
        done = f"{_number(len(todo), 'shard')} done"
        if len(todo) < len(mine):
            done += f", {len(mine) - len(todo)} skipped (already there)"
        print(f"process {process_index + 1} of {num_processes}: {done}" if num_processes > 1 else done)
        return _finish(results, did_something=bool(todo), is_first=process_index == 0)
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error.strerror or error}.") from error


def _find_process() -> tuple[int, int]:
    """Which process this is, of how many."""
    rank, world_size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdecimal() and world_size.isdecimal() and int(rank) < int(world_size)):
        raise UserError(
            f"RANK is {rank!r} and WORLD_SIZE {world_size!r} in the environment: set them to the number of this process, "
            "from 0 on, and of all, or leave both unset."
        )
    return int(rank), int(world_size)


def _own_device() -> str | None:
    """The GPU of this process among those of its machine."""
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
        binary = [name for name, feature in data.kept_features.items() if not _fits_json(feature)]
        if binary:
            raise UserError(f"--format png cannot keep {binary[0]!r}, which holds files: use --format parquet.")
    return data


def _fits_json(feature: Any) -> bool:
    text = str(feature)
    return not any(kind in text for kind in ("Image(", "Audio(", "Video(", "binary"))


def _fingerprint(predictor: Predictor) -> str:
    """Of weights, configuration and image processor, wherever they were read from."""
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
    """A shard of which the data set does not give all rows."""


def _segment_shards(
    indices: Sequence[int],
    data: ImageShards,
    predictor: Predictor,
    results: DatasetResults,
    batch_size: int,
    num_workers: int,
    is_shown: bool,
) -> None:
    numbers = [data.shards[index].num_images for index in indices]
    total = None if None in numbers else sum(number or 0 for number in numbers)
    with tqdm(total=total, desc="segment", unit="image", disable=None if is_shown else True) as bar:
        for number, index in enumerate(indices, 1):
            bar.set_postfix_str(f"shard {number} of {len(indices)}")
            shard = data.shards[index]
            try:
                with results.writing(index, shard.name) as shard_results:
                    for image in segment_rows(_checked(shard.read), predictor, batch_size, num_workers):
                        shard_results.write(image)
                        bar.update()
            except _Unreadable as error:
                results.write_failure(index, shard.name, first_line(error))


def _checked(read: Any) -> Iterator[ImageRow]:
    """Tells errors of reading from those of writing."""
    try:
        yield from read()
    except Exception as error:  # files, decoders and networks raise anything
        raise _Unreadable(first_line(error)) from error


@dataclass
class _PreparedImage:
    """A row on its way to the model."""

    index: int
    row: ImageRow
    size: tuple[int, int] = (0, 0)
    """`(height, width)` of the image."""
    inputs: dict[str, torch.Tensor] | None = None
    error: str | None = None

    @property
    def shapes(self) -> tuple[Any, ...]:
        """Images with the same can be one batch."""
        assert self.inputs is not None
        return tuple((name, tuple(tensor.shape)) for name, tensor in sorted(self.inputs.items()))


class _Preparation(torch.utils.data.Dataset):
    """Decodes and preprocesses, in workers too: what a loader takes for an index is the row with its number."""

    def __init__(self, predictor: Predictor):
        # workers are not to have the model
        self.prepare = Predictor(None, predictor.image_processor).prepare

    def __getitem__(self, numbered_row: tuple[int, ImageRow]) -> _PreparedImage:
        index, row = numbered_row
        prepared = _PreparedImage(index, replace(row, image=None))
        try:
            image = _decode(row.image)
            prepared.size = image.height, image.width
            prepared.inputs = self.prepare(image)
        except Exception as error:  # decoders of damaged files raise anything
            prepared.error = first_line(error)
        return prepared


def _decode(value: Any) -> PIL.Image.Image:
    """An RGB image, upright, of what a row holds."""
    if isinstance(value, np.ndarray):
        return to_rgb(PIL.Image.fromarray(value))
    if isinstance(value, bytes):
        value = {"bytes": value, "path": None}
    with open_image(value) as image:
        return to_rgb(PIL.ImageOps.exif_transpose(image))


def _same(item: Any) -> Any:
    return item


def segment_rows(
    rows: Iterable[ImageRow], predictor: Predictor, batch_size: int = 1, num_workers: int = 0
) -> Iterator[SegmentedImage]:
    """
    Segments images that need not be of one size; those that are, after preprocessing, run as batches.

    Args:
        rows (`Iterable[ImageRow]`): The images; of a stream, few more are read ahead than batches need.
        predictor (`Predictor`): The model.
        batch_size (`int`, *optional*, defaults to 1): How many images run together at most.
        num_workers (`int`, *optional*, defaults to 0): Processes that decode and preprocess.

    Returns:
        `Iterator[SegmentedImage]`: one for each row, in their order.
    """
    if predictor.is_batch_dependent:
        batch_size = 1
    loader = DataLoader(
        _Preparation(predictor), sampler=enumerate(rows), batch_size=None, collate_fn=_same, num_workers=num_workers
    )
    waiting: dict[tuple[Any, ...], list[_PreparedImage]] = {}  # by their shapes, those that wait longest first
    done: dict[int, SegmentedImage] = {}
    next_index = 0

    def run(shapes: tuple[Any, ...]) -> None:
        for image in _segment_batch(waiting.pop(shapes), predictor):
            done[image.index] = image

    for item in loader:
        if item.inputs is None:
            done[item.index] = SegmentedImage(item.index, item.row.name, error=item.error)
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


def _segment_batch(items: Sequence[_PreparedImage], predictor: Predictor) -> list[SegmentedImage]:
    try:
        label_maps = predictor.predict([item.inputs or {} for item in items], [item.size for item in items])
    except torch.AcceleratorError:
        raise  # such as a GPU that is lost: all that follow would fail
    except (ValueError, RuntimeError) as error:
        message = describe_failure(error)
    else:
        return [
            SegmentedImage(item.index, item.row.name, item.row.kept, label_map)
            for item, label_map in zip(items, label_maps, strict=True)
        ]
    if len(items) > 1:
        return [image for item in items for image in _segment_batch([item], predictor)]
    return [SegmentedImage(item.index, item.row.name, error=message) for item in items]


def _number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _finish(results: DatasetResults, did_something: bool, is_first: bool) -> int:
    """Prints the totals if this is the process that came last, or the first one where nothing was left to do."""
    records = results.records()
    if records is None:
        return 0
    summary = summarize(records)
    if not (results.write_summary(summary) if did_something else is_first):
        return 0
    pixels = Counter({item["name"]: item["pixels"] for item in summary["classes"]})
    if pixels:
        print_totals(pixels, Counter({item["name"]: item["images"] for item in summary["classes"]}))
    print(
        f"{_number(summary['images'], 'image')} in {_number(summary['shards'], 'shard')}; label maps and summary.json are in {results.folder}"
    )
    for item in summary["unreadable_shards"]:
        print(f"error: {item['shard']} could not be read: {item['error']}", file=sys.stderr)
    failed = summary["failed"]
    for item in failed[:_MAX_ERRORS]:
        name = item["name"] or f"image {item['index']}"
        print(f"error: {name} ({item['shard']}): {item['error']}", file=sys.stderr)
    if failed:
        rest = ", see summary.json" if len(failed) > _MAX_ERRORS else ""
        print(f"error: {len(failed)} of {summary['images']} images could not be segmented{rest}.", file=sys.stderr)
    return 1 if failed or summary["unreadable_shards"] else 0


class BatchSegmenter:
    """
    Segments batches of a table's rows, for systems that hand them out themselves, such as Ray Data's `map_batches`.

    Args:
        model (`str`): See [`segment_dataset`].
        image_column (`str`, *optional*, defaults to `"image"`): The images' column.
        batch_size (`int`, *optional*, defaults to 1): How many images run together at most.
        options: For [`~hf_segmodels.inference.segment_images.load_predictor`].

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
        Adds columns to a batch.

        Args:
            batch (`Mapping[str, Any]`): Columns; the images as files' bytes, `{"bytes": ..., "path": ...}`, paths, PIL
                images, or arrays `(height, width, 3)`, uint8.

        Returns:
            `dict`: Those columns, and arrays of objects: `label_map`, PNG files as [`segment_dataset`] writes them,
            `classes`, as JSON, and `error`. Of each row there is either a label map or an error, and None for the other.
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


__all__ = ["BatchSegmenter", "segment_dataset", "segment_rows"]
