# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""How benchmarks lie on disk: which label map belongs to which image, and which class a value in it is."""

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

# Cityscapes' ids in `*_labelIds.png` of the 19 classes that are evaluated, in their order; all other ids are void.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CITYSCAPES_TRAIN_IDS: dict[int, int | None] = dict.fromkeys(range(-1, 34)) | {
    label_id: index for index, label_id in enumerate(_CITYSCAPES_IDS)
}

# The 59 of Pascal Context's 459 categories that are evaluated; in the order of their ids, which is that of their names.
_PASCAL_CONTEXT_IDS = (
    *(
        2,
        9,
        18,
        19,
        22,
        23,
        25,
        31,
        33,
        34,
        44,
        45,
        46,
        59,
        65,
        68,
        72,
        80,
        85,
        98,
        104,
        105,
        113,
        115,
        144,
        158,
        159,
        162,
    ),
    *(
        187,
        189,
        207,
        220,
        232,
        258,
        259,
        260,
        284,
        295,
        296,
        308,
        324,
        326,
        347,
        349,
        354,
        355,
        360,
        366,
        368,
        397,
        415,
        416,
    ),
    *(420, 424, 427, 440, 445, 454, 458),
)

# COCO-Stuff counts to 182; these ids were never used.
_COCO_STUFF_GAPS = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91})
_COCO_STUFF_CLASSES: dict[int, int | None] = {0: None} | {
    label_id: index
    for index, label_id in enumerate(label_id for label_id in range(1, 183) if label_id not in _COCO_STUFF_GAPS)
}

# Names of the same split
_SAME_SPLITS = (("train", "training"), ("val", "validation", "valid"), ("test", "testing"))


@dataclass
class Pair:
    """An image and its label map."""

    name: str
    image: Path | None
    """None where it is missing."""
    label: Path | dict[str, Any] | None
    """A file, or `size (height, width)` and `segments` as [`DetailSegments`] has them; None where it is missing."""


@dataclass
class SplitFiles:
    """The files of one split."""

    pairs: list[Pair]
    mapping: dict[int, int | None] | None = None
    """Class of each value in the label maps, None for what does not count; unset where values are classes already."""
    ambiguous: list[str] = field(default_factory=list)
    """Names that several images or several label maps have."""


class Layout:
    """
    How a data set lies in a folder. Subclasses say what the files are called.

    Args:
        folder (`str` or `Path`): The data set's root, or a folder around it.

    Raises:
        ValueError: if the files in `folder` lie otherwise.
    """

    name: ClassVar[str]
    labels: ClassVar[str | None] = None
    """Its names in [`hf_segmodels.labels`]."""
    do_reduce_labels: ClassVar[bool] = False
    """Whether 0 in its label maps is "other" and left to the image processor to reduce."""
    expected: ClassVar[str]
    """What has to lie in the folder, for messages."""
    places: ClassVar[Sequence[str]] = (".",)
    """Where the root may be inside the folder that is given."""

    def __init__(self, folder: str | Path):
        folder = Path(folder).expanduser()
        roots = [folder / place for place in self.places if self.is_at(folder / place)]
        if not roots:
            raise ValueError(f"{folder} has not the layout {self.name!r}: it needs {self.expected}.")
        self.root = roots[0]

    @classmethod
    def is_at(cls, root: Path) -> bool:
        """Whether `root` holds what this layout expects."""
        raise NotImplementedError

    @classmethod
    def is_recognized(cls, folder: Path) -> bool:
        """Whether `folder` has this layout and hardly any other."""
        return any(cls.is_at(folder / place) for place in cls.places)

    @property
    def num_labels(self) -> int | None:
        """Number of classes, where the layout says it."""
        return len(load_labels(self.labels)[0]) if self.labels else None

    def splits(self) -> list[str]:
        """Names of the splits that are there."""
        raise NotImplementedError

    def files(self, split: str) -> SplitFiles:
        """The files of a split, one of `splits()`."""
        raise NotImplementedError

    def find_split(self, split: str) -> str:
        """
        The split that `split` names; `validation` also finds `val`, and so on.

        Raises:
            ValueError: if there is none; names those there are.
        """
        splits = self.splits()
        same = next((names for names in _SAME_SPLITS if split in names), ())
        for name in (split, *same):
            if name in splits:
                return name
        raise ValueError(f"{self.root} has no split {split!r}: choose one of {', '.join(splits) or 'none'}.")


class ADE20K(Layout):
    """The scene parsing challenge's `ADEChallengeData2016`: 0 is "other", 1 to 150 are the classes."""

    name = "ade20k"
    labels = "ade20k"
    do_reduce_labels = True
    expected = "`images/SPLIT/` and `annotations/SPLIT/`, as in `ADEChallengeData2016`"
    places = (".", "ADEChallengeData2016")

    @classmethod
    def is_at(cls, root: Path) -> bool:
        return bool(_common_folders(root / "images", root / "annotations"))

    @classmethod
    def is_recognized(cls, folder: Path) -> bool:
        roots = [folder / place for place in cls.places if cls.is_at(folder / place)]
        return any(
            (root / "objectInfo150.txt").is_file() or root.resolve().name == "ADEChallengeData2016" for root in roots
        )

    def splits(self) -> list[str]:
        return _common_folders(self.root / "images", self.root / "annotations")

    def files(self, split: str) -> SplitFiles:
        return _match(image_files(self.root / "images" / split), image_files(self.root / "annotations" / split))


