# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Importing the package is cheap and silent, and so is a pipeline on one of its models."""

import statistics
import subprocess
import sys

from common.tiny_segmenter import save_tiny_segmenter


def run(code: str) -> subprocess.CompletedProcess:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result


def test_import_prints_nothing_and_loads_no_torch():
    result = run("import hf_segmodels, sys; sys.exit('torch' in sys.modules)")
    assert (result.stdout, result.stderr) == ("", "")


def test_import_after_transformers_takes_less_than_three_tenths_of_a_second():
    code = (
        "import time, transformers; start = time.perf_counter(); import hf_segmodels; "
        "print(time.perf_counter() - start)"
    )
    assert statistics.median(float(run(code).stdout) for _ in range(3)) < 0.3


def test_pipeline_logs_nothing(tmp_path):
    folder = save_tiny_segmenter(tmp_path)
    # the bar for the weights is transformers' own, and the same for every model
    code = f"""
import hf_segmodels, numpy as np, transformers
from PIL import Image
transformers.utils.logging.disable_progress_bar()
segmenter = transformers.pipeline("image-segmentation", model={str(folder)!r}, device="cpu")
assert segmenter(Image.fromarray(np.zeros((40, 50, 3), np.uint8)))
"""
    result = run(code)
    assert (result.stdout, result.stderr) == ("", "")
