# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""What the checkpoints of mmsegmentation's models have in common: the encoder's names and the configuration's text."""

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
from .formats.backbone import TIMM_HYBRID_STEM, TOKENS
from .key_mapping import add_prefix


_LAYER = {
    "ln1.{p}": "layernorm_before.{p}",
    "attn.attn.in_proj_{p}": "attention.qkv.{p}",
    "attn.attn.out_proj.{p}": "attention.o_proj.{p}",
    "ln2.{p}": "layernorm_after.{p}",
    "ffn.layers.0.0.{p}": "mlp.fc1.{p}",
    "ffn.layers.1.{p}": "mlp.fc2.{p}",
}
MMSEG_VIT = {
    **TOKENS,
    **TIMM_HYBRID_STEM,
    "patch_embed.projection.{p}": "embeddings.patch_embeddings.projection.{p}",
    **add_prefix(_LAYER, "layers.{i}.", "encoder.layers.{i}."),
    "ln1.{p}": "layernorm.{p}",
}


def read_mmseg_config(config: Path | None, meta: Mapping[str, Any]) -> dict[str, Any] | None:
    """
    Reads the configuration that a model of mmsegmentation was built from.

    Args:
        config (`Path`, *optional*): A JSON file, or a self-contained `.py` file such as mmcv writes into its working
            directory.
        meta (`Mapping[str, Any]`): The checkpoint's `meta`, whose `config` is that text; read where `config` is not
            given.

    Returns:
        The configuration with `model` and, wherever the original kept it, `test_cfg`; `None` where there is none.

    Raises:
        ConversionError: if the file or text is missing, damaged, or more than values.
    """
    if config is None:
        text, origin = meta.get("config"), "the checkpoint's `meta`"
        if not isinstance(text, str) or not text.strip():
            return None
        values = parse_mmcv_config(text, origin)
    else:
        origin = str(config)
        try:
            text = config.read_text(encoding="utf-8")
            values = json.loads(text) if config.suffix == ".json" else parse_mmcv_config(text, origin)
        except FileNotFoundError as error:
            raise ConversionError(
                f"There is no file {config}. Give the model's configuration with --config."
            ) from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ConversionError(f"{config} is no JSON ({first_line(error)}).") from error
    if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
        raise ConversionError(
            f"The configuration in {origin} has no `model`. Give the one that the checkpoint was trained with, without "
            "`_base_`, with --config."
        )
    test_cfg = values.get("test_cfg") or values["model"].get("test_cfg") or {}
    return {**values, "test_cfg": test_cfg}


def read_config_or_release(
    config: Path | None, meta: Mapping[str, Any], release: str | None, release_config: Callable[[], dict[str, Any]]
) -> tuple[dict[str, Any], list[str]]:
    """
    The configuration of a checkpoint, or what is known of the released one that it is by its keys and shapes.

    Args:
        config (`Path`, *optional*), meta (`Mapping[str, Any]`): See [`read_mmseg_config`].
        release (`str`, *optional*): Name of the released checkpoint.
        release_config (`Callable`): Makes its configuration.

    Returns:
        The configuration, and notes for the user.

    Raises:
        ConversionError: if there is none.
    """
    try:
        values = read_mmseg_config(config, meta)
    except ConversionError:
        if config is not None or release is None:
            raise
        values = None
    if values is not None:
        return values, []
    if release is None:
        raise ConversionError(
            "The checkpoint holds no configuration, and is none of the released ones by its keys and shapes. Give its "
            "configuration (JSON, or self-contained Python) with --config."
        )
    return release_config(), [f"recognized as {release} by its keys and shapes"]


