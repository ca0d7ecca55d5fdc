# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Output of a run."""

import json
from pathlib import Path

import pytest
from PIL import Image

from hf_segmodels import SegmenterForSemanticSegmentation
from hf_segmodels.training import accelerate_loop, trainer_loop
from hf_segmodels.training.reporting import History, draw_curves


@pytest.mark.parametrize("script", [accelerate_loop, trainer_loop])
def test_runs_leave_curves_pictures_and_logs(recipe, tmp_path, script):
    pytest.importorskip("tensorboard", reason="tensorboard is part of the `dev` extra")
    run = recipe(report_to=["tensorboard"], eval_steps=2)
    script.train(run)
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))
    sheet = Image.open(tmp_path / "run" / "predictions.png")
    # two images of 40 x 32: image, labels and prediction
    assert sheet.size == (3 * 40, 2 * 32)
    image, labels, prediction = (sheet.crop((40 * column, 0, 40 * column + 40, 32)) for column in range(3))
    assert image.tobytes() != labels.tobytes()
    assert image.tobytes() != prediction.tobytes()
    assert Image.open(tmp_path / "run" / "curves.png").width == 1200


@pytest.mark.parametrize("script", [accelerate_loop, trainer_loop])
def test_evaluation_follows_the_recipe(recipe, script, monkeypatch):
    options = {"scales": [0.5, 1.0], "flip": True, "window_size": 16, "window_stride": 8, "boundary_iou": True}
    asked = []
    predict = SegmenterForSemanticSegmentation.predict

    def predict_and_watch(self, *arguments, **fields):
        asked.append({name: fields.get(name) for name in ("scales", "flip", "window_size", "window_stride")})
        return predict(self, *arguments, **fields)

    monkeypatch.setattr(SegmenterForSemanticSegmentation, "predict", predict_and_watch)
    scores = script.train(recipe(max_steps=1, evaluation=options))
    assert asked[0] == {name: options[name] for name in asked[0]}
    results = json.loads(Path(recipe().output_dir, "results.json").read_text())
    assert 0 <= results["mean_boundary_iou"] == scores["mean_boundary_iou"] <= 1
    windows = {"window_size": [16, 16], "window_stride": [8, 8]}
    assert results["protocol"] == {"scales": [0.5, 1.0], "flip": True} | windows


def test_curves_show_what_was_measured(tmp_path):
    def blue(entries):
        draw_curves(History(entries), tmp_path / "curves.png")
        pixels = Image.open(tmp_path / "curves.png").convert("RGB").crop((0, 0, 400, 320))
        return sum(count for count, (red, _, blue) in pixels.getcolors(2**24) if blue > red + 80)

    assert blue([]) == 0
    rising = [{"step": step, "loss": step} for step in range(40)]
    assert blue(rising) > 100
    assert blue([{"step": 1, "mean_iou": 0.5}]) == 0


def test_history_is_part_of_a_checkpoint():
    first, second = History(), History()
    first.entries.append({"step": 1, "loss": 2.0})
    second.load_state_dict(first.state_dict())
    assert second.entries == [{"step": 1, "loss": 2.0}]
