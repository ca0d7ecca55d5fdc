# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Evaluation by the papers' protocol: sliding window, scales and flip, label maps at their original size."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from ..inference.predictor import load_predictor
from ..metrics import SegmentationScores, sum_over_processes
from ..utils.errors import UserError, first_line
from .results import EvaluationResults, describe_protocol, describe_run


if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..data import SegmentationData
    from ..image_processing.segmentation_image_processor import SegmentationImageProcessor
    from ..modeling_utils import SegmentationPreTrainedModel


def evaluate_model(
    model: "SegmentationPreTrainedModel",
    image_processor: "SegmentationImageProcessor",
    data: "SegmentationData",
    boundary_iou: bool = False,
    object_sizes: bool = False,
    accelerator: "Accelerator | None" = None,
    **options: Any,
) -> dict[str, Any]:
    """
    Run `model.predict` over `data` and score the label maps at the size of the labels.

    Args:
        model (`SegmentationPreTrainedModel`): Model with `predict`, on the device to run on.
        image_processor (`SegmentationImageProcessor`): Image processor of the model.
        data (`SegmentationData`): Images and label maps, read with the labels of `image_processor`.
        boundary_iou, object_sizes (`bool`, *optional*, defaults to `False`): Whether to compute the boundary IoU and the mean
            IoU of small, medium and large objects as well. See [`~hf_segmodels.metrics.SegmentationScores`].
        accelerator (`Accelerator`, *optional*):
            Splits the images between the processes; every process returns the scores over all images.
        options: Arguments of `predict`: `window_size`, `window_stride`, `scales`, `flip`.

    Returns:
        `dict`: See [`~hf_segmodels.metrics.SegmentationScores.compute`]. `images` is the number of images.

    Raises:
        ValueError: if `data` was read with another `do_reduce_labels` than that of `image_processor`.
    """
    if data.labels.do_reduce_labels != bool(image_processor.do_reduce_labels):
        raise ValueError(
            f"`image_processor` has `do_reduce_labels={image_processor.do_reduce_labels}`, but `data` was read with "
            f"`do_reduce_labels={data.labels.do_reduce_labels}`: create it with `SegmentationData(..., processor=image_processor)`."
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
            (prediction,) = model.predict(**inputs.to(model.dtype), target_sizes=[tuple(label_map.shape)], **options)
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
    Load a model and a data set, evaluate the model and print a table of scores (`hf-segmodels evaluate`).

    Args:
        model (`str`): Folder or Hub repository.
        dataset (`str`), layout, image_column, label_column, label_mapping: See [`DatasetSpec`].
        split (`str`, *optional*, defaults to `"validation"`): Split of the data set.
        output (`Path`, *optional*): JSON file to write, see [`EvaluationResults`].
        device (`str`, *optional*): Device of the model; defaults to one GPU per process, or to the CPU.
        dtype (`str`, *optional*, defaults to `"float32"`): Data type of the weights and of the computation.
        boundary_iou, object_sizes (`bool`, *optional*, defaults to `False`): See [`evaluate_model`].
        options: Arguments of `predict`.

    Returns:
        `dict`: The values of the results file.

    Raises:
        UserError: if the model or the data cannot be used, if `output` is in a folder that does not exist, or if an optional
            dependency is missing.
    """
    try:
        from accelerate import Accelerator

        from ..data import DatasetSpec, SegmentationData
    except ImportError as error:
        raise UserError(f"evaluation needs {error.name}: pip install 'hf_segmodels[train]'.") from error

    accelerator = Accelerator(cpu=device == "cpu")
    if output is not None and not output.parent.is_dir():
        raise UserError(f"the folder {output.parent} of --output does not exist: create it first.")
    predictor = load_predictor(model, device=device or str(accelerator.device), dtype=dtype, **options)
    if not hasattr(predictor.model, "predict"):
        raise UserError(f"{type(predictor.model).__name__} has no `predict`: give a model of this package.")
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
    results = EvaluationResults.from_dict(
        {"model": model, "dataset": dataset, "layout": layout, "split": split, **scores}
        | {"protocol": describe_protocol(predictor.model.config, options)}
        | {"dtype": dtype, "processes": accelerator.num_processes, **describe_run(predictor.model.device)}
    )
    if accelerator.is_main_process:
        _print_scores(scores, predictor.id2label)
        if output is not None:
            output.write_text(results.to_json())
    return results.to_dict()


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
