# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Checkpoint folders of a run, `checkpoint-STEP`."""

from collections.abc import Callable
from pathlib import Path


def step_of(folder: Path) -> int:
    """The number of updates that a checkpoint was written after; -1 for a folder that is none."""
    number = folder.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def newest_checkpoint(output_dir: Path, is_complete: Callable[[Path], bool] = lambda folder: True) -> Path | None:
    """The checkpoint with the highest step of those that `is_complete`, or None."""
    folders = sorted(output_dir.glob("checkpoint-*"), key=step_of, reverse=True)
    return next((folder for folder in folders if step_of(folder) >= 0 and is_complete(folder)), None)


def checkpoint_to_resume(
    output_dir: Path, resume: bool, is_complete: Callable[[Path], bool] = lambda folder: True
) -> Path | None:
    """
    Where a run starts: the newest checkpoint if it is to `resume`, None for a start from nothing.

    Raises:
        ValueError: if there are checkpoints although the run is to start from nothing: its own would replace them.
    """
    checkpoint = newest_checkpoint(output_dir, is_complete)
    if checkpoint is not None and not resume:
        raise ValueError(
            f"{output_dir} holds {checkpoint.name} of an earlier run, which this one would replace: set `resume=true` to go "
            "on from it, give another `output_dir`, or delete the folder."
        )
    return checkpoint
