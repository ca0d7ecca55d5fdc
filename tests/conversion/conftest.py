# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
import gzip
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSemanticSegmentation

from common.convert_command import main
from common.original_segmenter import write_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny mask transformer as the original saves it, with its `variant.yml`."""
    return write_checkpoint(tmp_path / "original")


@pytest.fixture(scope="module")
def golden(request: pytest.FixtureRequest, shared: Path) -> Path:
    """Stored outputs of the original, beside the checkout."""
    return shared / "golden" / request.module.FIXTURES.name


@pytest.fixture
def convert(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Any]:
    """Runs the command on a checkpoint, which may be compressed, and loads the result."""
    method, folder = request.module.FIXTURES.name, tmp_path / "converted"

    def run(checkpoint: Path, *options: str, **overrides) -> Any:
        if checkpoint.suffix == ".gz":
            with gzip.open(checkpoint) as compressed, (tmp_path / checkpoint.stem).open("wb") as file:
                shutil.copyfileobj(compressed, file)
            checkpoint = tmp_path / checkpoint.stem
        arguments = ["--method", method, "--checkpoint", str(checkpoint), "--output_dir", str(folder), "--overwrite"]
        assert main([*arguments, *options]) == 0
        return AutoModelForSemanticSegmentation.from_pretrained(folder, **overrides).eval()

    return run
