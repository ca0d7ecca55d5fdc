# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""What every test shares: slow and GPU tests are skipped unless asked for; nothing reaches for the network."""

import os
from pathlib import Path

import pytest


# Nothing here may depend on the Hub; this must be set before transformers is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

TRANSFORMERS_SUITE = "transformers_suite"


def _run_slow() -> bool:
    return os.environ.get("RUN_SLOW", "").lower() in {"1", "true", "yes", "on"}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The common suites of transformers need a download: they run only where their folder is named."""
    if collection_path.name == TRANSFORMERS_SUITE and not any(
        TRANSFORMERS_SUITE in argument for argument in config.args
    ):
        return True
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    skips = []
    if not _run_slow() and "slow" not in config.option.markexpr:
        skips.append(("slow", pytest.mark.skip(reason="slow: run with RUN_SLOW=1 or `make test-slow`")))
    if not torch.cuda.is_available():
        skips.append(("gpu", pytest.mark.skip(reason="needs a CUDA device")))
    for item in items:
        for name, skip in skips:
            if name in item.keywords:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared(repository: Path) -> Path:
    """Golden outputs and reference data beside the checkout; tests that need them are skipped where they are absent."""
    folder = repository.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the folder with reference data is not next to this checkout")
    return folder
