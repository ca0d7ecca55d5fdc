# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Trained models side by side."""

import json

from PIL import Image

from hf_segmodels.evaluation import evaluate
from hf_segmodels.training import compare_runs
from hf_segmodels.training.accelerate_loop import train


def test_runs_are_scored_and_ranked(recipe, tmp_path, capsys):
    runs = [recipe("short", max_steps=1), recipe("long", max_steps=20)]
    for run in runs:
        train(run)
    photograph = tmp_path / "photo.png"
    Image.new("RGB", (60, 40), (200, 200, 200)).save(photograph)
    output = tmp_path / "comparison"
    folders = [run.output_dir for run in runs]
    arguments = [*folders, "--split", "validation", "--image", str(photograph), "--output", str(output)]
    assert compare_runs.main(arguments) == 0

    results = json.loads((output / "comparison.json").read_text())
    expected = evaluate(folders[1], runs[1].dataset, boundary_iou=True)
    assert [run["training_steps"] for run in results["runs"]] == [1, 20]
    assert results["runs"][1]["test"]["mean_boundary_iou"] == expected["mean_boundary_iou"]
    assert results["runs"][1]["images"] == 2
    rows = (output / "comparison.md").read_text().splitlines()
    # the better one first
    rows = [row.strip("| ").split(" | ") for row in rows if row.startswith(("| long", "| short", "| dark"))]
    assert [row[3] for row in rows[:2]] == ["20", "1"]
    assert rows[0][5] == f"{100 * expected['mean_iou']:.1f}"
    assert rows[2][1] == f"{100 * expected['per_category_iou'][0]:.1f}"
    assert "<svg" in (output / "curves.svg").read_text()
    # the photograph and two models in one row
    assert Image.open(output / "predictions.jpg").width > 3 * 60

    assert compare_runs.main([str(tmp_path), "--output", str(output)]) == 2
    assert "no results.json of a finished run" in capsys.readouterr().err
