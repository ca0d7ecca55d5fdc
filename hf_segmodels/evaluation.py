# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Scores of a model on a data set by the papers' protocol: sliding window, scales and flip, labels at their own size."""

import platform
import subprocess
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm
from transformers.image_processing_utils import BaseImageProcessor
from transformers.modeling_utils import PreTrainedModel

from .metrics import ConfusionMatrix


if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.utils.data import Dataset


def evaluate_model(
    model: PreTrainedModel,
    image_processor: BaseImageProcessor,
    data: "Dataset",
    window_size: int | Sequence[int] | None = None,
    window_stride: int | Sequence[int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    accelerator: "Accelerator | None" = None,
) -> dict[str, Any]:
    """
    Runs `model.predict` over `data` and counts its label maps at the labels' own size.

    Args:
        model (`PreTrainedModel`): One of the four models, on the device that it is to run on.
        image_processor (`BaseImageProcessor`): Its image processor.
        data (`SegmentationData`): Images and label maps, read with the labels of `image_processor`.
        window_size, window_stride, scales, flip: See `predict`.
        accelerator (`Accelerator`, *optional*): With several processes, each takes every n-th image and all get the
            scores of all.

    Returns:
        `dict`: See [`~hf_segmodels.metrics.ConfusionMatrix.compute`].

    Raises:
        ValueError: if the labels of `data` are not those of `image_processor`.
    """
    if data.do_reduce_labels != bool(image_processor.do_reduce_labels):
        raise ValueError(
            f"The processor has `do_reduce_labels={image_processor.do_reduce_labels}` but the labels of `data` were read "
            "otherwise: make it with `SegmentationData(..., processor=image_processor)`."
        )
    rank, num_processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    autocast: AbstractContextManager = accelerator.autocast() if accelerator else nullcontext()
    matrix = ConfusionMatrix(model.config.num_labels, image_processor.ignore_index)
    with autocast:
        for index in tqdm(range(rank, len(data), num_processes), desc="evaluate", disable=rank > 0, leave=False):
            image, label_map = data[index]
            inputs = image_processor(image, return_tensors="pt").to(model.device)
            (prediction,) = model.predict(
                **inputs.to(model.dtype),
                target_sizes=[tuple(label_map.shape)],
                window_size=window_size,
                window_stride=window_stride,
                scales=scales,
                flip=flip,
            )
            matrix.update(prediction.cpu(), label_map.as_subclass(torch.Tensor))
    if accelerator:
        counts = matrix.counts.to(accelerator.device)
        matrix.counts = accelerator.reduce(counts, reduction="sum").cpu()
    return matrix.compute()


def describe_run(device: torch.device | str, seed: int | None = None) -> dict[str, Any]:
    """
    What figures depend on besides model and data, for a results file: versions, device, threads, seed, and the commit of
    this package where it is a git checkout (with "+" for uncommitted changes).
    """
    device = torch.device(device)
    description = {
        **{name: version(name) for name in ("hf_segmodels", "torch", "transformers")},
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads",
        "commit": _commit(),
    }
    return description if seed is None else description | {"seed": seed}


def _commit() -> str | None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # an installed package may lie inside some other repository
        if not git("ls-files", Path(__file__).name):
            return None
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


__all__ = ["describe_run", "evaluate_model"]
