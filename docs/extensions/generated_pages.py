# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Pages of the site that are generated when it is built: all command-line options, all recipe settings."""

import argparse
import dataclasses
from collections.abc import Iterator
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from hf_segmodels.cli.main import create_parser
from hf_segmodels.training.recipe import Recipe


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages (mkdocs hook)."""
    for name, text in (("command_line.md", command_line_page()), ("recipe_settings.md", recipe_settings_page())):
        files.append(File.generated(config, name, content=text))
    return files


def command_line_page() -> str:
    """Return the page of all commands and their options, as Markdown."""
    parser = create_parser()
    lines = ["# Command-line options", "", _escape(parser.description or ""), ""]
    for name, command in _commands(parser):
        lines += [
            f"## {name}",
            "",
            _escape(command.description or ""),
            "",
            "```",
            command.format_usage().strip(),
            "```",
            "",
        ]
        lines += ["| argument | default | meaning |", "|---|---|---|", *_rows(command), ""]
    return "\n".join(lines)


def _commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def _rows(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        name = ", ".join(action.option_strings) or action.metavar or action.dest
        takes_value = action.option_strings and action.nargs != 0
        value = (
            f" {action.metavar or '{' + ','.join(map(str, action.choices)) + '}'}"
            if takes_value and (action.metavar or action.choices)
            else ""
        )
        default = "" if action.default in (None, False, argparse.SUPPRESS, [], ()) else f"`{action.default}`"
        yield f"| `{name}{value}` | {default} | {_escape(action.help or '')} |"


def recipe_settings_page() -> str:
    """Return the page of all recipe settings, from the fields of `Recipe`, as Markdown."""
    lines = ["# Recipe settings", "", "Each setting of a recipe; `key=value` on the command line changes it.", ""]
    lines += ["| setting | default | meaning |", "|---|---|---|"]
    for field in dataclasses.fields(Recipe):
        lines.append(f"| `{field.name}` | {_default(field)} | {_escape(field.metadata['help'])} |")
    return "\n".join([*lines, ""])


def _default(field: dataclasses.Field) -> str:
    value: Any = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    return "" if value in ("", dataclasses.MISSING) else f"`{value}`"


def _escape(text: str) -> str:
    """Keep a text within one cell of a table."""
    return " ".join(text.replace("%%", "%").replace("|", "\\|").split()).replace("<", "&lt;")
