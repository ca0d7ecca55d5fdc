# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Native layouts of data sets: which label map belongs to which image, and which class each value stands for."""

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ..labels import load_labels


IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)

# Ids in Cityscapes' `*_labelIds.png` of the 19 evaluated classes, in the order of the classes. All other ids are void.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CITYSCAPES_TRAIN_IDS: dict[int, int | None] = dict.fromkeys(range(-1, 34)) | {
    label_id: index for index, label_id in enumerate(_CITYSCAPES_IDS)
}

# Ids of the 59 evaluated categories of Pascal Context's 459, in the order of the classes.
# fmt: off
_PASCAL_CONTEXT_IDS = (
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144, 158, 159,
    162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355, 360, 366, 368,
    397, 415, 416, 420, 424, 427, 440, 445, 454, 458,
)
# fmt: on

# COCO-Stuff's ids go up to 182, but these are unused.
_COCO_STUFF_GAPS = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91})
_COCO_STUFF_CLASSES: dict[int, int | None] = {0: None} | {
    label_id: index
    for index, label_id in enumerate(label_id for label_id in range(1, 183) if label_id not in _COCO_STUFF_GAPS)
}

_SPLIT_ALIASES = (("train", "training"), ("val", "validation", "valid"), ("test", "testing"))


@dataclass
class Pair:
    """An image and its label map, None where one is missing."""

    name: str
    image: Path | None
    label: Path | dict[str, Any] | None
    """A file, or `size (height, width)` and `segments` of Pascal in Detail: each a category and compressed run lengths. Later
    segments cover earlier ones."""


@dataclass
class SplitFiles:
    """The files of one split."""

    pairs: list[Pair]
    mapping: dict[int, int | None] | None = None
    """Class of each value in the label maps, None for void values. Without a mapping, the values are the classes."""
    ambiguous: list[str] = field(default_factory=list)
    """Names that several images or several label maps share."""

    @property
    def missing_labels(self) -> list[str]:
        """Names of images without a label map."""
        return [pair.name for pair in self.pairs if pair.label is None]

    @property
    def missing_images(self) -> list[str]:
        """Names of label maps without an image."""
        return [pair.name for pair in self.pairs if pair.image is None]


class Layout:
    """
    Base class of the native layouts. Subclasses define where the files are and how they are named. `folder` is the root of the data
    set or contains it; one without this layout raises a `ValueError`.
    """

    name: ClassVar[str]
    labels: ClassVar[str | None] = None
    """Name of the classes in [`hf_segmodels.labels`]."""
    do_reduce_labels: ClassVar[bool] = False
    """Whether 0 in the label maps means "other", so that the image processor has to reduce labels."""
    expected: ClassVar[str]
    """Required content of the folder, for error messages."""
    subfolders: ClassVar[Sequence[str]] = (".",)
    """Possible locations of the root in the given folder."""
    split_parents: ClassVar[tuple[str, str]] = ("images", "annotations")
    """Folders of images and of label maps. The splits are the folders that both contain, unless a subclass differs."""

    def __init__(self, folder: str | Path):
        roots = self.roots(Path(folder).expanduser())
        if not roots:
            raise ValueError(f"{folder} does not have the layout {self.name!r}: it needs {self.expected}.")
        self.root = roots[0]

    @classmethod
    def roots(cls, folder: Path) -> list[Path]:
        """Folders in (or equal to) `folder` that have this layout."""
        return [folder / subfolder for subfolder in cls.subfolders if cls.is_at(folder / subfolder)]

    @classmethod
    def is_at(cls, root: Path) -> bool:
        """Whether `root` holds the files that this layout needs."""
        return bool(cls.common_folders(root))

    @classmethod
    def common_folders(cls, root: Path) -> list[str]:
        """Names of the folders that exist with images and with label maps."""
        return _common_folders(*(root / parent for parent in cls.split_parents))

    @classmethod
    def is_recognized(cls, folder: Path) -> bool:
        """Whether `folder` most likely has this layout."""
        return bool(cls.roots(folder))

    @property
    def num_labels(self) -> int | None:
        """Number of classes, None if the layout does not define it."""
        return len(load_labels(self.labels)[0]) if self.labels else None

    def splits(self) -> list[str]:
        """Names of the available splits."""
        return self.common_folders(self.root)

    def files(self, split: str) -> SplitFiles:
        """The files of one of `splits()`."""
        raise NotImplementedError

    def find_split(self, split: str) -> str:
        """Name of a split in this layout: `validation` also finds `val`. Raises a `ValueError` if it does not exist."""
        splits = self.splits()
        aliases = next((names for names in _SPLIT_ALIASES if split in names), ())
        for name in (split, *aliases):
            if name in splits:
                return name
        raise ValueError(f"{self.root} has no split {split!r}: choose one of {', '.join(splits) or 'none'}.")


