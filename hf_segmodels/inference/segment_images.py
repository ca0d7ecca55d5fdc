# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""What `hf-segmodels segment` does: find images, segment each, write an overlay and a label map, list the classes."""

import json
import sys
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
from ..utils.files import atomic_write
from ..visualization import ClassShare, add_legend, class_shares, label_image, overlay, palette_for
from .predictor import Predictor, describe_failure, load_predictor


SUMMARY = "summary.json"
_MAX_ROWS = 20
_SECONDS_BETWEEN_SUMMARIES = 30.0


def find_images(paths: Iterable[Path], output: Path, recursive: bool = False) -> list[tuple[Path, Path]]:
    """
    Finds image files. Of folders, those that have an image's suffix, without hidden ones and those in the output folder;
    files that are named are taken as they are.

    Returns:
        `list[tuple[Path, Path]]`: each file once, with its place in the folder that was searched (`.` if none was).

    Raises:
        UserError: for a path that does not exist or a folder without images.
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
                hint = "" if recursive else ", or add --recursive if they are in folders inside it"
                raise UserError(f"no images in the folder {path}: name one that has some{hint}.")
            for file in images:
                found.setdefault(file.resolve(), (file, file.relative_to(path).parent))
        elif path.exists():
            found.setdefault(path.resolve(), (path, Path()))
        else:
            raise UserError(f"there is no file or folder {path}.")
    return list(found.values())


def _possible_names(path: Path, own_name: str, place: Path) -> Iterator[str]:
    """`own_name` in `place`, then with ever more of the folders around the image in front, then with numbers."""
    prefix = ""
    for parent in ("", *reversed(path.resolve().parent.parts[1:])):
        prefix = f"{parent}_{prefix}" if parent else ""
        yield (place / f"{prefix}{own_name}").as_posix()
    yield from ((place / f"{own_name}_{number}").as_posix() for number in count(2))


@dataclass
class Results:
    """The output folder: which results in it are of which image, from this run and from earlier ones."""

    folder: Path
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Entries of the summary by the name of their results."""

    @classmethod
    def open(cls, folder: Path) -> "Results":
        """Makes the folder if need be, and reads the summary of earlier runs."""
        results = cls(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
            results.images = {entry["name"]: entry for entry in summary["images"]}
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
        """Where overlay and label map go."""
        return self.folder / f"{name}_overlay.png", self.folder / f"{name}_labels.png"

    def name_images(self, images: Sequence[tuple[Path, Path]]) -> list[tuple[Path, str]]:
        """
        Gives each image a name for its results: the one it had in an earlier run, or one that no other image has or had
        (in capitals or not) and whose files are none of the images. Leaves out results of earlier runs.
        """
        written = {path.resolve() for name in self.images for path in self.paths(name)}
        images = [(path, place) for path, place in images if path.resolve() not in written]
        sources = {path.resolve() for path, _ in images}
        siblings = Counter((path.parent, path.stem.casefold()) for path, _ in images)
        known = {entry["image"]: name for name, entry in self.images.items()}
        taken = {name.casefold() for name in self.images}
        named = []
        for path, place in images:
            name = known.get(str(path.resolve()))
            if name is None:
                is_unique = siblings[path.parent, path.stem.casefold()] == 1
                own_name = path.stem if is_unique else f"{path.stem}_{path.suffix.lstrip('.').lower()}"
                name = next(
                    name
                    for name in _possible_names(path, own_name, place)
                    if name.casefold() not in taken
                    and not sources.intersection(result.resolve() for result in self.paths(name))
                )
                taken.add(name.casefold())
            named.append((path, name))
        return named

    def is_complete(self, name: str) -> bool:
        return name in self.images and all(path.is_file() for path in self.paths(name))

    def write(
        self, name: str, path: Path, picture: Image.Image, labels: Image.Image, shares: list[ClassShare], **fields: Any
    ) -> None:
        """Writes overlay and label map of the image at `path`; `fields` go into its entry of the summary."""
        overlay_path, labels_path = self.paths(name)
        overlay_path.parent.mkdir(parents=True, exist_ok=True)
        # the default level takes four times as long to save a tenth of the bytes of a photograph
        atomic_write(overlay_path, lambda temporary: picture.save(temporary, format="PNG", compress_level=2))
        atomic_write(labels_path, lambda temporary: labels.save(temporary, format="PNG"))
        self.images[name] = {
            "name": name,
            "image": str(path.resolve()),
            "overlay": overlay_path.relative_to(self.folder).as_posix(),
            "labels": labels_path.relative_to(self.folder).as_posix(),
            "height": labels.height,
            "width": labels.width,
            **fields,
            "classes": [asdict(share) for share in shares],
        }

    def write_summary(self, failed: Sequence[tuple[Path, str]]) -> None:
        summary = {
            "images": [self.images[name] for name in sorted(self.images)],
            "failed": [{"image": str(path.resolve()), "error": message} for path, message in failed],
        }
        text = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
        atomic_write(self.folder / SUMMARY, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def segment_images(
    paths: Sequence[Path],
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
) -> int:
    """
    Segments images and writes, for each, `NAME_overlay.png` and `NAME_labels.png`, and `summary.json` for all.

    An image that cannot be read or segmented does not stop the others.

    Args:
        paths (`Sequence[Path]`): Image files, and folders of them.
        model (`str`): Folder of a model, or name of a repository on the Hub.
        output (`Path`): Folder for the results. Its summary tells which results are of which image, so that images of
            the same name get different results, also over several runs.
        recursive (`bool`, *optional*, defaults to `False`): Whether to search folders inside folders.
        skip_existing (`bool`, *optional*, defaults to `False`): Whether to leave out images with results in `output`.
        alpha (`float`, *optional*, defaults to 0.5): Opacity of the overlay.
        device, dtype, attention, options: See [`load_predictor`].

    Returns:
        `int`: 0, or 1 where some images failed.

    Raises:
        UserError: if paths, model, options or output folder cannot be used.
    """
    images = find_images(paths, output, recursive)
    results = Results.open(output)
    jobs = results.name_images(images)
    skipped = {name for _, name in jobs if skip_existing and results.is_complete(name)}
    jobs = [(path, name) for path, name in jobs if name not in skipped]
    done: dict[str, list[ClassShare]] = {}
    failed: list[tuple[Path, str]] = []
    if jobs:
        predictor = load_predictor(model, device=device, dtype=dtype, attention=attention, **options)
        fields = {"model": model, "options": {"dtype": dtype, **options}}
        try:
            _run(jobs, predictor, results, alpha, fields, done, failed)
        except OSError as error:
            raise UserError(f"cannot write to {output}: {error.strerror or error}.") from error
        finally:
            results.write_summary(failed)
    _report(results, done, len(skipped), failed)
    return 1 if failed else 0


def _run(
    jobs: Sequence[tuple[Path, str]],
    predictor: Predictor,
    results: Results,
    alpha: float,
    fields: dict[str, Any],
    done: dict[str, list[ClassShare]],
    failed: list[tuple[Path, str]],
) -> None:
    palette = palette_for(predictor.model.config)
    next_summary = time.monotonic() + _SECONDS_BETWEEN_SUMMARIES
    for path, name in tqdm(jobs, desc="segment", unit="image", disable=None):
        try:
            image = read_image(path)
        except Exception as error:  # decoders of damaged files raise anything
            failed.append((path, first_line(error)))
            continue
        try:
            label_map = predictor(image)
        except (ValueError, RuntimeError) as error:
            failed.append((path, describe_failure(error)))
            continue
        shares = class_shares(label_map, predictor.id2label, ignore_index=None)
        picture = add_legend(overlay(image, label_map, palette, alpha, ignore_index=None), shares, palette)
        results.write(name, path, picture, label_image(label_map, palette), shares, **fields)
        done[name] = shares
        if time.monotonic() > next_summary:
            results.write_summary(failed)
            next_summary = time.monotonic() + _SECONDS_BETWEEN_SUMMARIES


def _report(
    results: Results, done: dict[str, list[ClassShare]], num_skipped: int, failed: list[tuple[Path, str]]
) -> None:
    names = list(done)
    width = max((len(name) for name in names[:_MAX_ROWS]), default=0)
    for name in names[:_MAX_ROWS]:
        largest = ", ".join(f"{share.name} {share.percent}" for share in done[name][:4])
        print(f"{name:<{width}}  {largest}{', ...' if len(done[name]) > 4 else ''}")
    if len(names) > _MAX_ROWS:
        print(f"... and {len(names) - _MAX_ROWS} more images, see {SUMMARY}")
    if len(names) > 1:
        shares = [share for shares in done.values() for share in shares]
        pixels: Counter[str] = Counter()
        for share in shares:
            pixels[share.name] += share.pixels
        print_totals(pixels, Counter(share.name for share in shares))
    counted = f"{len(names)} segmented" + (f", {num_skipped} skipped (already there)" if num_skipped else "")
    print(f"{counted}; overlays, label maps and {SUMMARY} are in {results.folder}")
    for path, message in failed:
        print(f"error: {path}: {message}", file=sys.stderr)
    if failed:
        print(f"error: {len(failed)} of {len(names) + len(failed)} images could not be segmented.", file=sys.stderr)


def print_totals(pixels: Counter[str], num_images: Counter[str]) -> None:
    """Prints, for each class, its share of all pixels and in how many images it is."""
    totals = [ClassShare(-1, name, number, number / pixels.total()) for name, number in pixels.most_common()]
    width = max(len(total.name) for total in totals[:_MAX_ROWS])
    print(f"\n{'class':<{width}}  {'share':>7}  images")
    for total in totals[:_MAX_ROWS]:
        print(f"{total.name:<{width}}  {total.percent:>7}  {num_images[total.name]:>6}")
    if len(totals) > _MAX_ROWS:
        print(f"... and {len(totals) - _MAX_ROWS} more classes, see {SUMMARY}")
    print()
