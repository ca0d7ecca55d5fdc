# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
A build of this project for this machine, made once and kept in `.cache/` of the checkout. `SPARSE_ATTENTION_KERNEL`
names another one: a folder that holds `build/` or variants.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch


PROJECT = Path(__file__).resolve().parents[1]
CACHE = PROJECT.parents[1] / ".cache" / "sparse-attention"


def load_build_local() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_local", PROJECT / "tools" / "build_local.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_local"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def build_local() -> ModuleType:
    return load_build_local()


@pytest.fixture(scope="session")
def variant(build_local: ModuleType) -> Path:
    """The folder of a variant: CUDA's where there is a GPU, otherwise the CPU's."""
    if sys.platform != "linux" or shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("needs Linux and a C++ compiler")
    return build_local.build(None if torch.cuda.is_available() else "cpu", output=CACHE)


@pytest.fixture(scope="session")
def kernel(variant: Path) -> ModuleType:
    kernels = pytest.importorskip("kernels")
    return kernels.get_local_kernel(Path(os.environ.get("SPARSE_ATTENTION_KERNEL", variant)))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than about five seconds; run with RUN_SLOW=1")
    config.addinivalue_line("markers", "gpu: needs a CUDA device, skipped elsewhere")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    if "gpu" in item.keywords and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if "slow" in item.keywords and os.environ.get("RUN_SLOW", "").lower() not in {"1", "true", "yes", "on"}:
        pytest.skip("slow: run with RUN_SLOW=1")
