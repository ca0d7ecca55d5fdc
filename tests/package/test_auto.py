# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Registration with the Auto classes, in processes that have not used them yet."""

import subprocess
import sys

import pytest


AFTER_IMPORT = {
    "at once": "",
    "after transformers looked for its own modules": (
        "import importlib.util\n"
        "for name in ('configuration_auto', 'modeling_auto', 'image_processing_auto'):\n"
        "    importlib.util.find_spec(f'transformers.models.auto.{name}')\n"
    ),
}
USE = """
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation
backbone = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 32}
config = AutoConfig.for_model("segmenter", backbone_config=backbone, num_labels=2)
assert type(AutoBackbone.from_config(config.backbone_config)).__name__ == "PlainViTBackbone"
assert type(AutoModelForSemanticSegmentation.from_config(config)).__name__ == "SegmenterForSemanticSegmentation"
"""
IN_THREADS = """
import threading
from transformers import AutoConfig
barrier, failures = threading.Barrier(8), []
def use():
    barrier.wait()
    try:
        AutoConfig.for_model("segmenter")
    except Exception as error:
        failures.append(error)
threads = [threading.Thread(target=use) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert not failures, failures[0]
"""


def run(code: str) -> None:
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("between", list(AFTER_IMPORT.values()), ids=list(AFTER_IMPORT))
def test_auto_classes_know_the_models(between):
    run("import hf_segmodels\n" + between + USE)


def test_auto_classes_that_were_imported_before():
    run("from transformers import AutoConfig, AutoModelForSemanticSegmentation\nimport hf_segmodels\n" + USE)


def test_first_use_from_several_threads():
    run("import hf_segmodels\n" + IN_THREADS)
