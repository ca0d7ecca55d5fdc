# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Scores of a model on a data set by the papers' protocol: sliding window, scales and flip, labels at their own size."""

import json
import math
import platform
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from ..inference import choose_windows
from ..inference.predictor import load_predictor
from ..metrics import SegmentationScores, sum_over_processes
from ..utils.errors import UserError, first_line


if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..data import SegmentationData
    from ..image_processing.segmentation_image_processor import SegmentationImageProcessor
    from ..modeling_utils import SegmentationPreTrainedModel


def evaluate_model(
    model: "SegmentationPreTrainedModel",
    image_processor: "SegmentationImageProcessor",
    data: "SegmentationData",
    window_size: int | Sequence[int] | None = None,
    window_stride: int | Sequence[int] | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    boundary_iou: bool = False,
    object_sizes: bool = False,
    accelerator: "Accelerator | None" = None,
) -> dict[str, Any]:
    """
    Runs `model.predict` over `data` and counts its label maps at the labels' own size.

    Args:
        model (`SegmentationPreTrainedModel`): One of the four models, on the device that it is to run on.
        image_processor (`SegmentationImageProcessor`): Its image processor.
        data (`SegmentationData`): Images and label maps, read with the labels of `image_processor`.
        window_size, window_stride, scales, flip: See `predict`.
        boundary_iou, object_sizes (`bool`, *optional*, defaults to `False`): What to count besides; see
            [`~hf_segmodels.metrics.SegmentationScores`].
        accelerator (`Accelerator`, *optional*): With several processes, each takes every n-th image and all get the
            scores of all.

    Returns:
        `dict`: See [`~hf_segmodels.metrics.SegmentationScores.compute`]; and `images`, how many there were.

    Raises:
        ValueError: if the labels of `data` are not those of `image_processor`.
    """
    if data.labels.do_reduce_labels != bool(image_processor.do_reduce_labels):
        raise ValueError(
            f"The processor has `do_reduce_labels={image_processor.do_reduce_labels}` but the labels of `data` were read "
            "otherwise: make it with `SegmentationData(..., processor=image_processor)`."
        )
    rank, num_processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    autocast: AbstractContextManager = accelerator.autocast() if accelerator else nullcontext()
    scores = SegmentationScores(
        model.config.num_labels, image_processor.ignore_index, boundary_iou=boundary_iou, object_sizes=object_sizes
    )
    num_images = 0
    with autocast:
        samples = data.shard(rank, num_processes)
        for image, label_map in tqdm(samples, desc="evaluate", disable=rank > 0, leave=False):
            inputs = image_processor(image, return_tensors="pt").to(model.device)
            (prediction,) = model.predict(
                **inputs.to(model.dtype),
                target_sizes=[tuple(label_map.shape)],
                window_size=window_size,
                window_stride=window_stride,
                scales=scales,
                flip=flip,
            )
            scores.update(prediction.cpu(), label_map.as_subclass(torch.Tensor))
            num_images += 1
    if accelerator:
        num_images = int(accelerator.reduce(torch.tensor(num_images, device=accelerator.device), reduction="sum"))
        scores = sum_over_processes(scores) or scores
    return {**scores.compute(), "images": num_images}


def evaluate(
    model: str,
    dataset: str,
    *,
    split: str = "validation",
    layout: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    label_mapping: str | None = None,
    output: Path | None = None,
    device: str | None = None,
    dtype: str = "float32",
    boundary_iou: bool = False,
    object_sizes: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """
    What `hf-segmodels evaluate` does: loads a model and a data set, scores the one on the other, prints a table.

    Args:
        model (`str`): Folder, or name of a repository on the Hub.
        dataset (`str`), split, layout, image_column, label_column, label_mapping: See [`SegmentationData`] and [`DatasetSpec`].
        output (`Path`, *optional*): JSON file for the scores and what they depend on.
        device (`str`, *optional*): Where the model runs; of each process its own GPU, or the CPU, if unset.
        dtype (`str`, *optional*, defaults to `"float32"`): Data type of the weights and of the computation.
        boundary_iou, object_sizes (`bool`, *optional*, defaults to `False`): See [`evaluate_model`].
        options: For the model's `predict`.

    Returns:
        `dict`: What `output` holds.

    Raises:
        UserError: if the model or the data cannot be used, or a library for it is missing.
    """
    try:
        from accelerate import Accelerator

        from ..data import DatasetSpec, SegmentationData
    except ImportError as error:
        raise UserError(f"evaluation needs {error.name}: pip install 'hf_segmodels[train]'.") from error

    accelerator = Accelerator(cpu=device == "cpu")
    if output is not None and not output.parent.is_dir():
        raise UserError(f"there is no folder {output.parent} for --output: create it first.")
    predictor = load_predictor(model, device=device or str(accelerator.device), dtype=dtype, **options)
    if not hasattr(predictor.model, "predict"):
        raise UserError(f"{type(predictor.model).__name__} has no `predict`: give one of this package's models.")
    try:
        spec = DatasetSpec(dataset, layout, image_column, label_column, label_mapping)
        data = SegmentationData(spec, split, processor=predictor.image_processor)
        with torch.inference_mode():
            scores = evaluate_model(
                predictor.model,
                predictor.image_processor,
                data,
                boundary_iou=boundary_iou,
                object_sizes=object_sizes,
                accelerator=accelerator,
                **options,
            )
    except (ValueError, OSError) as error:
        raise UserError(f"cannot evaluate on {dataset}: {first_line(error)}") from error
    protocol = describe_protocol(predictor.model.config, options)
    results = {"model": model, "dataset": dataset, "layout": layout, "split": split, "protocol": protocol, **scores}
    results |= {"dtype": dtype, "processes": accelerator.num_processes, **describe_run(predictor.model.device)}
    if accelerator.is_main_process:
        _print_scores(scores, predictor.id2label)
        if output is not None:
            output.write_text(results_as_json(results))
    return results


def describe_protocol(config: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """For a results file: the options of `predict`, with the window and the stride that they come to for a model."""
    windows = choose_windows(config, options.get("window_size"), options.get("window_stride"))
    window_size, window_stride = windows or (None, None)
    return {**options, "window_size": window_size, "window_stride": window_stride}


def results_as_json(results: dict[str, Any]) -> str:
    """The text of a results file, with null for scores that do not exist: JSON has no nan."""

    def written(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: written(part) for name, part in value.items()}
        if isinstance(value, list | tuple):
            return list(map(written, value))
        return None if isinstance(value, float) and math.isnan(value) else value

    return json.dumps(written(results), indent=1) + "\n"


def _print_scores(scores: dict[str, Any], id2label: dict[int, str]) -> None:
    width = max(len(name) for name in [*id2label.values(), "mean of the classes"])
    print(f"{'':{width}}    IoU  accuracy")
    rows = zip(scores["per_category_iou"], scores["per_category_accuracy"], strict=True)
    for index, (iou, accuracy) in enumerate(rows):
        print(f"{id2label[index]:{width}}  {100 * iou:5.2f}  {100 * accuracy:8.2f}")
    print(f"{'mean of the classes':{width}}  {100 * scores['mean_iou']:5.2f}  {100 * scores['mean_accuracy']:8.2f}")
    print(f"{'all pixels':{width}}         {100 * scores['overall_accuracy']:8.2f}")
    for name, score in scores.items():
        if name.startswith("mean_") and name not in ("mean_iou", "mean_accuracy"):
            print(f"{name.replace('_', ' '):{width}}  {100 * score:5.2f}")


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


__all__ = ["describe_protocol", "describe_run", "evaluate", "evaluate_model", "results_as_json"]