class ADE20K(Layout):
    """The scene parsing challenge's `ADEChallengeData2016`: 0 is "other", 1 to 150 are the classes."""

    name = "ade20k"
    labels = "ade20k"
    do_reduce_labels = True
    expected = "`images/SPLIT/` and `annotations/SPLIT/`, as in `ADEChallengeData2016`"
    subfolders = (".", "ADEChallengeData2016")

    @classmethod
    def is_recognized(cls, folder: Path) -> bool:
        return any(
            (root / "objectInfo150.txt").is_file() or root.resolve().name == "ADEChallengeData2016"
            for root in cls.roots(folder)
        )

    def files(self, split: str) -> SplitFiles:
        return _match(image_files(self.root / "images" / split), image_files(self.root / "annotations" / split))


class Cityscapes(Layout):
    """
    Cityscapes' `leftImg8bit` and `gtFine`. Reads `*_labelTrainIds.png` if every image has one, otherwise
    `*_labelIds.png`, whose ids are mapped to the 19 evaluated classes.
    """

    name = "cityscapes"
    labels = "cityscapes"
    expected = "`leftImg8bit/SPLIT/CITY/*_leftImg8bit.png` and `gtFine/SPLIT/CITY/*_gtFine_labelIds.png`"
    subfolders = (".", "cityscapes")
    split_parents = ("leftImg8bit", "gtFine")

    def files(self, split: str) -> SplitFiles:
        images = image_files(self.root / "leftImg8bit" / split, "_leftImg8bit.png")
        labels = self.root / "gtFine" / split
        train_ids = image_files(labels, "_gtFine_labelTrainIds.png")
        if train_ids and {name for name, _ in images} <= {name for name, _ in train_ids}:
            return _match(images, train_ids)
        return _match(images, image_files(labels, "_gtFine_labelIds.png"), CITYSCAPES_TRAIN_IDS)


