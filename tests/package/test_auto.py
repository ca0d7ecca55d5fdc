# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Registration with the Auto classes, in new processes."""

import subprocess
import sys


USE = """
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation
backbone = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 32}
config = AutoConfig.for_model("segmenter", backbone_config=backbone, num_labels=2)
assert type(AutoBackbone.from_config(config.backbone_config)).__name__ == "PlainViTBackbone"
assert type(AutoModelForSemanticSegmentation.from_config(config)).__name__ == "SegmenterForSemanticSegmentation"
"""


def run(code: str) -> None:
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


def test_auto_classes_know_the_models():
    run("import hf_segmodels\n" + USE)


def test_auto_classes_that_were_imported_before():
    run("from transformers import AutoConfig, AutoModelForSemanticSegmentation\nimport hf_segmodels\n" + USE)


def test_registering_again_changes_nothing():
    run("import hf_segmodels\nfrom hf_segmodels.auto import register\nregister()\n" + USE)
