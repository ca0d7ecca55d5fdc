# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Models that transformers' `Trainer` pushes to the Hub, with and without code."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, Trainer, TrainingArguments

from common.exported_models import make_model, run_clean_process, write_expected
from common.hub_server import Hub, environment_of, running_hub, use_hub
from hf_segmodels import SegmenterForSemanticSegmentation, SegmenterImageProcessor
from hf_segmodels.hub import RemoteCodeCallback, export_for_hub


REPOSITORY = "someone/trained"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with running_hub() as hub:
        use_hub(hub.url, monkeypatch)
        yield hub


def make_trainer(model, image_processor, folder: Path, callbacks: tuple = (), **arguments) -> Trainer:
    sample = {"pixel_values": torch.rand(3, 64, 80), "labels": torch.randint(0, 3, (64, 80))}
    return Trainer(
        model,
        TrainingArguments(
            str(folder),
            max_steps=1,
            per_device_train_batch_size=1,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            push_to_hub=True,
            hub_model_id=REPOSITORY,
            **arguments,
        ),
        train_dataset=[sample],
        processing_class=image_processor,
        callbacks=list(callbacks),
    )


def check_that_the_package_loads_it(cache: Path) -> None:
    model = AutoModelForSemanticSegmentation.from_pretrained(REPOSITORY, cache_dir=cache)
    assert type(model) is SegmenterForSemanticSegmentation
    assert type(AutoImageProcessor.from_pretrained(REPOSITORY, cache_dir=cache)) is SegmenterImageProcessor


def test_with_the_code(hub: Hub, tmp_path: Path):
    model, image_processor = make_model("segmenter-linear")
    trainer = make_trainer(
        model, image_processor, tmp_path / "run", [RemoteCodeCallback()], save_strategy="steps", save_steps=1
    )
    trainer.train()
    trainer.push_to_hub()
    files = hub.repositories[REPOSITORY].files
    exported = export_for_hub(model, image_processor, tmp_path / "exported")
    for path in exported.iterdir():
        if path.suffix == ".py" or path.name in ("requirements.txt", "preprocessor_config.json", "model.safetensors"):
            assert files[path.name] == path.read_bytes(), path.name
    check_that_the_package_loads_it(tmp_path / "cache")


def test_without_the_code_the_package_is_needed(hub: Hub, tmp_path: Path):
    make_trainer(*make_model("segmenter-linear"), tmp_path / "run").push_to_hub()
    assert not any(name.endswith(".py") for name in hub.repositories[REPOSITORY].files)
    check_that_the_package_loads_it(tmp_path / "cache")


@pytest.mark.slow  # processes that import everything, 40 s
def test_processes_without_the_package(hub: Hub, tmp_path: Path):
    """Push with the callback, and push again from a process that loaded the model with its remote code."""
    model, image_processor = make_model("unept-resnet")
    write_expected(model, image_processor, tmp_path / "expected")
    make_trainer(model, image_processor, tmp_path / "run", [RemoteCodeCallback()]).push_to_hub()
    run_clean_process(
        {"trained": (REPOSITORY, tmp_path / "expected")},
        tmp_path,
        push={"trained": "someone/trained-on"},
        **environment_of(hub),
    )
    assert "modeling_unept.py" in hub.repositories["someone/trained-on"].files
    run_clean_process(
        {"trained-on": ("someone/trained-on", tmp_path / "expected")}, tmp_path, **environment_of(hub, token=None)
    )
