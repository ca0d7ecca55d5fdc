# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
A model's code as one flat folder, for transformers' `trust_remote_code=True`.

transformers copies the files of a repository that a module imports with `from .x import y`. It finds these imports with a
regular expression, so that it supports neither folders nor `from . import x`. It also requires every package that a module
imports anywhere outside of `try`. [`flatten`] collects the modules that a model needs, gives them names in one folder and
rewrites their imports.
"""

import ast
import re
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path


PACKAGE = __name__.partition(".")[0]
ROOT = Path(__file__).resolve().parents[1]
MARK = f"# Written by {PACKAGE}"
"""First words of each file that an export writes."""

# packages that are installed wherever transformers runs a model on images
_REQUIRED = {"PIL", "huggingface_hub", "numpy", "torch", "transformers"}
_KEPT_NAMES = ("configuration_", "image_processing_", "loss_", "modeling_")
_LINE_LENGTH = 120
# same as in transformers' `get_relative_imports`
_RELATIVE_IMPORT = re.compile(r"^\s*(?:import\s+\.(\S+)\s*$|from\s+\.(\S+)\s+import)", flags=re.MULTILINE)


class RemoteCodeError(Exception):
    """Code that cannot be put into one folder; the message names the line."""


# an import, and for each name the dotted module that defines it, and `name` or `name as other`
_Import = tuple[ast.ImportFrom, list[tuple[str, str]]]


def flatten(modules: Iterable[str], footers: Mapping[str, str] | None = None) -> dict[str, str]:
    """
    Collect the source code of modules of this package, and of all modules of the package that they import, for one folder.

    Args:
        modules (`Iterable[str]`): Dotted names within the package, such as `"segmenter.modeling_segmenter"`.
        footers (`Mapping[str, str]`, *optional*): Code to append to modules, by dotted name.

    Returns:
        `dict[str, str]`: Source code by file name, sorted by name.

    Raises:
        RemoteCodeError: if a module imports a whole module or `*`, uses `importlib`, imports a package outside of `try` that
            may be absent, or two modules get the same file name.
    """
    pending, needed = sorted(modules), dict[str, list[_Import]]()
    while pending:
        module = pending.pop()
        if module not in needed:
            needed[module] = _imports(module)
            pending += [source for _, names in needed[module] for source, _ in names]
    names = {module: flat_name(module) for module in sorted(needed)}
    if len(set(names.values())) < len(names):
        raise RemoteCodeError(f"Two modules get the same file name: {sorted(names.items(), key=lambda n: n[1])}.")
    sources = {}
    for module, name in names.items():
        source = f"{MARK} from {_path(module).relative_to(ROOT.parent).as_posix()}; make changes there.\n"
        sources[f"{name}.py"] = source + _rewrite(module, needed[module], names) + (footers or {}).get(module, "")
    for file, source in sources.items():
        _check(file, source, sources)
    return dict(sorted(sources.items()))


def flat_name(module: str) -> str:
    """
    Name of a module in the flat folder: `"inference.prediction"` becomes `"inference_prediction"`. Modules that transformers
    finds by name (`modeling_X`) keep their last name.
    """
    leaf = module.rpartition(".")[2]
    return leaf if leaf.startswith(_KEPT_NAMES) else module.replace(".", "_")


def _path(module: str) -> Path:
    """File of a module, or the `__init__.py` of a package."""
    path = ROOT.joinpath(*module.split(".")) if module else ROOT
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _parse(module: str) -> ast.Module:
    return ast.parse(_path(module).read_text(encoding="utf-8"), filename=str(_path(module)))


def _imports(module: str) -> list[_Import]:
    """Imports from this package in a module, at any depth."""
    found = []
    for node in ast.walk(_parse(module)):
        if isinstance(node, ast.ImportFrom) and (source := _source(module, node)) is not None:
            names = []
            for alias in node.names:
                defined, name = _definition(source, alias.name, module, node)
                names.append((defined, f"{name} as {alias.asname}" if alias.asname else name))
            found.append((node, names))
        elif PACKAGE in _packages(node):
            raise _error(module, node, "it imports a whole module; import names from it")
        elif "importlib" in _packages(node):
            raise _error(module, node, "imports through `importlib` are not supported")
    _check_packages(module, _parse(module))
    return sorted(found, key=lambda item: item[0].lineno)


def _check_packages(module: str, node: ast.AST) -> None:
    """Check that packages which may be absent are imported within `try`: transformers requires all others."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Try):
            continue
        for name in _packages(child):
            if name not in _REQUIRED | {PACKAGE} and name not in sys.stdlib_module_names:
                raise _error(module, child, f"{name} may be absent; import it in `try`, and say what to install")
        _check_packages(module, child)


