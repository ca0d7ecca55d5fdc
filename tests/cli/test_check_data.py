# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""`hf-segmodels check-data` on folders and recipes."""

import json
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from common.segmentation_folders import (
    label_map,
    write_ade20k,
    write_folders,
    write_image,
    write_labels,
    write_pascal_context,
)
from hf_segmodels import SegmenterImageProcessor
from hf_segmodels.cli.main import main


datasets = pytest.importorskip("datasets", reason="part of the `train` and `dev` extras")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def folder(tmp_path):
    return write_folders(tmp_path / "data", {"a": label_map(0, 1, 255), "b": label_map(1)})


def run(capsys, *arguments):
    code = main(["check-data", *map(str, arguments)])
    return code, capsys.readouterr()


def write_recipe(path, **fields):
    path.write_text(yaml.safe_dump(fields))
    return path


def test_clean_folder(folder, capsys):
    code, printed = run(capsys, folder, "--num-labels", 2, "--num-workers", 1)
    assert code == 0
    assert "layout folder, 2 classes, labels are not reduced, 255 is ignored" in printed.out
    assert "2 of 2 occur" in printed.out
    assert printed.out.endswith("no label issues found\n")
    assert printed.err == ""


def test_issues_and_allowed_ones(folder, tmp_path, capsys):
    write_folders(folder, {"c": label_map(2)})
    write_image(folder / "images" / "d.jpg")
    arguments = [folder, "--num-labels", 2, "--json", tmp_path / "report.json"]
    code, printed = run(capsys, *arguments)
    assert code == 1
    assert "error: not-reduced (1)" in printed.out
    assert printed.out.endswith("2 label issues found: missing-label, not-reduced\n")
    assert run(capsys, *arguments, "--allow", "missing-label")[0] == 1
    assert run(capsys, *arguments, "--allow", "missing-label", "not-reduced")[0] == 0

    report = json.loads((tmp_path / "report.json").read_text())
    (split,) = report["splits"]
    assert (report["num_labels"], report["layout"], split["split"]) == (2, "folder", "train")
    assert split["pixels"] == [18, 66]
    assert split["other_values"] == {"2": 48}
    assert [issue["name"] for issue in split["issues"]] == ["missing-label", "not-reduced"]


def test_warnings_count_where_asked(folder, capsys):
    code, printed = run(capsys, folder, "--num-labels", 3)
    assert code == 0
    assert printed.out.endswith("no label issues found, 1 warning\n")
    assert run(capsys, folder, "--num-labels", 3, "--strict")[0] == 1
    assert run(capsys, folder, "--num-labels", 3, "--strict", "--allow", "absent-classes")[0] == 0


def test_layout_says_classes_and_reduction(tmp_path, capsys):
    write_ade20k(tmp_path, {"a": label_map(0, 1, 150)})
    code, printed = run(capsys, tmp_path)
    assert code == 0
    assert "layout ade20k, 150 classes, labels are reduced" in printed.out
    assert "door" not in printed.out
    assert "wall" in printed.out
    code, printed = run(capsys, tmp_path, "--no-reduce-labels")
    assert code == 1
    assert "not-reduced" in printed.out


def test_options_reach_the_check(folder, tmp_path, capsys):
    (tmp_path / "mapping.json").write_text('{"0": null, "1": 0, "255": null}')
    options = ["--num-labels", 1, "--label-mapping", tmp_path / "mapping.json", "--ignore-index", -1]
    code, printed = run(capsys, folder, *options)
    assert code == 0
    assert "1 classes, labels are not reduced, -1 is ignored" in printed.out
    assert "25.0% of the pixels" not in printed.out
    write_folders(folder, {f"c{index}": label_map(0, 1) for index in range(8)})
    code, printed = run(capsys, folder, "--num-labels", 2, "--limit", 4)
    assert code == 0
    assert "10 images with label maps, 4 read" in printed.out
    assert run(capsys, folder, "--num-labels", 2, "--reduce-labels")[0] == 1


def test_columns_and_splits_of_parquet(tmp_path, capsys):
    features = datasets.Features({"photo": datasets.Image(), "mask": datasets.Image()})
    for split, value in (("train", 1), ("test", 7)):
        rows = {"photo": [Image.new("RGB", (8, 6))], "mask": [Image.fromarray(label_map(0, value))]}
        (tmp_path / "data").mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data" / f"{split}.parquet")
    (tmp_path / "data" / "id2label.json").write_text('{"0": "dark", "1": "bright"}')
    columns = ["--image-column", "photo", "--label-column", "mask"]
    code, printed = run(capsys, tmp_path / "data", *columns)
    assert code == 1
    assert "1 label issue found: void-value" in printed.out
    assert "bright" in printed.out
    assert run(capsys, tmp_path / "data", *columns, "--split", "train")[0] == 0
    code, printed = run(capsys, tmp_path / "data")
    assert code == 2
    assert "set `image_column` and `label_column`" in printed.err


