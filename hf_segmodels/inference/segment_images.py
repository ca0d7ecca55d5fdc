# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Segment image files: find them, write an overlay and a label map for each, and a summary for all."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from ..data.layouts import IMAGE_SUFFIXES
from ..image_processing import read_image
from ..utils.errors import UserError, first_line
from ..utils.files import atomic_write, write_json
from ..visualization import ClassShare, add_legend, class_shares, label_image, overlay, palette_for
from .predictor import describe_failure, load_predictor


SUMMARY = "summary.json"
_SECONDS_BETWEEN_SUMMARIES = 30.0


def find_images(paths: Iterable[Path], output: Path, recursive: bool = False) -> list[tuple[Path, Path]]:
    """
    Find image files. Folders are searched for files with an image suffix, except hidden files and those in `output`.
    Files in `paths` are accepted with any suffix.

    Args:
        paths (`Iterable[Path]`): Files and folders.
        output (`Path`): Folder for the results.
        recursive (`bool`, *optional*, defaults to `False`): Whether to search subfolders.

    Returns:
        `list[tuple[Path, Path]]`: Each file once, with its parent relative to the searched folder (`.` for files in
        `paths`).

    Raises:
        UserError: if a path does not exist or a folder contains no images.
    """
    found: dict[Path, tuple[Path, Path]] = {}
    output = output.resolve()
    for path in paths:
        if path.is_dir():
            in_output = path.resolve().is_relative_to(output)
            images = [
                file
                for file in sorted(path.rglob("*") if recursive else path.iterdir())
                if file.suffix.lower() in IMAGE_SUFFIXES
                and file.is_file()
                and not any(part.startswith(".") for part in file.relative_to(path).parts)
                and (in_output or not file.resolve().is_relative_to(output))
            ]
            if not images:
                hint = "" if recursive else ", or add --recursive to search subfolders"
                raise UserError(f"no images in the folder {path}: give a folder with images{hint}.")
            for file in images:
                found.setdefault(file.resolve(), (file, file.relative_to(path).parent))
        elif path.exists():
            found.setdefault(path.resolve(), (path, Path()))
        else:
            raise UserError(f"there is no file or folder {path}.")
    return list(found.values())


def _possible_names(image: Path, folder: Path) -> Iterator[str]:
    """Names of an image's results in `folder`: the file name, then with its parent, then with a number."""
    yield (folder / image.stem).as_posix()
    yield (folder / f"{image.resolve().parent.name}_{image.stem}").as_posix()
    yield from ((folder / f"{image.stem}_{number}").as_posix() for number in count(2))


