# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Key maps, and strict loading through them: no key may be missing or left over.

A key map gives this package's name for each original name. `{x}` stands for one part of a name without dots and slashes
and is copied; `{x-1}` in the new name is that number less one:

    {"blocks.{i}.norm1.{p}": "encoder.layers.{i}.layernorm_before.{p}"}
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from .checkpoint_files import ConversionError


KeyMap = Mapping[str, str]


def add_prefix(key_map: KeyMap, original: str, ours: str) -> dict[str, str]:
    """The key map with the prefix `original` before each original name and `ours` before each new one."""
    return {original + source: ours + target for source, target in key_map.items()}


def _compile(pattern: str) -> re.Pattern[str]:
    literals = re.split(r"\{(\w+)\}", pattern)  # literal, name, literal, name, ..., literal
    parts = [re.escape(text) if index % 2 == 0 else rf"(?P<{text}>[^./]+)" for index, text in enumerate(literals)]
    return re.compile("".join(parts))


def _fill(template: str, parts: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        part = parts[match[1]]
        return str(int(part) - 1) if match[2] else part

    return re.sub(r"\{(\w+?)(-1)?\}", value, template)


def count_parts(keys: Iterable[str], pattern: str) -> int:
    """Number of different texts that the group of `pattern` matches at the beginning of a key, such as layer numbers."""
    return len({match[1] for key in keys if (match := re.match(pattern, key))})


def rename(keys: list[str], key_map: KeyMap, drop: tuple[str, ...] = ()) -> tuple[dict[str, str], list[str]]:
    """
    Map original names to this package's names; names that match a pattern in `drop` are left out.

    Returns:
        The new names by the original ones, and the names that were left out.

    Raises:
        ConversionError: if another name has no counterpart; lists all such names.
    """
    renames = [(_compile(pattern), template) for pattern, template in key_map.items()]
    drops = [_compile(pattern) for pattern in drop]
    renamed, dropped, unknown = {}, [], []
    for key in keys:
        matches = ((pattern.fullmatch(key), template) for pattern, template in renames)
        found = next(((match, template) for match, template in matches if match), None)
        if found is not None:
            renamed[key] = _fill(found[1], found[0].groupdict())
        elif any(pattern.fullmatch(key) for pattern in drops):
            dropped.append(key)
        else:
            unknown.append(key)
    if unknown:
        raise ConversionError(
            f"{len(unknown)} keys of the checkpoint have no counterpart in the model: {', '.join(unknown)}. The checkpoint "
            "comes from another model or a changed version of the code; nothing is left out silently."
        )
    return renamed, dropped


def load_strictly(model: nn.Module, tensors: Mapping[str, torch.Tensor], key_map: KeyMap) -> None:
    """
    Load tensors into a model. Floating-point tensors become float32. A model on the meta device takes over the tensors'
    memory; any other model keeps its own. `key_map` gives the original names for errors.

    Raises:
        ConversionError: if a tensor is missing, left over or of another shape; lists all of them.
    """
    expected, shapes = (
        {name: tuple(tensor.shape) for name, tensor in state.items()} for state in (model.state_dict(), tensors)
    )
    problems = {
        "missing": [_original_name(name, key_map) for name in expected if name not in shapes],
        "left over": [_original_name(name, key_map) for name in shapes if name not in expected],
        "of another shape": [
            f"{_original_name(name, key_map)} {shape} instead of {expected[name]}"
            for name, shape in shapes.items()
            if expected.get(name, shape) != shape
        ],
    }
    listed = "; ".join(f"{problem}: {', '.join(names)}" for problem, names in problems.items() if names)
    if listed:
        raise ConversionError(
            f"The checkpoint does not fit its configuration; {listed}. Give the configuration that the "
            "checkpoint was trained with, with --config."
        )
    is_meta = next(model.parameters()).is_meta
    state_dict = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    model.load_state_dict(state_dict, strict=True, assign=is_meta)


def _original_name(name: str, key_map: KeyMap) -> str:
    for original, ours in key_map.items():
        if match := _compile(ours.replace("-1}", "}")).fullmatch(name):
            parts, lowered = match.groupdict(), re.findall(r"\{(\w+)-1\}", ours)
            if all(parts[part].isdecimal() for part in lowered):
                return _fill(original, parts | {part: str(int(parts[part]) + 1) for part in lowered})
    return name
