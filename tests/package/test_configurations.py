# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Configuration modules import no torch, and document the shared fields."""

import ast
from pathlib import Path

import pytest

import hf_segmodels
from hf_segmodels import RegProxyConfig, SegmenterConfig, SegViTConfig, SuperpixelViTConfig, UNEPTConfig


PACKAGE = Path(hf_segmodels.__file__).parent
CONFIGURATIONS = sorted([*PACKAGE.glob("*/configuration_*.py"), PACKAGE / "configuration_utils.py"])


def imports(path: Path) -> set[str]:
    """Top-level packages that a module imports, directly or through other modules of this package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            folder = path.parents[node.level - 1]
            module = folder.joinpath(*node.module.split("."))
            found |= imports(module / "__init__.py" if module.is_dir() else module.with_suffix(".py"))
    return found


def test_configuration_modules_import_no_torch():
    assert len(CONFIGURATIONS) == 8
    for path in CONFIGURATIONS:
        packages = imports(path)
        assert "transformers" in packages
        assert not packages & {"torch", "torchvision"}, path


@pytest.mark.parametrize(
    "config_class", [RegProxyConfig, SegmenterConfig, SegViTConfig, SuperpixelViTConfig, UNEPTConfig]
)
def test_shared_fields_are_documented_once(config_class):
    for field in ("backbone_config", "freeze_backbone", "window_size", "small_image_mode", "initializer_range"):
        assert config_class.__doc__.count(f"\n    {field} (") == 1, field
    assert config_class.__doc__.count("Example:") == 1
