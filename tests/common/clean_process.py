# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Use of exported models without the package. `exported_models.run_clean_process` runs this file as a script, which can import
neither the package nor its tests.
"""

import base64
import importlib.util
import json
import sys
import tempfile
from io import BytesIO
from pathlib import Path


ARGUMENTS = json.loads(sys.argv[1])
for name in ARGUMENTS["blocked"]:
    sys.modules[name] = None

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import (  # noqa: E402
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    pipeline,
)
from transformers.utils import logging  # noqa: E402


logging.disable_progress_bar()

TRUST = {"trust_remote_code": True}
HAS_TORCHVISION = "torchvision" not in ARGUMENTS["blocked"]


def check_classes(model, image_processor) -> None:
    for part in (model, model.config, image_processor):
        assert type(part).__module__.startswith("transformers_modules."), type(part)


def check_outputs(source: str, expected: dict, image: Image.Image) -> None:
    model, loading_info = AutoModelForSemanticSegmentation.from_pretrained(source, output_loading_info=True, **TRUST)
    assert not any(loading_info.values()), loading_info
    processors = {"default": AutoImageProcessor.from_pretrained(source, **TRUST)}
    assert type(processors["default"]).__name__.endswith("Pil") != HAS_TORCHVISION
    for backend in ("torchvision", "pil") if HAS_TORCHVISION else ("pil",):
        processors[backend] = AutoImageProcessor.from_pretrained(source, backend=backend, **TRUST)
        assert type(processors[backend]).__name__.endswith("Pil") == (backend == "pil")
    for image_processor in processors.values():
        check_classes(model, image_processor)
        inputs = image_processor(image, return_tensors="pt")
        for name, values in inputs.items():
            np.testing.assert_allclose(values, expected[f"input_{name}"], rtol=0, atol=1e-6)
    inputs = {name: torch.tensor(expected[f"input_{name}"]) for name in inputs}
    with torch.no_grad():
        np.testing.assert_allclose(model(**inputs).logits, expected["logits"], rtol=0, atol=1e-6)
        labels = model.predict(**inputs, target_sizes=[(51, 77)])[0]
    np.testing.assert_array_equal(labels, expected["labels"])
    assert len(labels.unique()) > 1


def check_pipeline(source: str, expected: dict, image: Image.Image) -> None:
    segments = pipeline("image-segmentation", model=source, **TRUST)(image)
    assert {segment["label"] for segment in segments} == {
        name.removeprefix("mask_") for name in expected if name.startswith("mask_")
    }
    for segment in segments:
        np.testing.assert_array_equal(np.asarray(segment["mask"]), expected[f"mask_{segment['label']}"])


def check_backbone(source: str) -> None:
    config = AutoConfig.from_pretrained(source, **TRUST).backbone_config
    backbone = AutoBackbone.from_config(config, **TRUST).eval()
    weights = AutoModelForSemanticSegmentation.from_pretrained(source, **TRUST).backbone
    backbone.load_state_dict(weights.state_dict())
    with torch.no_grad():
        pixel_values = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        for ours, theirs in zip(weights(pixel_values).feature_maps, backbone(pixel_values).feature_maps, strict=True):
            torch.testing.assert_close(ours, theirs)


def load_handler(folder: Path):
    spec = importlib.util.spec_from_file_location("handler", folder / "handler.py")
    module = sys.modules["handler"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EndpointHandler()


def check_handler(handler, expected: dict, image: Image.Image) -> None:
    answer = handler({"inputs": image, "parameters": {"output": "label_map"}})
    labels = np.asarray(Image.open(BytesIO(base64.b64decode(answer["label_map"]))))
    for found in answer["classes"]:
        np.testing.assert_array_equal(255 * (labels == found["index"]), expected[f"mask_{found['label']}"])


def check_saved_again(source: str, expected: dict, image: Image.Image) -> None:
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForSemanticSegmentation.from_pretrained(source, **TRUST).save_pretrained(folder)
        AutoImageProcessor.from_pretrained(source, **TRUST).save_pretrained(folder)
        assert "/" not in json.dumps(json.loads(Path(folder, "config.json").read_text())["backbone_config"])
        check_outputs(folder, expected, image)
        config = json.loads(Path(folder, "preprocessor_config.json").read_text())
        assert sorted(config["auto_map"]["AutoImageProcessor"]) == ["pil", "torchvision"]


def push(source: str, repo_id: str) -> None:
    from transformers import Trainer, TrainingArguments

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, push_to_hub=True, hub_model_id=repo_id, use_cpu=True, report_to=[])
        model = AutoModelForSemanticSegmentation.from_pretrained(source, **TRUST)
        image_processor = AutoImageProcessor.from_pretrained(source, **TRUST)
        Trainer(model, arguments, processing_class=image_processor).push_to_hub()


handlers = []
for name, (source, expected_folder) in sorted(ARGUMENTS["cases"].items()):
    with np.load(Path(expected_folder, "expected.npz")) as arrays:
        expected = dict(arrays)
    image = Image.open(Path(expected_folder, "image.png"))
    check_outputs(source, expected, image)
    check_pipeline(source, expected, image)
    check_backbone(source)
    check_saved_again(source, expected, image)
    if Path(source).is_dir():
        handlers.append((load_handler(Path(source)), expected, image))
    if name in ARGUMENTS["push"]:
        push(source, ARGUMENTS["push"][name])
    print(name)
# after all were loaded, so that modules of the same name would be mixed up
for arguments in handlers:
    check_handler(*arguments)
