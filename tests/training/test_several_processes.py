# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""The scripts in two processes on the CPU (gloo)."""

import dataclasses
import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from transformers import AutoModelForSemanticSegmentation

from hf_segmodels.training import accelerate_loop as script
from hf_segmodels.training import factory


pytestmark = pytest.mark.slow


def run_two(worker, folder, *arguments):
    """Runs `worker(rank, *arguments)` in two processes that know of each other; what hangs is ended."""
    torch.multiprocessing.spawn(_start, args=(worker, str(folder / "store"), arguments), nprocs=2)


def _start(rank, worker, store, arguments):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60)
    )
    worker(rank, *arguments)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["run_segmentation_accelerate", "run_segmentation_trainer"])
def test_two_processes_equal_one_with_their_batches_together(recipe, repository, tmp_path, name):
    # scale 1, a crop of the image's size and flips keep the number of valid pixels equal in all samples
    fields = {
        "scale_range": [1.0, 1.0],
        "crop_size": [32, 40],
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "max_steps": 2,
    }
    one, two = recipe("one", batch_size=8, **fields), recipe("two", batch_size=4, **fields)
    expected = script.train(one)

    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(dataclasses.asdict(two)))
    # `accelerate launch --cpu` starts one process only
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run(
        [*launch, str(repository / f"training/{name}.py"), str(tmp_path / "recipe.yaml")],
        check=True,
        timeout=300,
        env=os.environ
        | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")},
    )

    states = [AutoModelForSemanticSegmentation.from_pretrained(run.output_dir).state_dict() for run in (one, two)]
    for key, values in states[0].items():
        torch.testing.assert_close(values, states[1][key], rtol=1e-4, atol=1e-6)
    scores = json.loads(Path(two.output_dir, "results.json").read_text())
    assert scores["per_category_iou"] == pytest.approx(expected["per_category_iou"], abs=1e-3)
    # each process's own
    random_states = sorted(path.stem for path in Path(two.output_dir, "checkpoint-2").glob("r*_state*_?.p*"))
    prefix = "random_states" if name == "run_segmentation_accelerate" else "rng_state"
    assert random_states == [f"{prefix}_0", f"{prefix}_1"]


def _save_unevenly(rank, folder):
    """The second process is late to write, the first slow to rename."""
    accelerator = Accelerator()
    save, rename = accelerator.save_state, Path.rename
    accelerator.save_state = lambda path: (time.sleep(rank), save(path))
    Path.rename = lambda path, target: (time.sleep(1), rename(path, target))
    script.save_checkpoint(accelerator, folder, 3)
    assert {path.name for path in folder.iterdir()} == {"checkpoint-3"}
    assert {"random_states_0.pkl", "random_states_1.pkl"} <= {path.name for path in (folder / "checkpoint-3").iterdir()}


def test_checkpoint_waits_for_all_and_all_wait_for_it(tmp_path):
    (tmp_path / "run").mkdir()
    run_two(_save_unevenly, tmp_path, tmp_path / "run")


def _train_with_a_bad_loss(rank, run):
    loss = factory.Loss.__call__
    if rank == 1:
        factory.Loss.__call__ = lambda self, *arguments: loss(self, *arguments) * float("nan")
    with pytest.raises(FloatingPointError, match="at training step 1"):
        script.train(run)


def test_all_processes_stop_on_a_loss_that_is_not_finite_in_one(recipe, tmp_path):
    run = recipe(log_steps=100)
    run_two(_train_with_a_bad_loss, tmp_path, run)
    assert not list(Path(run.output_dir).glob("checkpoint-*"))