class PascalContext60(Layout):
    """
    Pascal Context with background as class 0. Reads mmsegmentation's prepared label maps (`SegmentationClassContext`
    and lists in `ImageSets/SegmentationContext`) if they exist, otherwise the segments in Detail's
    `trainval_merged.json`.
    """

    name = "pascal_context_60"
    labels = "pascal_context_60"
    expected = (
        "`JPEGImages/`, and `SegmentationClassContext/` with `ImageSets/SegmentationContext/*.txt` or "
        "`trainval_merged.json`, as in `VOCdevkit/VOC2010`"
    )
    subfolders = (".", "VOC2010", "VOCdevkit/VOC2010")

    @classmethod
    def is_at(cls, root: Path) -> bool:
        has_labels = cls._lists(root) or (root / "trainval_merged.json").is_file()
        return (root / "JPEGImages").is_dir() and bool(has_labels)

    @staticmethod
    def _lists(root: Path) -> dict[str, Path]:
        """The lists of the splits of prepared label maps."""
        if not (root / "SegmentationClassContext").is_dir():
            return {}
        return {path.stem: path for path in sorted((root / "ImageSets" / "SegmentationContext").glob("*.txt"))}

    def splits(self) -> list[str]:
        return list(self._lists(self.root)) or ["train", "val"]

    def files(self, split: str) -> SplitFiles:
        # background is category 0 in both forms
        images, labels = self.root / "JPEGImages", self.root / "SegmentationClassContext"
        if lists := self._lists(self.root):
            pairs = _listed_pairs(lists[split], images, labels, ".png")
            return SplitFiles(pairs, self._classes(range(1, 60)) | {255: None})
        data = json.loads((self.root / "trainval_merged.json").read_text(encoding="utf-8"))
        segments = defaultdict(list)
        for segment in data["annos_segmentation"]:
            segments[segment["image_id"]].append((segment["category_id"], segment["segmentation"]["counts"]))
        pairs = []
        for entry in data["images"]:
            if entry["phase"] == split:
                name = Path(entry["file_name"])
                label = {"size": (entry["height"], entry["width"]), "segments": segments[entry["image_id"]]}
                pairs.append(Pair(name.stem, _existing(images / name), label))
        return SplitFiles(pairs, self._classes(_PASCAL_CONTEXT_IDS))

    @staticmethod
    def _classes(categories: Iterable[int]) -> dict[int, int | None]:
        return dict(zip((0, *categories), range(60), strict=True))


class PascalContext59(PascalContext60):
    """Pascal Context with background as void."""

    name = "pascal_context_59"
    labels = "pascal_context_59"

    @staticmethod
    def _classes(categories: Iterable[int]) -> dict[int, int | None]:
        return {0: None} | {category: index for index, category in enumerate(categories)}


class CocoStuff10k(Layout):
    """
    COCO-Stuff 10K. Reads mmsegmentation's prepared label maps (`annotations/train2014/*_labelTrainIds.png`) if they
    exist, otherwise the originals (`annotations/*.mat`, which need SciPy) by the lists in `imageLists/`. 182 ids are
    mapped to 171 classes.
    """

    name = "coco_stuff_10k"
    labels = "coco_stuff_171"
    expected = (
        "`images/*.jpg`, `annotations/*.mat` and `imageLists/*.txt`, or mmsegmentation's `annotations/train2014/`"
    )
    subfolders = (".", "cocostuff-10k-v1.1", "coco_stuff10k")

    @classmethod
    def is_at(cls, root: Path) -> bool:
        has_folders = (root / "images").is_dir() and (root / "annotations").is_dir()
        return has_folders and bool(cls._prepared(root) or (root / "imageLists").is_dir())

    @classmethod
    def _prepared(cls, root: Path) -> list[str]:
        return [name.removesuffix("2014") for name in cls.common_folders(root) if name.endswith("2014")]

    def splits(self) -> list[str]:
        return self._prepared(self.root) or [path.stem for path in sorted((self.root / "imageLists").glob("*.txt"))]

    def files(self, split: str) -> SplitFiles:
        images, labels = self.root / "images", self.root / "annotations"
        if self._prepared(self.root):
            shifted: dict[int, int | None] = {0: None, 255: None} | {value: value - 1 for value in range(1, 172)}
            label_files = image_files(labels / f"{split}2014", "_labelTrainIds.png")
            return _match(image_files(images / f"{split}2014"), label_files, shifted)
        pairs = _listed_pairs(self.root / "imageLists" / f"{split}.txt", images, labels, ".mat")
        return SplitFiles(pairs, _COCO_STUFF_CLASSES)


