# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""`hf-segmodels check-data`."""

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.arguments import parse_positive
from ..utils.errors import UserError, first_line


if TYPE_CHECKING:
    from ..data.recipe_fields import DataFields


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
        "--num-labels", type=parse_positive, metavar="N", help="number of classes (default: from the recipe or layout)"
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
        type=parse_positive,
        metavar="N",
        help="check N label maps, spread over the split",
    )
    parser.add_argument(
        "--num-workers", type=parse_positive, metavar="N", help="processes that read (default: one per processor)"
    )
    parser.add_argument("--json", dest="json_path", type=Path, metavar="FILE", help="file for the complete report")
    parser.add_argument(
        "--allow", dest="allowed", nargs="+", default=(), metavar="ISSUE", help="names of label issues to ignore"
    )
    parser.add_argument("--strict", action="store_true", help="count warnings as label issues")


def run(arguments: argparse.Namespace) -> int:
    return check_data_command(**vars(arguments))


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
    Checks the labels of a data set and prints what it finds.

    Args:
        source (`str`): A recipe (`.yaml`), a folder, or a repository on the Hub.
        splits (`Sequence[str]`, *optional*): Names of the splits; those of the recipe, or all, if unset.
        json_path (`Path`, *optional*): File for the whole report.
        allowed (`Sequence[str]`): Faults that do not count.
        strict (`bool`): Whether warnings count.
        num_workers, max_samples: See [`check_data`].
        options: Fields of [`DataFields`] that replace the recipe's; None for those that are not given.

    Returns:
        `int`: 0 if all is well, 1 if there are faults.

    Raises:
        UserError: if the data cannot be read at all.
    """
    from ..data.checks.report import FAULTS
    from ..data.checks.runner import check_data
    from ..data.loading import import_datasets

    unknown = sorted(set(allowed) - set(FAULTS))
    if unknown:
        raise UserError(f"{', '.join(unknown)} is no fault to allow: the names are {', '.join(FAULTS)}.")
    if json_path is not None and not json_path.resolve().parent.is_dir():
        raise UserError(f"there is no folder {json_path.resolve().parent} for {json_path.name}: create it first.")
    options = {name: value for name, value in options.items() if value is not None}
    if splits:
        options["splits"] = list(splits)
    errors: tuple[type[Exception], ...] = (ValueError, OSError, ImportError, BrokenProcessPool)
    try:
        # what `datasets` raises itself
        errors = (*errors, import_datasets().exceptions.DatasetsError)
        fields = _recipe_fields(source, options) if _is_recipe(source) else _folder_fields(source, options)
        report = check_data(
            fields.dataset,
            fields.splits,
            num_labels=fields.num_labels,
            id2label=fields.id2label,
            layout=fields.layout,
            image_column=fields.image_column,
            label_column=fields.label_column,
            label_mapping=fields.label_mapping,
            do_reduce_labels=fields.do_reduce_labels,
            ignore_index=fields.ignore_index,
            streaming=fields.streaming,
            num_workers=num_workers,
            max_samples=max_samples,
            progress=sys.stderr.isatty(),
        )
        if json_path is not None:
            json_path.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
    except errors as error:
        raise UserError(f"cannot check {source}: {first_line(error)}") from error
    print(
        f"{fields.dataset}: layout {fields.layout or 'of the `datasets` library'}, {fields.num_labels} classes, labels "
        f"{'are' if fields.do_reduce_labels else 'are not'} reduced, {fields.ignore_index} is ignored\n"
    )
    print(report)
    found = report.faults(allowed, strict)
    num_warnings = len(report.faults(strict=True)) - len(report.faults()) if not strict else 0
    kinds = ", ".join(dict.fromkeys(fault.name for fault in found))
    print(
        f"\n{len(found)} faults: {kinds}"
        if found
        else f"\nno faults{f', {num_warnings} warnings' * bool(num_warnings)}"
    )
    return int(bool(found))


def _is_recipe(source: str) -> bool:
    return source.endswith((".yaml", ".yml"))


def _recipe_fields(source: str, options: dict[str, Any]) -> "DataFields":
    from ..data.recipe_fields import read_data_fields

    fields = read_data_fields(source)
    if "num_labels" in options:
        fields.id2label = None
    for name, value in options.items():
        setattr(fields, name, value)
    return fields


def _folder_fields(source: str, options: dict[str, Any]) -> "DataFields":
    """Of a folder (or repository) what its files say themselves."""
    from ..data.layouts import LAYOUTS, detect_layouts, find_layout
    from ..data.loading import find_id2label, import_datasets
    from ..data.recipe_fields import DataFields

    is_folder = Path(source).expanduser().is_dir()
    layout = options.get("layout")
    if not is_folder and (layout or source.count("/") != 1 or source.startswith((".", "/", "~"))):
        raise ValueError(f"there is no folder {source}: give a recipe (.yaml), a folder, or a repository OWNER/NAME.")
    if layout is None and is_folder:
        layouts = detect_layouts(source)
        if len(layouts) > 1:
            raise ValueError(f"{source} can be read as {' or '.join(layouts)}: say which with --layout.")
        layout = layouts[0] if layouts else None
    id2label = find_id2label(source, None, layout)
    if "num_labels" in options:
        id2label = id2label if id2label and len(id2label) == options["num_labels"] else None
    elif id2label is None:
        raise ValueError(
            f"it is not known how many classes {source} has: pass --num-labels, or put their names into its id2label.json."
        )
    options = options | {"layout": layout, "id2label": id2label}
    options.setdefault("num_labels", len(id2label or ()))
    if "splits" not in options:
        options["splits"] = (
            find_layout(layout, source).splits() if layout else import_datasets().get_dataset_split_names(source)
        )
    # what a layout leaves to the image processor is done as the processor should
    if layout and "label_mapping" not in options:
        options.setdefault("do_reduce_labels", LAYOUTS[layout].do_reduce_labels)
    return DataFields(source, **options)


__all__ = ["check_data_command"]
