# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Docstrings of transformers' style for griffe's Google parser, as `auto_docstring` and transformers' doc-builder complete them:
the introduction that stands in the decorator, the heading above a list of fields, plain types, plain names of classes.
"""

import ast
import re
from inspect import cleandoc
from typing import Any

from griffe import Docstring, Extension, Object


FIELD = re.compile(r"^(\s*)(\w[\w, ]*) \((.*)\):")
SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Example|Examples):\s*$")


class TransformersDocstrings(Extension):
    """Rewrites each docstring once it has been read."""

    def on_instance(self, *, node: Any, obj: Object, agent: Any, **kwargs: Any) -> None:
        intro = _custom_intro(node)
        if obj.docstring is None and not intro:
            return
        lines = obj.docstring.value.split("\n") if obj.docstring is not None else []
        if lines and FIELD.match(lines[0]) and not lines[0].startswith(" "):
            lines = _under_heading(lines)
        text = "\n".join([intro, "", *map(_plain_types, lines)]) if intro else "\n".join(map(_plain_types, lines))
        # [`~module.Class`] -> `Class`
        text = re.sub(r"\[`~?([\w.]+)`\]", lambda match: f"`{match[1].rpartition('.')[2]}`", text)
        obj.docstring = Docstring(
            text,
            parent=obj,
            lineno=getattr(node, "lineno", 1),
            parser=agent.docstring_parser,
            parser_options=agent.docstring_options,
        )


def _custom_intro(node: Any) -> str:
    for decorator in getattr(node, "decorator_list", []):
        if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == "auto_docstring":
            for keyword in decorator.keywords:
                if keyword.arg == "custom_intro":
                    return cleandoc(ast.literal_eval(keyword.value))
    return ""


def _under_heading(lines: list[str]) -> list[str]:
    """A list of fields that begins the docstring -> the same under `Args:`."""
    end = next((index for index, line in enumerate(lines) if SECTION.match(line)), len(lines))
    return ["Args:", *(f"    {line}" if line else line for line in lines[:end]), *lines[end:]]


def _plain_types(line: str) -> str:
    """``size (`int`, *optional*):`` -> `size (int, optional):`."""
    field = FIELD.match(line)
    if field is None:
        return line
    return f"{field[1]}{field[2]} ({re.sub('[`*]', '', field[3])}):{line[field.end() :]}"
