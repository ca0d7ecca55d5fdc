# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Configuration modules import no torch, and document the shared fields."""

import subprocess
import sys
from pathlib import Path

import pytest

import hf_segmodels
from hf_segmodels import RegProxyConfig, SegmenterConfig, SegViTConfig, SuperpixelViTConfig, UNEPTConfig


PACKAGE = Path(hf_segmodels.__file__).parent
MODULES = [
    ".".join(("hf_segmodels", *path.relative_to(PACKAGE).with_suffix("").parts))
    for path in sorted([*PACKAGE.glob("*/configuration_*.py"), PACKAGE / "configuration_utils.py"])
]


def test_configuration_modules_import_without_torch():
    # under the name of the command line, `hf_segmodels` registers no models, which would import torch
    code = f"""
import importlib, sys
sys.argv, sys.modules["torch"] = ["hf-segmodels"], None
for module in {MODULES}:
    importlib.import_module(module)
"""
    assert len(MODULES) == 8
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


@pytest.mark.parametrize(
    "config_class", [RegProxyConfig, SegmenterConfig, SegViTConfig, SuperpixelViTConfig, UNEPTConfig]
)
def test_shared_fields_are_documented_once(config_class):
    for field in ("backbone_config", "freeze_backbone", "window_size", "small_image_mode", "initializer_range"):
        assert config_class.__doc__.count(f"\n    {field} (") == 1, field
    assert config_class.__doc__.count("Example:") == 1