def _packages(node: ast.AST) -> list[str]:
    """Packages that an absolute import names; empty for other nodes."""
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        names = [node.module or ""]
    return [name.partition(".")[0] for name in names]


def _source(module: str, node: ast.ImportFrom) -> str | None:
    """Module of this package that a `from ... import` names, or `None` for another package."""
    if node.level == 0:
        return (node.module or "").partition(".")[2] if PACKAGE in _packages(node) else None
    # the package that contains the module; for an `__init__`, the package itself
    package = module.split(".") if _path(module).name == "__init__.py" else module.split(".")[:-1]
    kept = package[: len(package) - (node.level - 1)]
    return ".".join([*kept, *([node.module] if node.module else [])])


def _definition(source: str, name: str, module: str, node: ast.ImportFrom) -> tuple[str, str]:
    """Module that defines `name` of `source`, and the name there; follows the imports of an `__init__`."""
    if name == "*":
        raise _error(module, node, "it imports `*`; import names")
    if _path(source).name != "__init__.py":
        return source, name
    if _path(f"{source}.{name}" if source else name).exists():
        raise _error(module, node, "it imports a whole module; import names from it")
    for inner in ast.walk(_parse(source)):
        if isinstance(inner, ast.ImportFrom) and (inner_source := _source(source, inner)) is not None:
            for alias in inner.names:
                if (alias.asname or alias.name) == name:
                    return _definition(inner_source, alias.name, source, inner)
    raise _error(module, node, f"`{name}` is defined in an `__init__`, which is not exported; move it to a module")


def _error(module: str, node: ast.AST, reason: str) -> RemoteCodeError:
    path = _path(module).relative_to(ROOT.parent).as_posix()
    return RemoteCodeError(f"{path}:{getattr(node, 'lineno', 0)} cannot be exported: {reason}.")


def _rewrite(module: str, imports: list[_Import], flat_names: Mapping[str, str]) -> str:
    """Source code of a module with same-folder imports in place of the package's."""
    lines = _path(module).read_text(encoding="utf-8").splitlines(keepends=True)
    for node, imported in reversed(imports):
        first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
        # columns count bytes
        before = lines[first].encode()[: node.col_offset].decode()
        after = lines[last].encode()[node.end_col_offset :].decode().strip()
        if before.strip() or (after and not after.startswith("#")):
            raise _error(module, node, "the import shares its line with other code")
        by_module: dict[str, list[str]] = {}
        for source, name in imported:
            by_module.setdefault(flat_names[source], []).append(name)
        lines[first : last + 1] = [_import_text(*item, before) for item in sorted(by_module.items())]
    return "".join(lines)


def _import_text(module: str, names: list[str], indentation: str) -> str:
    start = f"{indentation}from .{module} import "
    line = f"{start}{', '.join(sorted(names))}\n"
    if len(line) <= _LINE_LENGTH + 1:
        return line
    return f"{start}(\n" + "".join(f"{indentation}    {name},\n" for name in sorted(names)) + f"{indentation})\n"


def _check(file: str, source: str, sources: Mapping[str, str]) -> None:
    """Check that the files which transformers finds in a source are exactly the files that it imports."""
    named = {f"{first or second}.py" for first, second in _RELATIVE_IMPORT.findall(source)}
    imported = {
        f"{node.module}.py"
        for node in ast.walk(ast.parse(source, filename=file))
        if isinstance(node, ast.ImportFrom) and node.level > 0
    }
    wrong = sorted((named ^ imported) | (imported - sources.keys()))
    if wrong:
        raise RemoteCodeError(
            f"{file} names modules that are not exported, perhaps in a docstring: {', '.join(wrong)}."
        )