@dataclass
class ResultsFolder:
    """The output folder: overlays, label maps, and the summary that maps them to images, over one or more runs."""

    folder: Path
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Entries of the summary by the name of their results."""

    @classmethod
    def open(cls, folder: Path) -> "ResultsFolder":
        """
        Create the folder, or read the summary of earlier runs.

        Raises:
            UserError: if the folder cannot be used, or contains another `summary.json`.
        """
        results = cls(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
            results.entries = {entry["name"]: entry for entry in summary["images"]}
        except FileNotFoundError:
            pass
        except OSError as error:
            raise UserError(f"cannot use the output folder {folder}: {error.strerror or error}.") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{folder / SUMMARY} is not from this command: choose another --output or move that file away."
            ) from error
        return results

    def paths(self, name: str) -> tuple[Path, Path]:
        """Paths of overlay and label map."""
        return self.folder / f"{name}_overlay.png", self.folder / f"{name}_labels.png"

    def name_images(self, images: Sequence[tuple[Path, Path]]) -> dict[str, Path]:
        """
        Name the results of images: as in an earlier run, or by a new name. New names differ from all others in more than
        case, and their results replace no image. Results of earlier runs among the images are left out.
        """
        earlier_results = {path.resolve() for name in self.entries for path in self.paths(name)}
        images = [(image, folder) for image, folder in images if image.resolve() not in earlier_results]
        sources = {image.resolve() for image, _ in images}
        known = {entry["image"]: name for name, entry in self.entries.items()}
        taken = {name.casefold() for name in self.entries}
        named = {}
        for image, folder in images:
            name = known.get(str(image.resolve())) or next(
                name
                for name in _possible_names(image, folder)
                if name.casefold() not in taken and sources.isdisjoint(path.resolve() for path in self.paths(name))
            )
            taken.add(name.casefold())
            named[name] = image
        return named

    def is_complete(self, name: str) -> bool:
        return name in self.entries and all(path.is_file() for path in self.paths(name))

    def write(
        self, name: str, image: Path, picture: Image.Image, labels: Image.Image, shares: list[ClassShare], **fields: Any
    ) -> None:
        """Write overlay and label map of an image. `fields` are added to its entry in the summary."""
        overlay_path, labels_path = self.paths(name)
        overlay_path.parent.mkdir(parents=True, exist_ok=True)
        # The default level takes four times as long to save a tenth of the bytes of a photograph.
        atomic_write(overlay_path, lambda temporary: picture.save(temporary, format="PNG", compress_level=2))
        atomic_write(labels_path, lambda temporary: labels.save(temporary, format="PNG"))
        self.entries[name] = {
            "name": name,
            "image": str(image.resolve()),
            "overlay": overlay_path.relative_to(self.folder).as_posix(),
            "labels": labels_path.relative_to(self.folder).as_posix(),
            "height": labels.height,
            "width": labels.width,
            **fields,
            "classes": [asdict(share) for share in shares],
        }

    def write_summary(self, failed: Sequence[tuple[Path, str]]) -> None:
        summary = {
            "images": [self.entries[name] for name in sorted(self.entries)],
            "failed": [{"image": str(path.resolve()), "error": message} for path, message in failed],
        }
        write_json(self.folder / SUMMARY, summary)


@dataclass
class SegmentedImages:
    """Result of [`segment_images`]."""

    segmented: dict[str, list[ClassShare]] = field(default_factory=dict)
    """Classes in each segmented image, largest first, by the name of its results."""
    skipped: list[str] = field(default_factory=list)
    """Names of the results that existed."""
    failed: list[tuple[Path, str]] = field(default_factory=list)
    """Images that could not be read or segmented, with the reason."""

    @property
    def totals(self) -> list[ClassShare]:
        """Classes in all segmented images, largest first."""
        pixels: Counter[str] = Counter()
        for share in (share for shares in self.segmented.values() for share in shares):
            pixels[share.name] += share.pixels
        return [ClassShare(-1, name, number, number / pixels.total()) for name, number in pixels.most_common()]


def segment_images(
    images: Sequence[Path],
    model: str,
    output: Path,
    *,
    recursive: bool = False,
    skip_existing: bool = False,
    alpha: float = 0.5,
    device: str | None = None,
    dtype: str = "float32",
    attention: str | None = None,
    **options: Any,
) -> SegmentedImages:
    """
    Segment images. Writes `NAME_overlay.png` and `NAME_labels.png` for each image, and `summary.json` for all. Images that
    cannot be read or segmented are skipped and reported.

    Args:
        images (`Sequence[Path]`): Image files and folders.
        model (`str`): Folder of a model, or name of a repository on the Hub.
        output (`Path`): Folder for the results. Its summary keeps the names of results stable over several runs.
        recursive (`bool`, *optional*, defaults to `False`): Whether to search subfolders.
        skip_existing (`bool`, *optional*, defaults to `False`): Whether to skip images with results in `output`.
        alpha (`float`, *optional*, defaults to 0.5): Opacity of the overlay, from 0 to 1.
        device, dtype, attention, options: See [`load_predictor`].

    Returns:
        [`SegmentedImages`]: Classes of each image, and failures.

    Raises:
        UserError: if an image path, the model, the options or the output folder cannot be used.
    """
    found = find_images(images, output, recursive)
    folder = ResultsFolder.open(output)
    named = folder.name_images(found)
    results = SegmentedImages(skipped=[name for name in named if skip_existing and folder.is_complete(name)])
    for name in results.skipped:
        del named[name]
    if not named:
        return results
    predictor = load_predictor(model, device=device, dtype=dtype, attention=attention, **options)
    palette = palette_for(predictor.model.config)
    next_summary = time.monotonic() + _SECONDS_BETWEEN_SUMMARIES
    try:
        for name, path in tqdm(named.items(), desc="segment", unit="image", disable=None):
            try:
                image = read_image(path)
            except Exception as error:  # decoders raise any exception for damaged files
                results.failed.append((path, first_line(error)))
                continue
            try:
                label_map = predictor(image)
            except (ValueError, RuntimeError) as error:
                results.failed.append((path, describe_failure(error)))
                continue
            shares = class_shares(label_map, predictor.id2label, ignore_index=None)
            picture = add_legend(overlay(image, label_map, palette, alpha, ignore_index=None), shares, palette)
            fields = {"model": model, "options": {"dtype": dtype, **options}}
            folder.write(name, path, picture, label_image(label_map, palette), shares, **fields)
            results.segmented[name] = shares
            if time.monotonic() > next_summary:
                folder.write_summary(results.failed)
                next_summary = time.monotonic() + _SECONDS_BETWEEN_SUMMARIES
    except OSError as error:
        raise UserError(f"cannot write to {output}: {error.strerror or error}.") from error
    finally:
        folder.write_summary(results.failed)
    return results
