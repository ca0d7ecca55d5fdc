# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""The rules of CONTRIBUTING.md on layout: which modules import which, without cycles."""

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import hf_segmodels


PACKAGE = Path(hf_segmodels.__file__).parent
METHODS = {"regproxy", "segmenter", "segvit", "superpixel_vit", "unept"}
FILES = sorted(path for path in PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


@cache
def imports(module: str, at_import: bool) -> frozenset[str]:
    """Modules of this package that a module imports; `at_import` leaves out imports in functions and for type checkers."""
    path, found = MODULES[module], set()
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - (node.level - 1)], *(node.module or "").split(".")]
            source = ".".join(part for part in base if part)
            for alias in node.names:
                name = f"{source}.{alias.name}".strip(".")
                found.add(name if name in MODULES else source)
        is_late = isinstance(node, ast.FunctionDef) or (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        )
        if not (at_import and is_late):
            pending.extend(ast.iter_child_nodes(node))
    return frozenset(found - {module, ""})


def test_the_root_holds_the_public_api_only():
    assert {path.name for path in PACKAGE.glob("*.py")} == {
        "__init__.py",
        "auto.py",
        "configuration_utils.py",
        "modeling_utils.py",
    }


def test_there_are_no_import_cycles():
    graph = {module: imports(module, at_import=True) for module in MODULES if module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"import cycle: {' <- '.join(error.args[1])}")


def test_who_may_import_whom():
    pairs = [(name, imported) for name in MODULES for imported in imports(name, at_import=False)]
    for module, imported in pairs:
        folder, target = module.partition(".")[0], imported.partition(".")[0]
        if target in {"cli", "demo"}:
            assert folder in {"cli", target}, f"{module} imports {imported}"
        if folder in METHODS:
            assert target == folder or target not in METHODS, f"{module} imports {imported}"


def test_nothing_imports_the_folders_of_the_repository():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            tops = {name.partition(".")[0] for name in names}
            assert not tops & {"benchmarks", "conversion", "model_cards", "tests", "training"}, path
            assert "sys.path" not in path.read_text() or path.match("hub/endpoint/*"), path


def test_modules_stay_short():
    lengths = {path: len(path.read_text().splitlines()) for path in FILES}
    assert {str(path.relative_to(PACKAGE)) for path, length in lengths.items() if length > 450} == set()
