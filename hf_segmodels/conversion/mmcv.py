# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""What the checkpoints of mmsegmentation's models have in common: the encoder's names and the configuration's text."""

import ast
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import first_line
from .backbone import TIMM_HYBRID_STEM, TOKENS
from .checkpoints import ConversionError
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
    normalization = next((step for step in steps if step.get("type") == "Normalize"), config.get("img_norm_cfg") or {})
    for ours, name in (("image_mean", "mean"), ("image_std", "std")):
        if name in normalization:
            fields[ours] = [round(value / 255, 6) for value in normalization[name]]
    for step in _pipeline_steps(config.get("train_pipeline") or []):
        if step.get("type") == "LoadAnnotations":
            fields["do_reduce_labels"] = bool(step.get("reduce_zero_label", False))
    return fields


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


__all__ = ["MMSEG_VIT", "image_processor_fields", "parse_mmcv_config", "read_mmseg_config"]
