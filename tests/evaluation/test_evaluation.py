# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""`hf-segmodels evaluate`, on a folder of small images."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from hf_segmodels import PlainViTConfig, RegProxyConfig, RegProxyForSemanticSegmentation, RegProxyImageProcessor
from hf_segmodels.cli.main import main
from hf_segmodels.data import DatasetSpec, SegmentationData
from hf_segmodels.evaluation import describe_run, evaluate_model, results_as_json


SIZES = ((32, 40), (24, 32), (40, 24), (32, 32), (16, 48))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of several sizes with labels of three classes, some ignored."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (root / kind / "validation").mkdir(parents=True)
    for index, size in enumerate(SIZES):
        image = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        labels = generator.integers(0, 3, size, dtype=np.uint8)
        labels[:4] = 255
        Image.fromarray(image).save(root / "images" / "validation" / f"{index}.png")
        Image.fromarray(labels).save(root / "labels" / "validation" / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    torch.manual_seed(0)
    encoder = PlainViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=1, patch_size=8, image_size=32, initializer_range=0.5
    )
    names = {0: "road", 1: "tree", 2: "sky"}
    model = RegProxyForSemanticSegmentation(
        RegProxyConfig(backbone_config=encoder, token_head_depth=0, id2label=names, initializer_range=0.5)
    )
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    RegProxyImageProcessor(do_resize=False, num_labels=3).save_pretrained(path)
    return path


def run(folder, model_folder, *options):
    data = ["--dataset", str(folder), "--layout", "folder"]
    return main(["evaluate", "--model", str(model_folder), *data, "--device", "cpu", *options])


def test_scores_are_those_of_a_plain_count(folder, model_folder, tmp_path, capsys):
    assert run(folder, model_folder, "--output", str(tmp_path / "scores.json")) == 0
    results = json.loads((tmp_path / "scores.json").read_text())
    model = RegProxyForSemanticSegmentation.from_pretrained(model_folder).eval()
    processor = RegProxyImageProcessor.from_pretrained(model_folder)
    predictions, references = [], []
    for index in range(len(SIZES)):
        image = Image.open(folder / "images" / "validation" / f"{index}.png")
        (prediction,) = model.predict(processor(image, return_tensors="pt")["pixel_values"])
        predictions.append(prediction.flatten())
        labels = np.array(Image.open(folder / "labels" / "validation" / f"{index}.png"))
        references.append(torch.from_numpy(labels).flatten())
    prediction, reference = torch.cat(predictions), torch.cat(references)
    prediction, reference = prediction[reference != 255], reference[reference != 255]
    for label in range(3):
        both = ((prediction == label) & (reference == label)).sum()
        either = ((prediction == label) | (reference == label)).sum()
        assert results["per_category_iou"][label] == pytest.approx((both / either).item())
    assert results["overall_accuracy"] == pytest.approx((prediction == reference).double().mean().item())
    assert results["images"] == len(SIZES)
    assert results["torch"] == describe_run("cpu")["torch"]
    printed = capsys.readouterr().out
    assert f"{100 * results['mean_iou']:5.2f}" in printed.splitlines()[-2]
    assert all(name in printed for name in ("road", "tree", "sky"))


def test_windows_scales_and_flip_take_part(folder, model_folder, tmp_path):
    def scores(*options):
        assert run(folder, model_folder, *options, "--output", str(tmp_path / "scores.json")) == 0
        return json.loads((tmp_path / "scores.json").read_text())

    plain = scores()
    for options in (["--window", "16"], ["--flip"], ["--scales", "0.5", "1.5"]):
        assert scores(*options)["per_category_iou"] != plain["per_category_iou"], options
    protocol = scores("--window", "16", "--stride", "8", "--flip")["protocol"]
    assert protocol == {"window_size": [16, 16], "window_stride": [8, 8], "flip": True}
    # whatever stride the configuration has, it is that of another window
    assert scores("--window", "16")["protocol"] == {"window_size": [16, 16], "window_stride": [16, 16]}
    assert scores("--window", "0")["protocol"] == {"window_size": None, "window_stride": None}


def test_boundaries_and_sizes_of_objects_count_on_demand(folder, model_folder, tmp_path, capsys):
    assert run(folder, model_folder, "--boundary-iou", "--object-sizes", "--output", str(tmp_path / "scores.json")) == 0
    results = json.loads((tmp_path / "scores.json").read_text())
    printed = capsys.readouterr().out
    for name in ("mean_boundary_iou", "mean_iou_small"):
        assert 0 < results[name] < 1
        assert f"{100 * results[name]:5.2f}" in printed
    assert results["mean_boundary_iou"] != results["mean_iou"]


def test_files_hold_null_where_there_is_no_score():
    text = results_as_json({"mean_iou": 0.5, "per_category_iou": [0.5, float("nan")], "protocol": {"scales": (1.0,)}})

    def refuse(name):
        raise AssertionError(name)

    expected = {"mean_iou": 0.5, "per_category_iou": [0.5, None], "protocol": {"scales": [1.0]}}
    assert json.loads(text, parse_constant=refuse) == expected


def test_labels_read_for_another_processor_are_refused(folder, model_folder):
    model = RegProxyForSemanticSegmentation.from_pretrained(model_folder)
    data = SegmentationData(DatasetSpec(folder, "folder"), "validation")
    processor = RegProxyImageProcessor(do_reduce_labels=True)
    with pytest.raises(ValueError, match="processor=image_processor"):
        evaluate_model(model, processor, data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "test"], "test"),
        (["--layout", "ade"], "ade20k"),
        (["--output", "/nonexistent/scores.json"], "create it first"),
        (["--stride", "16"], "--window and --stride"),
    ],
)
def test_mistakes_are_named(folder, model_folder, capsys, options, message):
    assert run(folder, model_folder, *options) == 2
    assert message in capsys.readouterr().err


def test_data_with_other_classes_is_refused(folder, model_folder, tmp_path, capsys):
    for kind in ("images", "labels"):
        (tmp_path / kind / "validation").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "validation" / "a.png")
    Image.new("L", (8, 8), 7).save(tmp_path / "labels" / "validation" / "a.png")
    assert run(tmp_path, model_folder) == 2
    assert "outside the 3 classes" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_count_like_one(folder, model_folder, tmp_path):
    assert run(folder, model_folder, "--output", str(tmp_path / "one.json")) == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = ["-m", "hf_segmodels.cli", "evaluate", "--model", str(model_folder), "--dataset", str(folder)]
    options = ["--layout", "folder", "--device", "cpu", "--output", str(tmp_path / "two.json")]
    subprocess.run([*launch, *command, *options], check=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert (one["processes"], two["processes"]) == (1, 2)
    for name in ("per_category_iou", "per_category_accuracy", "overall_accuracy", "images"):
        assert one[name] == two[name]
