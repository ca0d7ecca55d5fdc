# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Prepares the common suites of transformers before the test files next to this one import them."""

import pytest

from common import transformers_sdist


MARKERS = [
    "accelerate_tests",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "is_pipeline_test",
    "is_training_test",
    "order",
    "torch_compile_test",
]

transformers_sdist.install()


def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", f"{marker}: set by transformers' own suites")
