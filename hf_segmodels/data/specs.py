# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Frozen descriptions of a data set and of its labels. Every function that reads data takes these."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class DatasetSpec:
    """
    Location of a data set and the way to read it.

    Args:
        source (`str` or `Path`):
            Folder of a native layout. Without a layout: anything that `datasets.load_dataset` takes, such as a folder
            with parquet files or a Hub repository.
        layout (`str`, *optional*):
            Native layout of the files, one of [`LAYOUTS`]: `"ade20k"`, `"cityscapes"`, `"pascal_context_59"`,
            `"pascal_context_60"`, `"coco_stuff_10k"` or `"folder"` (`images/` and `labels/`). Defaults to
            `datasets.load_dataset`.
        image_column (`str`, *optional*, defaults to `"image"`): Column of the images. Native layouts ignore it.
        label_column (`str`, *optional*, defaults to `"label"`): Column of the label maps. Native layouts ignore it.
        label_mapping (`Mapping[int, int | None]` or `str`, *optional*):
            Class of each value in the label maps, with None for void values, or the path of a JSON file with such a
            mapping. Applied before `do_reduce_labels`. Defaults to the mapping of the layout.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether to read the samples one after another, without a length and without random access.
    """

    source: str | Path
    layout: str | None = None
    image_column: str = "image"
    label_column: str = "label"
    label_mapping: Mapping[int, int | None] | str | None = None
    streaming: bool = False


@dataclass(frozen=True)
class LabelSpec:
    """
    Meaning of the labels that a model is trained on.

    Args:
        num_labels (`int`, *optional*): Number of classes. Labels are not validated where it is unknown.
        id2label (`Mapping[int, str]`, *optional*): Class names.
        ignore_index (`int`, *optional*, defaults to 255): Label of pixels that are ignored.
        do_reduce_labels (`bool`, *optional*, defaults to `False`):
            Whether 0 in the label maps means "unlabeled" and classes start at 1.
    """

    num_labels: int | None = None
    id2label: Mapping[int, str] | None = None
    ignore_index: int = 255
    do_reduce_labels: bool = False

    @classmethod
    def from_processor(cls, processor: Any) -> "LabelSpec":
        """The labels that an image processor produces."""
        return cls(
            processor.num_labels, ignore_index=processor.ignore_index, do_reduce_labels=bool(processor.do_reduce_labels)
        )

    @property
    def class_names(self) -> list[str]:
        """Name of each class, `"class 3"` where `id2label` has none."""
        return [(self.id2label or {}).get(index, f"class {index}") for index in range(self.num_labels or 0)]

    def reduce(self, label: int) -> int:
        """The label after the reduction, if there is one."""
        if not self.do_reduce_labels:
            return label
        return self.ignore_index if label in (0, self.ignore_index) else label - 1

    def is_class(self, label: int) -> bool:
        """Whether a (reduced) label is one of the classes."""
        return 0 <= label < (self.num_labels or 0) and label != self.ignore_index


def as_dataset_spec(dataset: DatasetSpec | str | Path) -> DatasetSpec:
    """`dataset`, or the specification of a source without options."""
    return dataset if isinstance(dataset, DatasetSpec) else DatasetSpec(dataset)
