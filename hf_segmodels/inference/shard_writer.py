# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
The output folder of `hf-segmodels segment-dataset`:

    manifest.json                what the results are of: model, data, options
    shard-00000.parquet          results of a shard; a folder `shard-00000/` of label maps with `--format png`
    shard-00000.json             its record, written last: a shard with a record is complete, or says why it is not
    summary.json                 totals, once all shards have a record
"""

import hashlib
import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np
from PIL import Image

from ..utils.errors import UserError
from ..utils.files import atomic_write
from ..visualization import ClassShare, class_shares, label_image
from .segment_images import SUMMARY


MANIFEST = "manifest.json"
FORMATS = ("parquet", "png")
COLUMNS = ("index", "name", "height", "width", "label_map", "classes")
# In the manifest for its readers: the same model or data may have moved
_INFORMATION = ("model", "dataset", "hf_segmodels")
_FINGERPRINTS = {"model_fingerprint": "the model", "data_fingerprint": "the data"}
_ROWS_PER_GROUP = 100
_SHARD_NAME = re.compile(r"\.?shard-(\d{5,})\b.*")


@dataclass
class SegmentedImage:
    """An image of a shard with its label map, or with what went wrong."""

    index: int
    """Its place in the shard."""
    name: str | None
    kept: dict[str, Any] = field(default_factory=dict)
    label_map: np.ndarray | None = None
    """`(height, width)`, int64."""
    error: str | None = None


class _ShardWriter(Protocol):
    def write(self, image: SegmentedImage, labels: Image.Image, shares: list[ClassShare]) -> None: ...

    def finish(self) -> None: ...

    def close(self) -> None: ...


class _ParquetWriter:
    """A table whose label maps `datasets` reads as images. At most one row group is held."""

    def __init__(self, path: Path, kept_features: Mapping[str, Any]):
        import pyarrow.parquet  # type: ignore[import-untyped]
        from datasets import Features, Value
        from datasets import Image as ImageFeature

        share = {"index": Value("int32"), "name": Value("string"), "pixels": Value("int64"), "share": Value("float64")}
        kept = {
            name: ImageFeature() if isinstance(feature, ImageFeature) else feature
            for name, feature in kept_features.items()
        }
        self.features = Features(
            {
                "index": Value("int64"),
                "name": Value("string"),
                "height": Value("int32"),
                "width": Value("int32"),
                "label_map": ImageFeature(),
                "classes": [share],
                **kept,
            }
        )
        self.rows: list[dict[str, Any]] = []
        self.file = pyarrow.parquet.ParquetWriter(path, self.features.arrow_schema)

    def write(self, image: SegmentedImage, labels: Image.Image, shares: list[ClassShare]) -> None:
        row = {
            "index": image.index,
            "name": image.name,
            "height": labels.height,
            "width": labels.width,
            "label_map": {"bytes": png_bytes(labels), "path": f"{_file_stem(image)}_labels.png"},
            "classes": [asdict(share) for share in shares],
        }
        self.rows.append(row | image.kept)
        if len(self.rows) == _ROWS_PER_GROUP:
            self._write_group()

    def _write_group(self) -> None:
        from datasets import Dataset
        from datasets.table import embed_table_storage

        table = Dataset.from_list(self.rows, features=self.features).with_format("arrow")[:]
        # images that are kept may so far be paths
        self.file.write_table(embed_table_storage(table).cast(self.features.arrow_schema))
        self.rows = []

    def finish(self) -> None:
        if self.rows:
            self._write_group()

    def close(self) -> None:
        self.file.close()


class _PngWriter:
    """A folder of `NAME_labels.png`, with a `metadata.jsonl` that `datasets` reads, too."""

    def __init__(self, folder: Path):
        folder.mkdir()
        self.folder = folder
        self.names: set[str] = set()
        self.metadata = (folder / "metadata.jsonl").open("w", encoding="utf-8")

    def write(self, image: SegmentedImage, labels: Image.Image, shares: list[ClassShare]) -> None:
        name = _file_stem(image)
        while name.casefold() in self.names:
            name = f"{name}_{image.index}"
        self.names.add(name.casefold())
        path = self.folder / f"{name}_labels.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        labels.save(path)
        entry = {
            "file_name": path.relative_to(self.folder).as_posix(),
            "index": image.index,
            "name": image.name,
            "height": labels.height,
            "width": labels.width,
            "classes": [asdict(share) for share in shares],
            **image.kept,
        }
        self.metadata.write(json.dumps(entry, ensure_ascii=False, default=str) + "\n")

    def finish(self) -> None:
        pass

    def close(self) -> None:
        self.metadata.close()


def png_bytes(labels: Image.Image) -> bytes:
    """The file that `labels` would be saved as."""
    buffer = io.BytesIO()
    labels.save(buffer, format="PNG")
    return buffer.getvalue()


def _file_stem(image: SegmentedImage) -> str:
    """The image's name without its suffix, as a path that stays inside a folder; its index where it has no name."""
    name = (image.name or "").replace("\\", "/")
    parts = [re.sub(r"[^\w.\- ]", "_", part)[:100].strip(". ") for part in name.split("/")]
    parts = [part for part in parts if part]
    if not parts:
        return f"{image.index:08d}"
    is_inside = not (name.startswith("/") or "://" in name or ".." in name.split("/"))
    return "/".join([*(parts[:-1] if is_inside else []), Path(parts[-1]).stem])


