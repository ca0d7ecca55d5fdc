# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Reading of mmcv configuration text: values of the model, the windows, the classes and the image pipelines."""

import ast
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from ..labels import load_labels
from ..utils.errors import first_line
from .checkpoint_files import ConversionError


def read_config_file(path: Path, parse: Callable[[str], Any], advice: str) -> Any:
    """
    Parse the text of a configuration file.

    Raises:
        ConversionError: if the file does not exist, with `advice`; or is not valid.
    """
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConversionError(f"There is no file {path}. {advice}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConversionError(f"{path} is not valid JSON ({first_line(error)}).") from error


def read_mmseg_config(
    config: Path | None, meta: Mapping[str, Any], expand: Callable[[Any], Any] = lambda values: values
) -> dict[str, Any] | None:
    """
    Read the configuration that a model of mmsegmentation was built from: the file `config` (JSON, or a self-contained
    `.py` such as mmcv writes into its working directory), by default the text in the checkpoint's `meta`. `expand` brings
    a file's values into mmsegmentation's layout.

    Returns:
        The configuration with `model` and `test_cfg`, wherever the original kept the latter; `None` if there is none.

    Raises:
        ConversionError: if the file does not exist, or file or text are damaged or hold more than values.
    """
    if config is None:
        text, origin = meta.get("config"), "the checkpoint's `meta`"
        if not isinstance(text, str) or not text.strip():
            return None
        values = parse_mmcv_config(text, origin)
    else:
        origin = str(config)
        parse = json.loads if config.suffix == ".json" else lambda text: parse_mmcv_config(text, origin)
        values = expand(read_config_file(config, parse, "Give the model's configuration with --config."))
    if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
        raise ConversionError(
            f"The configuration in {origin} has no `model`. Give the one that the checkpoint was trained with, without "
            "`_base_`, with --config."
        )
    test_cfg = values.get("test_cfg") or values["model"].get("test_cfg") or {}
    return {**values, "test_cfg": test_cfg}


@contextmanager
def raise_as_conversion_error(path: Path) -> Iterator[None]:
    """
    Context manager for code that derives a model's configuration from a checkpoint and the original's configuration.

    Raises:
        ConversionError: if a value is missing, malformed or not allowed; names it.
    """
    try:
        yield
    except (KeyError, TypeError, IndexError, StrictDataclassError, ValueError, ZeroDivisionError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ConversionError(
            f"The configuration does not describe {path}: {problem}. Give the configuration that the checkpoint was "
            "trained with, with --config; if a weight is missing, download the checkpoint again."
        ) from error


def check_config_matches_weights(*fields: tuple[str, Any, Any]) -> None:
    """
    Compare fields of a configuration, where they are set, with the weights: `(name, configured, of the weights)`.

    Raises:
        ConversionError: if fields differ; names all of them.
    """
    wrong = [
        f"`{name}` {configured} against {actual}"
        for name, configured, actual in fields
        if configured is not None and configured != actual
    ]
    if wrong:
        raise ConversionError(
            f"The configuration contradicts the weights, or is not supported: {', '.join(wrong)}. Give the configuration "
            "that the checkpoint was trained with, with --config."
        )


def norm_eps(norm_cfg: Mapping[str, Any] | None) -> float:
    """Epsilon of a norm; defaults to mmcv's 1e-5 for every kind of norm."""
    return (norm_cfg or {}).get("eps", 1e-5)


def window_fields(test_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """`window_size` and `window_stride` if the original slides a window; empty otherwise."""
    if test_cfg.get("mode") != "slide":
        return {}
    return {"window_size": list(test_cfg["crop_size"]), "window_stride": list(test_cfg["stride"])}


# Number of classes -> (beginning of the name of mmsegmentation's data set class, this package's class names).
_DATASETS = {
    150: ("ADE20K", "ade20k"),
    19: ("Cityscapes", "cityscapes"),
    60: ("PascalContext", "pascal_context_60"),
    59: ("PascalContext", "pascal_context_59"),
    171: ("COCOStuff", "coco_stuff_171"),
}


def label_fields(num_labels: int, class_names: Iterable[str], config: Mapping[str, Any]) -> dict[str, Any]:
    """
    `id2label` and `label2id` from the checkpoint's own class names, or those of the configuration's `dataset_type`.

    Only `num_labels` if neither fits the number of classes: the number alone does not identify the classes.
    """
    names = list(class_names)
    if len(names) != num_labels:
        prefix, dataset = _DATASETS.get(num_labels, ("", ""))
        if not dataset or not str(config.get("dataset_type")).startswith(prefix):
            return {"num_labels": num_labels}
        names = load_labels(dataset)[0]
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def complete_config(config: Mapping[str, Any], meta: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the class names and, where it has none, the image pipelines of the checkpoint's `meta`."""
    pipelines = {}
    if not config.get("test_pipeline") and not config.get("train_pipeline"):
        try:
            stored = read_mmseg_config(None, meta) or {}
        except ConversionError:
            stored = {}
        pipelines = {name: stored.get(name) for name in ("test_pipeline", "train_pipeline", "img_norm_cfg")}
    return {**config, **pipelines, "CLASSES": meta.get("CLASSES") or ()}


def image_processor_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the image processor that the pipelines set: `size`, `image_mean`, `image_std`, `do_reduce_labels`."""
    fields: dict[str, Any] = {}
    steps = list(_pipeline_steps(config.get("test_pipeline") or []))
    scale = next((step["img_scale"] for step in steps if step.get("img_scale")), None)
    if isinstance(scale, (list, tuple)) and len(scale) == 2 and all(isinstance(edge, int) for edge in scale):
        fields["size"] = {"shortest_edge": min(scale), "longest_edge": max(scale)}
        if (shortest := min_size(config)) is not None:
            # SegViT's own `min_size` looks at the shorter edge only
            fields["size"] = {"shortest_edge": max(min(scale), shortest)}
    normalization = next((step for step in steps if step.get("type") == "Normalize"), config.get("img_norm_cfg") or {})
    for ours, name in (("image_mean", "mean"), ("image_std", "std")):
        if name in normalization:
            fields[ours] = [round(value / 255, 6) for value in normalization[name]]
    for step in _pipeline_steps(config.get("train_pipeline") or []):
        if step.get("type") == "LoadAnnotations":
            fields["do_reduce_labels"] = bool(step.get("reduce_zero_label", False))
    return fields


def min_size(config: Mapping[str, Any]) -> int | None:
    """Lower bound of the shorter edge in tests (SegViT's own option of `Resize`)."""
    steps = _pipeline_steps(config.get("test_pipeline") or [])
    return next((step["min_size"] for step in steps if step.get("type") == "Resize" and step.get("min_size")), None)


def _pipeline_steps(pipeline: Iterable[Any]) -> Iterator[dict[str, Any]]:
    for step in pipeline:
        if isinstance(step, dict):
            yield step
            yield from _pipeline_steps(step.get("transforms") or [])


def parse_mmcv_config(text: str, origin: str) -> dict[str, Any]:
    """
    Read the values that a configuration's Python text assigns: literals, `dict(...)` and names assigned before. No code
    is run. `origin` says in messages where the text comes from.

    Raises:
        ConversionError: if the text holds any other code; names the line.
    """
    values: dict[str, Any] = {}
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConversionError(f"The configuration in {origin} is not Python text ({first_line(error)}).") from error
    for statement in statements:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                values[name] = _evaluate(value, values, origin)
            case ast.Expr(value=ast.Constant()):
                pass  # a docstring
            case _:
                raise _code(statement, origin)
    return values


def _evaluate(node: ast.expr, values: Mapping[str, Any], origin: str) -> Any:
    match node:
        case ast.Name(id=name) if name in values:
            return values[name]
        case ast.Call(func=ast.Name(id="dict"), args=[ast.Dict()] | [], keywords=keywords) if all(
            keyword.arg for keyword in keywords
        ):
            items = [_evaluate(arg, values, origin) for arg in node.args]
            return dict(*items, **{str(k.arg): _evaluate(k.value, values, origin) for k in keywords})
        case ast.Dict(keys=keys) if all(keys):
            return {
                _evaluate(key, values, origin): _evaluate(value, values, origin)
                for key, value in zip(keys, node.values, strict=True)
                if key is not None
            }
        case ast.List(elts=items):
            return [_evaluate(item, values, origin) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_evaluate(item, values, origin) for item in items)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError) as error:
        raise _code(node, origin) from error


def _code(node: ast.stmt | ast.expr, origin: str) -> ConversionError:
    return ConversionError(
        f"Line {node.lineno} of the configuration in {origin} is more than values and was not run: "
        f"`{ast.unparse(node)[:80]}`. Give the configuration as JSON with --config."
    )
