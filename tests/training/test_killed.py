# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Runs that are interrupted and resumed."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from hf_segmodels.training import accelerate_loop, trainer_loop


SCRIPTS = ("run_segmentation_accelerate.py", "run_segmentation_trainer.py")


@pytest.mark.parametrize("script", [accelerate_loop, trainer_loop])
def test_a_full_disk_costs_the_steps_since_the_last_checkpoint(recipe, script, monkeypatch):
    fields = {"checkpoint_steps": 1, "max_steps": 3}
    whole, part = recipe("whole", **fields), recipe("part", **fields)
    expected = script.train(whole)

    save, optimizers = torch.save, []

    def save_until_full(state, file, *arguments, **options):
        optimizers.extend(name for name in [Path(str(file)).stem] if name == "optimizer")
        if len(optimizers) == 2:
            Path(file).write_bytes(b"PK")
            raise OSError(28, "No space left on device")
        save(state, file, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save_until_full)
        with pytest.raises(OSError, match="No space left"):
            script.train(part)
    part.resume = True
    resumed = script.train(part)
    assert resumed["losses"] == expected["losses"]
    assert resumed["per_category_iou"] == expected["per_category_iou"]


@pytest.mark.parametrize("script", [accelerate_loop, trainer_loop])
def test_a_new_run_does_not_replace_the_checkpoints_of_another(recipe, script):
    script.train(recipe(max_steps=2))
    with pytest.raises(ValueError, match="holds checkpoint-2 of an earlier run.*`resume=true`"):
        script.train(recipe(max_steps=1))
    assert [path.name for path in Path(recipe().output_dir).glob("checkpoint-*")] == ["checkpoint-2"]
    assert len(script.train(recipe(max_steps=3, resume=True))["losses"]) == 3
    # the time since the last resume
    assert json.loads(Path(recipe().output_dir, "results.json").read_text())["seconds_since_step"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_killed_run_ends_like_one_that_was_not(recipe, repository, tmp_path, script):
    model = recipe().model | {"decoder_type": "mask_transformer", "decoder_num_hidden_layers": 1}
    fields = {
        "model": model,
        "max_steps": 60,
        "checkpoint_steps": 5,
        "eval_steps": 1000,
        "photometric_distortion": True,
    }
    if script == SCRIPTS[0]:
        fields["ema_decay"] = 0.9
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment["HF_DATASETS_CACHE"] = str(tmp_path / "cache")

    def start(name, *overrides):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(dataclasses.asdict(recipe(name, **fields))))
        command = [sys.executable, str(repository / "training" / script), str(tmp_path / f"{name}.yaml"), *overrides]
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def finish(process):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()[-3000:]

    finish(start("whole"))
    killed = start("killed")
    folder = tmp_path / "killed"
    for _ in range(3000):
        if list(folder.glob("checkpoint-[0-9]*")) or killed.poll() is not None:
            break
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert not (folder / "results.json").exists()
    finish(start("killed", "resume=true"))

    whole, resumed = (
        safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed")
    )
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(values, resumed[name]) for name, values in whole.items())
    first, second = (json.loads(Path(tmp_path, name, "results.json").read_text()) for name in ("whole", "killed"))
    assert first["per_category_iou"] == second["per_category_iou"]
    assert first["final_loss"] == second["final_loss"]
    assert first["history"] == second["history"]