def test_recipe(folder, tmp_path, capsys):
    fields = {
        "dataset": str(folder),
        "layout": "folder",
        "train_split": "train",
        "eval_split": "train",
        "id2label": {0: "dark", 1: "bright"},
        "model": {"model_type": "segmenter"},
        "learning_rate": 0.1,
    }
    recipe = write_recipe(tmp_path / "recipe.yaml", **fields)
    code, printed = run(capsys, recipe)
    assert code == 0
    assert printed.out.count("2 images with label maps") == 1
    assert "bright" in printed.out

    recipe = write_recipe(tmp_path / "recipe.yaml", **fields, image_processor={"do_reduce_labels": True})
    code, printed = run(capsys, recipe)
    assert code == 1
    assert "reduced-twice" in printed.out
    assert run(capsys, recipe, "--no-reduce-labels")[0] == 0

    recipe = write_recipe(tmp_path / "recipe.yaml", **fields, label_mapping={0: 0, 1: 1}, streaming=True)
    code, printed = run(capsys, recipe)
    assert code == 1
    assert "unmapped-values" in printed.out


def test_recipe_whose_model_says_the_classes(folder, tmp_path, capsys):
    fields = {"dataset": str(folder), "layout": "folder", "eval_split": "train"}
    recipe = write_recipe(tmp_path / "recipe.yaml", **fields, model={"model_type": "segmenter", "num_labels": 7})
    assert "layout folder, 7 classes" in run(capsys, recipe)[1].out
    # of a trained model, the image processor counts as well
    config = {"model_type": "segmenter", "id2label": {0: "a", 1: "b", 2: "c"}}
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "config.json").write_text(json.dumps(config))
    SegmenterImageProcessor(do_reduce_labels=True, ignore_index=254).save_pretrained(tmp_path / "trained")
    recipe = write_recipe(tmp_path / "recipe.yaml", **fields, pretrained=str(tmp_path / "trained"))
    assert "3 classes, labels are reduced, 254 is ignored" in run(capsys, recipe)[1].out
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        **fields,
        pretrained=str(tmp_path / "trained"),
        image_processor={"do_reduce_labels": False},
    )
    assert "3 classes, labels are not reduced, 254 is ignored" in run(capsys, recipe)[1].out


def missing_recipe(tmp_path):
    return [tmp_path / "none.yaml"], "No such file"


def broken_recipe(tmp_path):
    (tmp_path / "recipe.yaml").write_text("dataset: [")
    return [tmp_path / "recipe.yaml"], "recipe.yaml is not valid YAML: "


def recipe_without_data(tmp_path):
    return [write_recipe(tmp_path / "recipe.yaml", model={})], "needs `dataset`"


def recipe_without_classes(tmp_path):
    return [write_recipe(tmp_path / "recipe.yaml", dataset="x")], "needs `model`"


def missing_folder(tmp_path):
    return [tmp_path / "none"], "there is no folder"


def unknown_number_of_classes(tmp_path):
    return [write_folders(tmp_path / "data", {"a": label_map(0)})], "pass --num-labels"


def two_layouts(tmp_path):
    return [write_pascal_context(tmp_path, {"a": label_map(0)})], "choose one with --layout"


def wrong_layout(tmp_path):
    return [tmp_path, "--layout", "cityscapes"], "does not have the layout 'cityscapes'"


def missing_split(tmp_path):
    folder = write_folders(tmp_path, {"a": label_map(0)})
    return [folder, "--split", "test", "--num-labels", "2"], "no split 'test': choose one of train"


def unknown_issue(tmp_path):
    return [
        write_folders(tmp_path, {"a": label_map(0)}),
        "--num-labels",
        "2",
        "--allow",
        "void",
    ], "--allow void: choose label issues among unreadable-image"


def no_folder_for_the_report(tmp_path):
    return [tmp_path, "--json", tmp_path / "none" / "report.json"], "create it first"


def no_number(tmp_path):
    return [tmp_path, "--num-labels", "0"], "not a whole number from 1 on"


@pytest.mark.parametrize(
    "case",
    [
        missing_recipe,
        broken_recipe,
        recipe_without_data,
        recipe_without_classes,
        missing_folder,
        unknown_number_of_classes,
        two_layouts,
        wrong_layout,
        missing_split,
        unknown_issue,
        no_folder_for_the_report,
        no_number,
    ],
)
def test_what_cannot_be_checked(tmp_path, capsys, case):
    arguments, message = case(tmp_path)
    code, printed = run(capsys, *arguments)
    assert code == 2
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1


@pytest.mark.parametrize("num_workers", [1, 2])
def test_process(tmp_path, num_workers):
    # more than one chunk, so that there are workers
    noise = np.random.default_rng(0).integers(0, 3, (6, 8), dtype=np.uint8)
    folder = write_folders(tmp_path / "data", {f"{index}": noise for index in range(40)})
    write_labels(folder / "labels" / "3.png", noise.astype(np.float32).astype(np.uint16) * 300)
    command = [sys.executable, "-m", "hf_segmodels.cli", "check-data", str(folder), "--num-labels", "3"]
    result = subprocess.run([*command, "--num-workers", str(num_workers)], capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert result.stderr == ""
    assert "40 images with label maps" in result.stdout
    assert "1 label issue found: outside-classes" in result.stdout