class Cityscapes(Layout):
    """
    Cityscapes' `leftImg8bit` and `gtFine`. `*_labelTrainIds.png` are read where every image has one, otherwise
    `*_labelIds.png`, whose ids become the 19 classes that are evaluated.
    """

    name = "cityscapes"
    labels = "cityscapes"
    expected = "`leftImg8bit/SPLIT/CITY/*_leftImg8bit.png` and `gtFine/SPLIT/CITY/*_gtFine_labelIds.png`"
    places = (".", "cityscapes")

    @classmethod
    def is_at(cls, root: Path) -> bool:
        return bool(_common_folders(root / "leftImg8bit", root / "gtFine"))

    def splits(self) -> list[str]:
        return _common_folders(self.root / "leftImg8bit", self.root / "gtFine")

    def files(self, split: str) -> SplitFiles:
        images = image_files(self.root / "leftImg8bit" / split, "_leftImg8bit.png")
        labels = self.root / "gtFine" / split
        train_ids = image_files(labels, "_gtFine_labelTrainIds.png")
        if train_ids and {name for name, _ in images} <= {name for name, _ in train_ids}:
            return _match(images, train_ids)
        return _match(images, image_files(labels, "_gtFine_labelIds.png"), CITYSCAPES_TRAIN_IDS)


class PascalContext60(Layout):
    """
    Pascal Context with background as class 0: mmsegmentation's prepared label maps (`SegmentationClassContext` and lists
    in `ImageSets/SegmentationContext`), otherwise the segments in Detail's `trainval_merged.json`.
    """

    name = "pascal_context_60"
    labels = "pascal_context_60"
    expected = (
        "`JPEGImages/`, and `SegmentationClassContext/` with `ImageSets/SegmentationContext/*.txt` or "
        "`trainval_merged.json`, as in `VOCdevkit/VOC2010`"
    )
    places = (".", "VOC2010", "VOCdevkit/VOC2010")

    @classmethod
    def is_at(cls, root: Path) -> bool:
        has_labels = cls._lists(root) or (root / "trainval_merged.json").is_file()
        return (root / "JPEGImages").is_dir() and bool(has_labels)

    @staticmethod
    def _lists(root: Path) -> dict[str, Path]:
        """The lists of the splits, where label maps are prepared."""
        if not (root / "SegmentationClassContext").is_dir():
            return {}
        return {path.stem: path for path in sorted((root / "ImageSets" / "SegmentationContext").glob("*.txt"))}

    def splits(self) -> list[str]:
        return list(self._lists(self.root)) or ["train", "val"]

    def files(self, split: str) -> SplitFiles:
        # background is category 0 in both forms
        if lists := self._lists(self.root):
            pairs = [
                Pair(
                    name,
                    _if_there(self.root / "JPEGImages" / f"{name}.jpg"),
                    _if_there(self.root / "SegmentationClassContext" / f"{name}.png"),
                )
                for name in _names(lists[split])
            ]
            return SplitFiles(pairs, self._classes(range(1, 60)) | {255: None})
        pairs = read_detail(self.root / "trainval_merged.json", split, self.root / "JPEGImages")
        return SplitFiles(pairs, self._classes(_PASCAL_CONTEXT_IDS))

    @staticmethod
    def _classes(categories: Iterable[int]) -> dict[int, int | None]:
        return dict(zip((0, *categories), range(60), strict=True))


class PascalContext59(PascalContext60):
    """The same without background, which does not count."""

    name = "pascal_context_59"
    labels = "pascal_context_59"

    @staticmethod
    def _classes(categories: Iterable[int]) -> dict[int, int | None]:
        return {0: None} | {category: index for index, category in enumerate(categories)}


class CocoStuff10k(Layout):
    """
    COCO-Stuff 10K: the label maps that mmsegmentation prepares (`annotations/train2014/*_labelTrainIds.png`), otherwise
    the originals (`annotations/*.mat`, read with SciPy) by the lists in `imageLists/`. 182 ids become 171 classes.
    """

    name = "coco_stuff_10k"
    labels = "coco_stuff_171"
    expected = (
        "`images/*.jpg`, `annotations/*.mat` and `imageLists/*.txt`, or mmsegmentation's `annotations/train2014/`"
    )
    places = (".", "cocostuff-10k-v1.1", "coco_stuff10k")

    @classmethod
    def is_at(cls, root: Path) -> bool:
        has_folders = (root / "images").is_dir() and (root / "annotations").is_dir()
        return has_folders and bool(cls._prepared(root) or (root / "imageLists").is_dir())

    @staticmethod
    def _prepared(root: Path) -> list[str]:
        folders = _common_folders(root / "images", root / "annotations")
        return [name.removesuffix("2014") for name in folders if name.endswith("2014")]

    def splits(self) -> list[str]:
        return self._prepared(self.root) or [path.stem for path in sorted((self.root / "imageLists").glob("*.txt"))]

    def files(self, split: str) -> SplitFiles:
        images, labels = self.root / "images", self.root / "annotations"
        if self._prepared(self.root):
            shifted: dict[int, int | None] = {0: None, 255: None} | {value: value - 1 for value in range(1, 172)}
            label_files = image_files(labels / f"{split}2014", "_labelTrainIds.png")
            return _match(image_files(images / f"{split}2014"), label_files, shifted)
        names = _names(self.root / "imageLists" / f"{split}.txt")
        pairs = [Pair(name, _if_there(images / f"{name}.jpg"), _if_there(labels / f"{name}.mat")) for name in names]
        return SplitFiles(pairs, _COCO_STUFF_CLASSES)


