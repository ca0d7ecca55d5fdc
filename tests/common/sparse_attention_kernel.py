# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""The kernel of `hub_kernels/sparse-attention`, built for this machine once and kept in `.cache/`."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest


REPOSITORY = Path(__file__).resolve().parents[2]


def build_kernel() -> Path:
    """The folder of a variant for CPUs; skips where there is no compiler."""
    if sys.platform != "linux" or shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("needs Linux and a C++ compiler")
    pytest.importorskip("kernels")
    path = REPOSITORY / "hub_kernels" / "sparse-attention" / "tools" / "build_local.py"
    spec = importlib.util.spec_from_file_location("build_local", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_local"] = module
    spec.loader.exec_module(module)
    return module.build("cpu", output=REPOSITORY / ".cache" / "sparse-attention")
