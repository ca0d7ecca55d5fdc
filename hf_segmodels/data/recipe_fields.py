# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""The fields of a training recipe that say which data is read, and how; without the training scripts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .loading import find_id2label


@dataclass
class DataFields:
    """What a recipe says of its data; see `hf_segmodels/training/recipe.py` for the fields."""

    dataset: str
    num_labels: int
    id2label: Mapping[int, str] | None = None
    splits: list[str] = field(default_factory=lambda: ["train", "validation"])
    layout: str | None = None
    image_column: str = "image"
    label_column: str = "label"
    label_mapping: Any = None
    do_reduce_labels: bool = False
    ignore_index: int = 255
    streaming: bool = False


def read_data_fields(path: str | Path) -> DataFields:
    """
    Reads a recipe's data fields; all others may be there and are not looked at.

    Args:
        path (`str` or `Path`): The YAML file.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is no recipe, or does not say which data or how many classes.
    """
    try:
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML file: {error}") from error
    if not isinstance(recipe, dict) or not recipe.get("dataset"):
        raise ValueError(f"{path} is no recipe: it has to name its data, `dataset: FOLDER`.")
    names = ("layout", "image_column", "label_column", "label_mapping", "streaming")
    fields = {name: recipe[name] for name in names if name in recipe}
    splits = [recipe.get("train_split", "train"), recipe.get("eval_split", "validation")]
    processor = _processor_fields(recipe)
    id2label = find_id2label(recipe["dataset"], recipe.get("id2label"), recipe.get("layout"))
    if id2label is None:
        id2label = _model_id2label(recipe, path)
    return DataFields(
        recipe["dataset"],
        len(id2label),
        id2label,
        list(dict.fromkeys(splits)),
        do_reduce_labels=bool(processor.get("do_reduce_labels")),
        ignore_index=processor.get("ignore_index", 255),
        **fields,
    )


def _processor_fields(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the image processor: the recipe's over those of the model that it starts from."""
    fields = dict(recipe.get("image_processor") or {})
    if recipe.get("pretrained"):
        from transformers.image_processing_utils import BaseImageProcessor

        fields = BaseImageProcessor.get_image_processor_dict(recipe["pretrained"])[0] | fields
    return fields


def _model_id2label(recipe: Mapping[str, Any], path: str | Path) -> dict[int, str]:
    """Class names of the model's configuration."""
    from transformers import AutoConfig

    model = dict(recipe.get("model") or {})
    if not recipe.get("pretrained") and "model_type" not in model:
        raise ValueError(f"{path} does not say how many classes there are: it needs `model` with a `model_type`.")
    config = (
        AutoConfig.from_pretrained(recipe["pretrained"], **model)
        if recipe.get("pretrained")
        else AutoConfig.for_model(**model)
    )
    return {int(index): str(name) for index, name in (config.id2label or {}).items()}


__all__ = ["DataFields", "read_data_fields"]
