# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Tables of renamed parameters, and loading through them that tolerates nothing missing and nothing left over.

A table maps original names to ours. `{x}` stands for one dot-free, slash-free part of a name and is copied; `{x-1}` on
our side is that number less one:

    {"blocks.{i}.norm1.{p}": "encoder.layers.{i}.layernorm_before.{p}"}
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from .checkpoint_files import ConversionError


RenameTable = Mapping[str, str]


def add_prefix(table: RenameTable, original: str, ours: str) -> dict[str, str]:
    """The same table one level up: `original` and `ours` stand before the names on either side."""
    return {original + source: ours + target for source, target in table.items()}


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
    """How many different texts stand at the group of a regular expression, such as numbers of layers."""
    return len({match[1] for key in keys if (match := re.match(pattern, key))})


def rename(keys: list[str], table: RenameTable, drop: tuple[str, ...] = ()) -> tuple[dict[str, str], list[str]]:
    """
    Gives each original name ours.

    Args:
        keys (`list[str]`): Original names.
        table (`RenameTable`): The renames.
        drop (`tuple[str, ...]`): Patterns of names that have no counterpart and are left out on purpose.

    Returns:
        Our names by the original ones, and the names that were left out.

    Raises:
        ConversionError: if there are other names; names them.
    """
    renames = [(_compile(pattern), template) for pattern, template in table.items()]
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
            f"{len(unknown)} keys of the checkpoint have no place in the model: {', '.join(unknown)}. It comes from another "
            "model or a changed version of the code; nothing is left out silently."
        )
    return renamed, dropped


def load_strictly(model: nn.Module, tensors: Mapping[str, torch.Tensor], table: RenameTable) -> None:
    """
    Loads tensors into a model: into its own memory, or, if it is on the meta device, as they are, floats in float32.

    Args:
        model (`nn.Module`): The model.
        tensors (`Mapping[str, torch.Tensor]`): Tensors by our names.
        table (`RenameTable`): What they were renamed with, so that errors name the originals.

    Raises:
        ConversionError: if a parameter is missing, a tensor is left over or a shape differs; names all of them.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    problems = []
    if missing := [name for name in expected if name not in tensors]:
        problems.append(f"missing: {', '.join(_original_name(name, table) for name in missing)}")
    if unexpected := [name for name in tensors if name not in expected]:
        problems.append(f"left over: {', '.join(_original_name(name, table) for name in unexpected)}")
    different = [
        f"{_original_name(name, table)} {tuple(tensor.shape)} instead of {expected[name]}"
        for name, tensor in tensors.items()
        if name in expected and tuple(tensor.shape) != expected[name]
    ]
    if different:
        problems.append(f"of another shape: {', '.join(different)}")
    if problems:
        raise ConversionError(
            f"The checkpoint does not fit its configuration; {'; '.join(problems)}. Give the configuration that belongs to "
            "this checkpoint with --config."
        )
    is_meta = next(model.parameters()).is_meta
    state_dict = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    model.load_state_dict(state_dict, strict=True, assign=is_meta)


def _original_name(name: str, table: RenameTable) -> str:
    for original, ours in table.items():
        if match := _compile(ours.replace("-1}", "}")).fullmatch(name):
            parts = match.groupdict()
            for part in re.findall(r"\{(\w+)-1\}", ours):
                if not parts[part].isdecimal():
                    break
                parts[part] = str(int(parts[part]) + 1)
            else:
                return _fill(original, parts)
    return name


__all__ = ["RenameTable", "add_prefix", "count_parts", "load_strictly", "rename"]