@dataclass
class DatasetResults:
    """The output folder."""

    folder: Path
    manifest: dict[str, Any]
    num_shards: int
    palette: np.ndarray
    id2label: dict[int, str]
    kept_features: dict[str, Any]

    @property
    def digest(self) -> str:
        """Of what a shard's results depend on."""
        return hashlib.sha256(json.dumps(_identity(self.manifest), sort_keys=True).encode()).hexdigest()

    def open(self, overwrite: bool, process_index: int, num_processes: int) -> None:
        """
        Makes the folder and its manifest, or compares them with what is there.

        Args:
            overwrite (`bool`): Whether to remove earlier results; each process those of its own shards.
            process_index, num_processes (`int`): Which process this is, of how many.

        Raises:
            UserError: if the folder holds results of something else.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / MANIFEST
            if overwrite:
                self._remove_results(process_index, num_processes)
            else:
                strange = [entry.name for entry in self.folder.iterdir() if _SHARD_NAME.fullmatch(entry.name)]
                # asked last: another process may just have begun
                if path.exists():
                    self._compare(path)
                    return
                if strange:
                    raise UserError(
                        f"{self.folder} has {strange[0]} but no {MANIFEST}: choose another --output, or add --overwrite to "
                        "replace what is there."
                    )
            text = json.dumps(self.manifest, indent=2, ensure_ascii=False) + "\n"
            atomic_write(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        except OSError as error:
            raise UserError(f"cannot use the output folder {self.folder}: {error.strerror or error}.") from error

    def _compare(self, path: Path) -> None:
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
            old, new = _identity(there), _identity(self.manifest)
        except (ValueError, AttributeError) as error:
            raise UserError(f"{path} is not from this command: choose another --output.") from error
        differences = [
            _FINGERPRINTS.get(key) or f"{key} ({_shown(old.get(key))} then, {_shown(new.get(key))} now)"
            for key in dict.fromkeys([*old, *new])
            if old.get(key) != new.get(key)
        ]
        if differences:
            raise UserError(
                f"{self.folder} holds results of a run from which this one differs in {', '.join(differences)}: choose "
                "another --output, or add --overwrite to start again."
            )

    def _remove_results(self, process_index: int, num_processes: int) -> None:
        for path in list(self.folder.iterdir()):
            match = _SHARD_NAME.fullmatch(path.name)
            if match and int(match[1]) % num_processes == process_index:
                _remove(path)
        (self.folder / SUMMARY).unlink(missing_ok=True)

    def _path(self, index: int, ending: str) -> Path:
        return self.folder / f"shard-{index:05d}{ending}"

    def results_path(self, index: int) -> Path:
        """Where the results of a shard are: a file, or a folder of label maps."""
        return self._path(index, ".parquet" if self.manifest["format"] == "parquet" else "")

    def record(self, index: int) -> dict[str, Any] | None:
        """What is known of a shard; None where it was not worked on, or for something else."""
        try:
            record = json.loads(self._path(index, ".json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) and record.get("manifest") == self.digest else None

    def records(self) -> list[dict[str, Any]] | None:
        """The records of all shards; None while some have none."""
        records = []
        for index in range(self.num_shards):
            record = self.record(index)
            if record is None:
                return None
            records.append(record)
        return records

    def is_complete(self, index: int) -> bool:
        record = self.record(index)
        return record is not None and "error" not in record and self.results_path(index).exists()

    @contextmanager
    def writing(self, index: int, name: str) -> Iterator["ShardResults"]:
        """For the results of a shard: beside their place until all are there, then with a record."""
        path = self.results_path(index)
        (self.folder / SUMMARY).unlink(missing_ok=True)
        self._path(index, ".json").unlink(missing_ok=True)
        for left_over in self.folder.glob(f".{path.name}.*.part"):  # of a process that was killed
            _remove(left_over)
        temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
        writer: _ShardWriter | None = None
        try:
            if self.manifest["format"] == "parquet":
                writer = _ParquetWriter(temporary, self.kept_features)
            else:
                writer = _PngWriter(temporary)
            shard = ShardResults(writer, self.palette, self.id2label)
            yield shard
            writer.finish()
            writer.close()
            _remove(path)
            temporary.rename(path)
            self._write_record(index, {"shard": name, **shard.record()})
        finally:
            if writer is not None:
                writer.close()
            _remove(temporary)

    def write_failure(self, index: int, name: str, error: str) -> None:
        """A record of a shard that could not be read; it is tried again in the next run."""
        self._write_record(index, {"shard": name, "error": error})

    def _write_record(self, index: int, record: dict[str, Any]) -> None:
        text = json.dumps({"manifest": self.digest, **record}, indent=2, ensure_ascii=False) + "\n"
        atomic_write(self._path(index, ".json"), lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def write_summary(self, summary: dict[str, Any]) -> bool:
        """Writes the totals, unless another process did so: then False."""
        try:
            with (self.folder / SUMMARY).open("x", encoding="utf-8") as file:
                file.write(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
        except FileExistsError:
            return False
        return True


@dataclass
class ShardResults:
    """The results of a shard, as they come."""

    writer: _ShardWriter
    palette: np.ndarray
    id2label: dict[int, str]
    num_images: int = 0
    failed: list[dict[str, Any]] = field(default_factory=list)
    pixels: Counter[int] = field(default_factory=Counter)
    images: Counter[int] = field(default_factory=Counter)

    def write(self, image: SegmentedImage) -> None:
        self.num_images += 1
        if image.label_map is None:
            self.failed.append({"index": image.index, "name": image.name, "error": image.error})
            return
        shares = class_shares(image.label_map, self.id2label, ignore_index=None)
        self.writer.write(image, label_image(image.label_map, self.palette), shares)
        for share in shares:
            self.pixels[share.index] += share.pixels
            self.images[share.index] += 1

    def record(self) -> dict[str, Any]:
        classes = [
            {
                "index": index,
                "name": self.id2label.get(index, f"class {index}"),
                "pixels": count,
                "images": self.images[index],
            }
            for index, count in sorted(self.pixels.items())
        ]
        return {"images": self.num_images, "failed": self.failed, "classes": classes}


def summarize(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The totals of all shards' records."""
    totals: dict[int, dict[str, Any]] = {}
    for item in (item for record in records for item in record.get("classes", ())):
        total = totals.setdefault(
            item["index"], {"index": item["index"], "name": item["name"], "pixels": 0, "images": 0}
        )
        total["pixels"] += item["pixels"]
        total["images"] += item["images"]
    all_pixels = sum(total["pixels"] for total in totals.values())
    return {
        "shards": len(records),
        "images": sum(record.get("images", 0) for record in records),
        "failed": [{"shard": record["shard"], **item} for record in records for item in record.get("failed", ())],
        "unreadable_shards": [
            {"shard": record["shard"], "error": record["error"]} for record in records if "error" in record
        ],
        "classes": [
            total | {"share": total["pixels"] / all_pixels}
            for total in sorted(totals.values(), key=lambda total: (-total["pixels"], total["index"]))
        ],
    }


def _identity(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What results depend on, as JSON gives it back."""
    identity = {key: value for key, value in manifest.items() if key not in _INFORMATION}
    options = identity.pop("options", {})
    return json.loads(json.dumps({**identity, **options}))


def _shown(value: Any) -> str:
    return "unset" if value is None else json.dumps(value)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


__all__ = [
    "COLUMNS",
    "FORMATS",
    "MANIFEST",
    "DatasetResults",
    "SegmentedImage",
    "ShardResults",
    "png_bytes",
    "summarize",
]