class ImageFolders(Layout):
    """
    A custom data set: `images/` and `labels/` (or `annotations/`, `masks/`) with files of the same names, suffixes
    aside. Splits are folders inside both (`images/train`, `labels/train`) or around them (`train/images`,
    `train/labels`). Without such folders, all files are the split `train`.
    """

    name = "folder"
    expected = "`images/` and `labels/` with files of the same names, or these two in a folder for each split"
    label_folders = ("labels", "annotations", "masks")

    @classmethod
    def is_at(cls, root: Path) -> bool:
        return bool(cls._folders(root) or cls._outer_splits(root))

    @classmethod
    def _folders(cls, root: Path) -> tuple[Path, Path] | None:
        """The folders of images and of label maps in `root`."""
        labels = [root / name for name in cls.label_folders if (root / name).is_dir()]
        return (root / "images", labels[0]) if labels and (root / "images").is_dir() else None

    @classmethod
    def _outer_splits(cls, root: Path) -> list[str]:
        return [path.name for path in _folders(root) if cls._folders(path)]

    def splits(self) -> list[str]:
        folders = self._folders(self.root)
        if folders is None:
            return self._outer_splits(self.root)
        inner = [name for name in _common_folders(*folders) if any(name in names for names in _SPLIT_ALIASES)]
        return inner or ["train"]

    def files(self, split: str) -> SplitFiles:
        folders = self._folders(self.root) or self._folders(self.root / split)
        assert folders is not None
        images, labels = folders
        if (images / split).is_dir() and (labels / split).is_dir():
            images, labels = images / split, labels / split
        return _match(image_files(images), image_files(labels))


LAYOUTS: dict[str, type[Layout]] = {
    layout.name: layout for layout in (ADE20K, Cityscapes, PascalContext59, PascalContext60, CocoStuff10k, ImageFolders)
}


def find_layout(name: str, folder: str | Path) -> Layout:
    """The layout called `name` in `folder`. Raises a `ValueError` if it is unknown or `folder` does not have it."""
    if name not in LAYOUTS:
        raise ValueError(f"There is no layout {name!r}: choose one of {', '.join(LAYOUTS)}.")
    return LAYOUTS[name](folder)


def detect_layouts(folder: str | Path) -> list[str]:
    """Names of the layouts that `folder` may have. Pascal Context gives two."""
    folder = Path(folder).expanduser()
    found = [name for name, layout in LAYOUTS.items() if layout.is_recognized(folder)]
    # several benchmarks also have a folder of images next to a folder of annotations
    return [name for name in found if name != ImageFolders.name] or found


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _common_folders(first: Path, second: Path) -> list[str]:
    """Names of the folders that exist in both."""
    others = {path.name for path in _folders(second)}
    return [path.name for path in _folders(first) if path.name in others]


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None


def _listed_pairs(names: Path, images: Path, labels: Path, label_suffix: str) -> list[Pair]:
    """Pairs of the image names in a text file."""
    return [
        Pair(name, _existing(images / f"{name}.jpg"), _existing(labels / f"{name}{label_suffix}"))
        for name in names.read_text(encoding="utf-8").split()
    ]


def image_files(folder: Path, ending: str = "") -> list[tuple[str, Path]]:
    """
    Find the image files in `folder` and its subfolders, hidden files excluded, whose names have this `ending`. Returns for each
    file its path in `folder` without `ending` (or the suffix), and the file.
    """
    # `rglob` does not follow links to folders
    paths = (Path(parent, name) for parent, _, names in os.walk(folder, followlinks=True) for name in names)
    return [
        (path.relative_to(folder).as_posix().removesuffix(ending or path.suffix), path)
        for path in sorted(paths)
        if path.name.endswith(ending) and path.suffix.lower() in IMAGE_SUFFIXES
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _match(
    images: Iterable[tuple[str, Path]],
    labels: Iterable[tuple[str, Path]],
    mapping: dict[int, int | None] | None = None,
) -> SplitFiles:
    """Pair images and label maps by name."""
    found: dict[str, tuple[list[Path], list[Path]]] = {}
    for side, files in enumerate((images, labels)):
        for name, path in files:
            found.setdefault(name, ([], []))[side].append(path)
    pairs = [Pair(name, *(paths[0] if paths else None for paths in sides)) for name, sides in sorted(found.items())]
    return SplitFiles(pairs, mapping, [name for name, sides in found.items() if max(map(len, sides)) > 1])
