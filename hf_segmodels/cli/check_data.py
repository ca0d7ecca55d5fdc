# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""The command `hf-segmodels check-data`."""

import json
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..data import ISSUES, DatasetSpec, LabelSpec, check_data
from ..data.detection import detect_dataset, detect_labels, find_splits
from ..data.loading import import_datasets
from ..utils.errors import UserError, first_line


def check_data_command(
    source: str,
    *,
    splits: Sequence[str] | None = None,
    json_path: Path | None = None,
    allowed: Sequence[str] = (),
    strict: bool = False,
    num_workers: int | None = None,
    max_samples: int | None = None,
    **options: Any,
) -> int:
    """
    Check the labels of a data set and print the report.

    Args:
        source (`str`): A recipe (`.yaml`), a folder, or a repository on the Hub.
        splits (`Sequence[str]`, *optional*): Names of the splits. Defaults to the splits of the recipe, or all.
        json_path (`Path`, *optional*): File for the whole report.
        allowed (`Sequence[str]`, *optional*): Names of issues that do not count.
        strict (`bool`, *optional*, defaults to `False`): Whether warnings count.
        num_workers, max_samples: See [`check_data`].
        options: Fields of [`DatasetSpec`] and [`LabelSpec`]. None stands for the value of the recipe or the data set.

    Returns:
        `int`: 0, or 1 if label issues were found.

    Raises:
        UserError: if the arguments are invalid or the data cannot be read.
    """
    unknown = sorted(set(allowed) - set(ISSUES))
    if unknown:
        raise UserError(f"--allow {', '.join(unknown)}: choose label issues among {', '.join(ISSUES)}.")
    if json_path is not None and not json_path.resolve().parent.is_dir():
        raise UserError(f"there is no folder {json_path.resolve().parent} for {json_path.name}: create it first.")
    options = {name: value for name, value in options.items() if value is not None}
    dataset_options, label_options = (
        {field.name: options[field.name] for field in fields(spec) if field.name in options}
        for spec in (DatasetSpec, LabelSpec)
    )
    errors: tuple[type[Exception], ...] = (ValueError, OSError, ImportError, BrokenProcessPool)
    try:
        errors = (*errors, import_datasets().exceptions.DatasetsError)
        if source.endswith((".yaml", ".yml")):
            from ..training.recipe import Recipe

            recipe = Recipe.read(source)
            dataset, labels = replace(recipe.dataset_spec, **dataset_options), recipe.label_spec()
            if "num_labels" in label_options:
                label_options["id2label"] = None
            labels = replace(labels, **label_options)
            splits = splits or recipe.splits
        else:
            dataset = detect_dataset(DatasetSpec(source, **dataset_options))
            labels = detect_labels(dataset, **label_options)
            splits = splits or find_splits(dataset)
        report = check_data(
            dataset,
            splits,
            labels,
            num_workers=num_workers,
            max_samples=max_samples,
            progress=sys.stderr.isatty(),
        )
        if json_path is not None:
            json_path.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    except errors as error:
        raise UserError(f"cannot check {source}: {first_line(error)}") from error
    print(f"{report}\n\n{report.summary(allowed, strict)}")
    return int(bool(report.issues(allowed, strict)))


__all__ = ["check_data_command"]
