# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
from pathlib import Path

import pytest

from common.original_segmenter import write_checkpoint


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny mask transformer as the original saves it, with its `variant.yml`."""
    return write_checkpoint(tmp_path / "original")
