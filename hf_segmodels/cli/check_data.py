# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""`hf-segmodels check-data`."""

import argparse
import json
import sys
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..utils.arguments import whole_number
from ..utils.errors import UserError, first_line


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "check-data",
        help="find errors in the labels of a data set",
        description="Reads every label map of a data set and reports sizes, modes, the pixels of each class, and label "
        "issues: values that are not classes, labels shifted by one, masks of 0 and 255, wrong Cityscapes ids, colors, "
        "damaged files, images and label maps that do not match, and others. Each issue has a name and says how to fix it.",
        epilog="Exit code: 0 if there are no label issues, 1 if there are some, 2 if the data cannot be checked.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "source",
        metavar="RECIPE|FOLDER",
        help="a training recipe (.yaml), a folder, or a data set's repository on the Hub",
    )
    parser.add_argument(
        "--split",
        dest="splits",
        nargs="+",
        metavar="NAME",
        help="splits to check (default: those of the recipe, or all)",
    )
    parser.add_argument(
        "--layout",
        help="layout of the files: ade20k, cityscapes, pascal_context_59, pascal_context_60, coco_stuff_10k or folder "
        "(default: from the recipe, or detected)",
    )
    parser.add_argument(
        "--num-labels", type=whole_number(1), metavar="N", help="number of classes (default: from the recipe or layout)"
    )
    parser.add_argument(
        "--label-mapping", metavar="FILE", help="JSON: class of each value in the label maps, null for void"
    )
    parser.add_argument(
        "--reduce-labels",
        dest="do_reduce_labels",
        action=argparse.BooleanOptionalAction,
        help="0 is unlabeled and classes start at 1 (default: from the recipe or layout)",
    )
    parser.add_argument("--ignore-index", type=int, metavar="N", help="label of ignored pixels (default: 255)")
    parser.add_argument("--image-column", metavar="NAME", help="column of images, without a layout (default: image)")
    parser.add_argument(
        "--label-column", metavar="NAME", help="column of label maps, without a layout (default: label)"
    )
    parser.add_argument(
        "--limit",
        dest="max_samples",
        type=whole_number(1),
        metavar="N",
        help="check N label maps, spread over the split",
    )
    parser.add_argument(
        "--num-workers", type=whole_number(1), metavar="N", help="processes that read (default: one per processor)"
    )
    parser.add_argument("--json", dest="json_path", type=Path, metavar="FILE", help="file for the complete report")
    parser.add_argument(
        "--allow", dest="allowed", nargs="+", default=(), metavar="ISSUE", help="names of label issues to ignore"
    )
    parser.add_argument("--strict", action="store_true", help="count warnings as label issues")


def run(arguments: argparse.Namespace) -> int:
    source, json_path, allowed, strict = arguments.source, arguments.json_path, arguments.allowed, arguments.strict
    from ..data import ISSUES, DatasetSpec, LabelSpec, check_data
    from ..data.loading import detect_dataset, detect_labels, find_splits, import_datasets

    unknown = sorted(set(allowed) - set(ISSUES))
    if unknown:
        raise UserError(f"--allow {', '.join(unknown)}: choose label issues among {', '.join(ISSUES)}.")
    if json_path is not None and not json_path.resolve().parent.is_dir():
        raise UserError(f"there is no folder {json_path.resolve().parent} for {json_path.name}: create it first.")
    given = {name: value for name, value in vars(arguments).items() if value is not None and name != "source"}
    dataset_options, label_options = (
        {field.name: given[field.name] for field in fields(spec) if field.name in given}
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
            splits = arguments.splits or recipe.splits
        else:
            dataset = detect_dataset(DatasetSpec(source, **dataset_options))
            labels = detect_labels(dataset, **label_options)
            splits = arguments.splits or find_splits(dataset)
        report = check_data(
            dataset,
            splits,
            labels,
            num_workers=arguments.num_workers,
            max_samples=arguments.max_samples,
            progress=sys.stderr.isatty(),
        )
        if json_path is not None:
            json_path.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    except errors as error:
        raise UserError(f"cannot check {source}: {first_line(error)}") from error
    print(f"{report}\n\n{report.summary(allowed, strict)}")
    return int(bool(report.issues(allowed, strict)))
