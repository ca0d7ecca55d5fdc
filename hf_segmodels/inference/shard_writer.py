# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Output folder of `hf-segmodels segment-dataset`:

    manifest.json                model, data and options of the results
    shard-00000.parquet          results of a shard; with `--format png` a folder `shard-00000/` of label maps
    shard-00000.json             record of the shard, written last: without an error in it, the shard is complete
    summary.json                 totals, written once all shards have a record
"""

import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..utils.errors import UserError
from ..utils.files import atomic_path, remove, write_json
from ..visualization import class_shares, label_image
from .segment_images import SUMMARY


MANIFEST = "manifest.json"
FORMATS = ("parquet", "png")
COLUMNS = ("index", "name", "height", "width", "label_map", "classes")
# Fields of the manifest that are not compared: the same model or data may have moved.
_INFORMATION = ("model", "dataset", "hf_segmodels")
_FINGERPRINTS = {"model_fingerprint": "the model", "data_fingerprint": "the data"}
_ROWS_PER_GROUP = 100
_SHARD_NAME = re.compile(r"\.?shard-(\d{5,})\b.*")


@dataclass
class RowResult:
    """Label map of a row, or the error that it caused."""

    index: int
    """Index in the shard."""
    name: str | None
    kept: dict[str, Any] = field(default_factory=dict)
    """Columns to copy to the results."""
    label_map: np.ndarray | None = None
    """`(height, width)`, int64."""
    error: str | None = None


class _ParquetWriter(AbstractContextManager):
    """Writer for a table whose label maps `datasets` reads as images. Holds at most one row group in memory."""

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

    def write(self, row: dict[str, Any], labels: Image.Image) -> None:
        row = {"label_map": {"bytes": png_bytes(labels), "path": f"{_file_stem(row)}_labels.png"}, **row}
        self.rows.append({name: row[name] for name in self.features})
        if len(self.rows) == _ROWS_PER_GROUP:
            self._write_group()

    def _write_group(self) -> None:
        from datasets import Dataset
        from datasets.table import embed_table_storage

        table = Dataset.from_list(self.rows, features=self.features).with_format("arrow")[:]
        # Copied images may still be paths.
        self.file.write_table(embed_table_storage(table).cast(self.features.arrow_schema))
        self.rows = []

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if self.rows and error_type is None:
            self._write_group()
        self.file.close()


class _PngWriter(AbstractContextManager):
    """Writer for a folder of `NAME_labels.png`, with a `metadata.jsonl` for `datasets`."""

    def __init__(self, folder: Path):
        folder.mkdir()
        self.folder = folder
        self.names: set[str] = set()
        self.metadata = (folder / "metadata.jsonl").open("w", encoding="utf-8")

    def write(self, row: dict[str, Any], labels: Image.Image) -> None:
        name = _file_stem(row)
        while name.casefold() in self.names:
            name = f"{name}_{row['index']}"
        self.names.add(name.casefold())
        path = self.folder / f"{name}_labels.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        labels.save(path)
        entry = {"file_name": path.relative_to(self.folder).as_posix(), **row}
        self.metadata.write(json.dumps(entry, ensure_ascii=False, default=str) + "\n")

    def __exit__(self, *_: object) -> None:
        self.metadata.close()


def png_bytes(labels: Image.Image) -> bytes:
    """Encode a label image as PNG."""
    buffer = io.BytesIO()
    labels.save(buffer, format="PNG")
    return buffer.getvalue()


def _file_stem(row: Mapping[str, Any]) -> str:
    """Relative path of an image's results: its sanitized name without suffix, or its index if it has no name."""
    name = (row["name"] or "").replace("\\", "/")
    parts = [re.sub(r"[^\w.\- ]", "_", part)[:100].strip(". ") for part in name.split("/")]
    parts = [part for part in parts if part]
    if not parts:
        return f"{row['index']:08d}"
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
        """Hash of everything that the results of a shard depend on."""
        return hashlib.sha256(json.dumps(_identity(self.manifest), sort_keys=True).encode()).hexdigest()

    def open(self, overwrite: bool, process_index: int, num_processes: int) -> None:
        """
        Create the folder and its manifest, or compare them with existing ones.

        Args:
            overwrite (`bool`): Whether to remove earlier results. Each process removes those of its own shards.
            process_index, num_processes (`int`): Index of this process, and number of processes.

        Raises:
            UserError: if the folder contains results of another model, of other data, or with other options.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / MANIFEST
            if overwrite:
                self._remove_results(process_index, num_processes)
            else:
                strange = [entry.name for entry in self.folder.iterdir() if _SHARD_NAME.fullmatch(entry.name)]
                # Checked after the shards: another process may have just written it.
                if path.exists():
                    self._compare(path)
                    return
                if strange:
                    raise UserError(
                        f"{self.folder} contains {strange[0]} but no {MANIFEST}: choose another --output, or add --overwrite to "
                        "replace it."
                    )
            write_json(path, self.manifest)
        except OSError as error:
            raise UserError(f"cannot use the output folder {self.folder}: {error.strerror or error}.") from error

    def _compare(self, path: Path) -> None:
        try:
            old, new = _identity(json.loads(path.read_text(encoding="utf-8"))), _identity(self.manifest)
        except (ValueError, AttributeError) as error:
            raise UserError(f"{path} is not from this command: choose another --output.") from error
        differences = [
            _FINGERPRINTS.get(key) or f"{key} ({_format_value(old.get(key))} then, {_format_value(new.get(key))} now)"
            for key in dict.fromkeys([*old, *new])
            if old.get(key) != new.get(key)
        ]
        if differences:
            raise UserError(
                f"{self.folder} contains results of a run that differs in {', '.join(differences)}: choose another --output, "
                "or add --overwrite to replace them."
            )

    def _remove_results(self, process_index: int, num_processes: int) -> None:
        for path in list(self.folder.iterdir()):
            match = _SHARD_NAME.fullmatch(path.name)
            if match and int(match[1]) % num_processes == process_index:
                remove(path)
        (self.folder / SUMMARY).unlink(missing_ok=True)

    def _path(self, index: int, ending: str) -> Path:
        return self.folder / f"shard-{index:05d}{ending}"

    def results_path(self, index: int) -> Path:
        """Path of a shard's results: a parquet file, or a folder of label maps."""
        return self._path(index, ".parquet" if self.manifest["format"] == "parquet" else "")

    def record(self, index: int) -> dict[str, Any] | None:
        """Record of a shard; `None` if it has none, or one of another manifest."""
        try:
            record = json.loads(self._path(index, ".json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) and record.get("manifest") == self.digest else None

    def records(self) -> list[dict[str, Any]] | None:
        """Records of all shards; `None` while some are missing."""
        records = [record for index in range(self.num_shards) if (record := self.record(index)) is not None]
        return records if len(records) == self.num_shards else None

    def is_complete(self, index: int) -> bool:
        record = self.record(index)
        return record is not None and "error" not in record and self.results_path(index).exists()

    @contextmanager
    def writing(self, index: int, name: str) -> Iterator["ShardResults"]:
        """Yield the results of a shard for writing. They appear with a record when the block ends."""
        path = self.results_path(index)
        (self.folder / SUMMARY).unlink(missing_ok=True)
        self._path(index, ".json").unlink(missing_ok=True)
        for left_over in self.folder.glob(f".{path.name}.*.part"):  # of a killed process
            remove(left_over)
        with atomic_path(path) as temporary:
            is_parquet = self.manifest["format"] == "parquet"
            with _ParquetWriter(temporary, self.kept_features) if is_parquet else _PngWriter(temporary) as writer:
                shard = ShardResults(writer, self.palette, self.id2label)
                yield shard
        self.write_record(index, {"shard": name, **shard.record()})

    def write_record(self, index: int, record: dict[str, Any]) -> None:
        """Write the record of a shard. The next run retries a shard whose record has an `"error"`."""
        write_json(self._path(index, ".json"), {"manifest": self.digest, **record})

    def write_summary(self, summary: dict[str, Any]) -> bool:
        """Write the totals. Returns `False` if another process wrote them."""
        try:
            with (self.folder / SUMMARY).open("x", encoding="utf-8") as file:
                file.write(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
        except FileExistsError:
            return False
        return True


@dataclass
class ShardResults:
    """Results of a shard, written one by one."""

    writer: _ParquetWriter | _PngWriter
    palette: np.ndarray
    id2label: dict[int, str]
    num_images: int = 0
    failed: list[dict[str, Any]] = field(default_factory=list)
    classes: dict[int, dict[str, Any]] = field(default_factory=dict)

    def write(self, image: RowResult) -> None:
        self.num_images += 1
        if image.label_map is None:
            self.failed.append({"index": image.index, "name": image.name, "error": image.error})
            return
        shares = class_shares(image.label_map, self.id2label, ignore_index=None)
        height, width = image.label_map.shape
        row = {"index": image.index, "name": image.name, "height": height, "width": width}
        row |= {"classes": [asdict(share) for share in shares], **image.kept}
        self.writer.write(row, label_image(image.label_map, self.palette))
        for share in shares:
            _add_class(self.classes, share.index, share.name, share.pixels)

    def record(self) -> dict[str, Any]:
        classes = [self.classes[index] for index in sorted(self.classes)]
        return {"images": self.num_images, "failed": self.failed, "classes": classes}


def _add_class(totals: dict[int, dict[str, Any]], index: int, name: str, pixels: int, images: int = 1) -> None:
    """Add the pixels and images of a class to the totals of a shard or a data set."""
    total = totals.setdefault(index, {"index": index, "name": name, "pixels": 0, "images": 0})
    total["pixels"] += pixels
    total["images"] += images


def summarize(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Totals over the records of all shards."""
    totals: dict[int, dict[str, Any]] = {}
    for item in (item for record in records for item in record.get("classes", ())):
        _add_class(totals, **item)
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
    """The part of a manifest that results depend on, as read back from JSON."""
    identity = {key: value for key, value in manifest.items() if key not in _INFORMATION}
    options = identity.pop("options", {})
    return json.loads(json.dumps({**identity, **options}))


def _format_value(value: Any) -> str:
    return "unset" if value is None else json.dumps(value)