class ImageFolders(Layout):
    """
    One's own folder: `images/` and `labels/` (or `annotations/`, `masks/`), whose files have the same names but for the
    suffix. Splits are folders inside both (`images/train`, `labels/train`) or around them (`train/images`,
    `train/labels`); without any, all files are the split `train`.
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
        inner = [name for name in _common_folders(*folders) if any(name in names for names in _SAME_SPLITS)]
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
    """
    The layout called `name` in `folder`.

    Raises:
        ValueError: if there is no such layout, or the files lie otherwise.
    """
    if name not in LAYOUTS:
        raise ValueError(f"There is no layout {name!r}: choose one of {', '.join(LAYOUTS)}.")
    return LAYOUTS[name](folder)


def detect_layouts(folder: str | Path) -> list[str]:
    """The layouts that `folder` may have: none, one, or both of Pascal Context."""
    folder = Path(folder).expanduser()
    found = [name for name, layout in LAYOUTS.items() if layout.is_recognized(folder)]
    # several benchmarks have a folder of images beside one of annotations
    return [name for name in found if name != ImageFolders.name] or found


def read_detail(path: Path, split: str, images: Path) -> list[Pair]:
    """
    Reads the segments of Pascal in Detail.

    Args:
        path (`Path`): `trainval_merged.json`: `images` with `phase`, `file_name`, `height` and `width`, and
            `annos_segmentation` with `image_id`, `category_id` and a compressed run-length `segmentation`.
        split (`str`): The phase.
        images (`Path`): Folder of the images.

    Returns:
        `list[Pair]`: with `size (height, width)` and `segments` as labels: pairs of category and run lengths, of which a
        later one lies over the earlier ones.
    """
    data = json.loads(path.read_text(encoding="utf-8"))
    entries = {entry["image_id"]: entry for entry in data["images"] if entry["phase"] == split}
    segments = defaultdict(list)
    for segment in data["annos_segmentation"]:
        if segment["image_id"] in entries:
            segments[segment["image_id"]].append((segment["category_id"], segment["segmentation"]["counts"]))
    return [
        Pair(
            Path(entry["file_name"]).stem,
            _if_there(images / entry["file_name"]),
            {"size": (entry["height"], entry["width"]), "segments": segments[image_id]},
        )
        for image_id, entry in entries.items()
    ]


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _common_folders(first: Path, second: Path) -> list[str]:
    """Names of the folders that are in both."""
    others = {path.name for path in _folders(second)}
    return [path.name for path in _folders(first) if path.name in others]


def _if_there(path: Path) -> Path | None:
    return path if path.is_file() else None


def _names(path: Path) -> list[str]:
    """The lines of a list of images."""
    return path.read_text(encoding="utf-8").split()


def image_files(folder: Path, ending: str = "") -> list[tuple[str, Path]]:
    """Image files in `folder` and below, with their names there, less `ending` or, where that is unset, their suffix."""
    found = []
    # not `rglob`, which passes over links to folders
    paths = (Path(place, name) for place, _, names in os.walk(folder, followlinks=True) for name in names)
    for path in sorted(paths):
        place = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in place.parts)
        if path.name.endswith(ending) and path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden:
            found.append((place.as_posix().removesuffix(ending or path.suffix), path))
    return found


def _match(
    images: Iterable[tuple[str, Path]],
    labels: Iterable[tuple[str, Path]],
    mapping: dict[int, int | None] | None = None,
) -> SplitFiles:
    """Pairs files by their names."""
    found: dict[str, tuple[list[Path], list[Path]]] = {}
    for side, files in enumerate((images, labels)):
        for name, path in files:
            found.setdefault(name, ([], []))[side].append(path)
    pairs = [Pair(name, *(paths[0] if paths else None for paths in sides)) for name, sides in sorted(found.items())]
    return SplitFiles(pairs, mapping, [name for name, sides in found.items() if max(map(len, sides)) > 1])


__all__ = [
    "CITYSCAPES_TRAIN_IDS",
    "IMAGE_SUFFIXES",
    "LAYOUTS",
    "Layout",
    "Pair",
    "SplitFiles",
    "detect_layouts",
    "find_layout",
    "image_files",
    "read_detail",
]
