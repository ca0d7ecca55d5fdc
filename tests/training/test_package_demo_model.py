# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""From a run to the demo model of the package: weights, scores, card."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForSemanticSegmentation

import package_demo_model
from hf_segmodels.training import accelerate_loop


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the script for another repository."""
    monkeypatch.setattr(package_demo_model, "REPOSITORY", tmp_path)
    monkeypatch.setattr(package_demo_model, "MODEL_FOLDER", tmp_path / "demo_model")
    monkeypatch.setattr(package_demo_model, "RESULTS", tmp_path / "results" / "demo.json")

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["package_demo_model.py", *arguments])
        package_demo_model.main()

    return run


def test_a_run_becomes_the_demo_model(recipe, camera: Path, tmp_path: Path, package):
    data = shutil.copytree(camera, tmp_path / "data")
    shutil.copy(data / "validation.parquet", data / "test.parquet")
    accelerate_loop.train(recipe(dataset=str(data)))
    (tmp_path / "mine.yaml").touch()
    options = [
        "--recipe",
        str(tmp_path / "mine.yaml"),
        "--overrides",
        "seed=1",
        "--dataset",
        str(data),
        "--minutes",
        "3",
    ]
    package(str(tmp_path / "run"), *options)

    weights = load_file(tmp_path / "demo_model" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "demo_model").dtype == torch.float32
    results = json.loads((tmp_path / "results" / "demo.json").read_text())
    assert results["command"] == "mine.yaml seed=1"
    assert str(tmp_path) not in results["command"]
    path = tmp_path / "demo_model" / "README.md"
    card = ModelCard.load(path)
    (score,) = (
        result.metric_value
        for result in card.data.eval_results
        if (result.dataset_split, result.metric_type) == ("test", "mean_iou")
    )
    assert score == results["test"]["mean_iou"]
    assert "# Segmenter, demo size, trained on CamVid" in card.text
    assert "run_segmentation_accelerate.py mine.yaml seed=1" in card.text
    assert "in 3 minutes on two CPU cores" in card.text
    assert "| dark |" in card.text

    # the card alone, from what is there
    written = path.read_text()
    path.unlink()
    package("--card-only")
    assert path.read_text() == written


def test_a_run_needs_its_recipe(package, capsys):
    with pytest.raises(SystemExit):
        package("run")
    assert "--recipe, or --card-only" in capsys.readouterr().err