@contextmanager
def has_to_describe(path: Path) -> Iterator[None]:
    """
    For what reads a configuration's values into ours.

    Raises:
        ConversionError: where a value is missing, malformed or impossible; says which.
    """
    try:
        yield
    except (KeyError, TypeError, IndexError, StrictDataclassError, ValueError, ZeroDivisionError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise ConversionError(
            f"The configuration does not describe {path}: {problem}. Give the one that it was trained with, with --config."
        ) from error


def check_facts(*facts: tuple[str, Any, Any]) -> None:
    """
    Compares what a configuration says, where it says something, with what is true: (name, said, true).

    Raises:
        ConversionError: if something differs; names all of it.
    """
    wrong = [f"`{name}` {said} against {true}" for name, said, true in facts if said is not None and said != true]
    if wrong:
        raise ConversionError(
            f"The configuration contradicts the weights, or is not supported: {', '.join(wrong)}. Give the one that the "
            "checkpoint was trained with, with --config."
        )


def norm_eps(norm_cfg: Mapping[str, Any] | None) -> float:
    """Epsilon of a norm; mmcv's default for every kind of norm where it is not given."""
    return (norm_cfg or {}).get("eps", 1e-5)


def window_fields(test_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """`window_size` and `window_stride`, where the original slides."""
    if test_cfg.get("mode") != "slide":
        return {}
    return {"window_size": list(test_cfg["crop_size"]), "window_stride": list(test_cfg["stride"])}


# mmsegmentation's data sets by their number of classes: what the names of their types start with, and ours.
_DATASETS = {
    150: ("ADE20K", "ade20k"),
    19: ("Cityscapes", "cityscapes"),
    60: ("PascalContext", "pascal_context_60"),
    59: ("PascalContext", "pascal_context_59"),
    171: ("COCOStuff", "coco_stuff_171"),
}


def label_fields(num_labels: int, class_names: Iterable[str], config: Mapping[str, Any]) -> dict[str, Any]:
    """
    `id2label` and `label2id`: the checkpoint's own names, or those of the data set (`dataset_type`) that the configuration
    names; only `num_labels` where neither fits the number of classes, which alone says nothing of what they are.
    """
    names = list(class_names)
    if len(names) != num_labels:
        prefix, dataset = _DATASETS.get(num_labels, ("", ""))
        is_known = bool(dataset) and str(config.get("dataset_type")).startswith(prefix)
        names = load_labels(dataset)[0] if is_known else []
    if not names:
        return {"num_labels": num_labels}
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def find_pipelines(config: Mapping[str, Any], meta: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration, if it has pipelines; where not, what the text inside the checkpoint says; empty without either."""
    if config.get("test_pipeline") or config.get("train_pipeline"):
        return config
    try:
        return read_mmseg_config(None, meta) or {}
    except ConversionError:
        return {}


def image_processor_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """
    What a configuration's pipelines say of the image processor: `size`, `image_mean`, `image_std` and
    `do_reduce_labels`, as far as they say it.
    """
    fields: dict[str, Any] = {}
    steps = list(_pipeline_steps(config.get("test_pipeline") or []))
    scale = next((step["img_scale"] for step in steps if step.get("img_scale")), None)
    if isinstance(scale, (list, tuple)) and len(scale) == 2 and all(isinstance(edge, int) for edge in scale):
        fields["size"] = {"shortest_edge": min(scale), "longest_edge": max(scale)}
        if (shortest := min_size(config)) is not None:
            # SegViT's own rule looks at the shorter edge only
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
    """The shorter edge that resizing never goes below in tests (SegViT's own option of `Resize`)."""
    steps = _pipeline_steps(config.get("test_pipeline") or [])
    return next((step["min_size"] for step in steps if step.get("type") == "Resize" and step.get("min_size")), None)


def _pipeline_steps(pipeline: Iterable[Any]) -> Iterator[dict[str, Any]]:
    for step in pipeline:
        if isinstance(step, dict):
            yield step
            yield from _pipeline_steps(step.get("transforms") or [])


def parse_mmcv_config(text: str, origin: str) -> dict[str, Any]:
    """
    The values that a configuration's Python text assigns: literals, `dict(...)` and names assigned before. Nothing is
    run.

    Raises:
        ConversionError: for any other code; says where.
    """
    values: dict[str, Any] = {}
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ConversionError(f"The configuration in {origin} is no Python text ({first_line(error)}).") from error
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


__all__ = [
    "MMSEG_VIT",
    "check_facts",
    "find_pipelines",
    "image_processor_fields",
    "label_fields",
    "min_size",
    "norm_eps",
    "parse_mmcv_config",
    "read_config_or_release",
    "read_mmseg_config",
    "window_fields",
]
