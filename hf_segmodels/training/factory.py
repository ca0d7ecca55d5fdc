# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""What a recipe describes, built: model, data, loss, optimizer and schedule. Both training scripts stand on it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, Dataset
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation
from transformers.image_processing_utils import BaseImageProcessor
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

import hf_segmodels  # noqa: F401  (registers the models)

from .. import PlainViTBackbone, ResNetV1cBackbone
from ..conversion import load_backbone_weights
from ..data import SegmentationData, find_id2label, quick_check
from ..labels import DATASETS, load_labels
from ..losses.semantic_cross_entropy import semantic_cross_entropy
from . import AugmentedData, AugmentedStream, TrainingBatches, TrainingCollator
from .augmentation import training_augmentation
from .recipe import Recipe
from .schedules import cosine_restart_schedule, poly_schedule, step_schedule


def load_id2label(recipe: Recipe) -> dict[int, str] | None:
    """Class names from the recipe, from beside the data, or of its layout; None where nobody says them."""
    return find_id2label(recipe.dataset, recipe.id2label, recipe.layout)


def build_model(recipe: Recipe) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """
    The model and its image processor: from scratch, over the encoder `recipe.pretrained_backbone`, or from
    `recipe.pretrained` with a new set of classes.

    Raises:
        ValueError: if the recipe names no kind of model, its encoder does not fit the pre-trained one, or model and image
            processor are to ignore different labels.
    """
    model, processor = _build_parts(recipe)
    ignore_index = recipe.model.get("semantic_loss_ignore_index", processor.ignore_index)
    if ignore_index != processor.ignore_index:
        raise ValueError(
            f"`model.semantic_loss_ignore_index` is {ignore_index}, but labels are read with the `ignore_index` "
            f"{processor.ignore_index}: set `image_processor.ignore_index` only."
        )
    model.config.semantic_loss_ignore_index = ignore_index
    return model, processor


def _build_parts(recipe: Recipe) -> tuple[PreTrainedModel, BaseImageProcessor]:
    fields = dict(recipe.model)
    id2label = load_id2label(recipe)
    if id2label is not None:
        fields |= {"id2label": id2label, "label2id": {name: index for index, name in id2label.items()}}
        benchmark = next((name for name in DATASETS if load_labels(name)[0] == list(id2label.values())), None)
        if benchmark is not None:
            fields.setdefault("palette", [list(color) for color in load_labels(benchmark)[1]])
    if recipe.pretrained:
        # no field that every configuration has: `from_pretrained` would hand it to the model
        palette = fields.pop("palette", None)
        model = AutoModelForSemanticSegmentation.from_pretrained(
            recipe.pretrained, ignore_mismatched_sizes=True, dtype=torch.float32, **fields
        )
        if palette is not None:
            model.config.palette = palette
        processor_fields = recipe.image_processor | {"num_labels": model.config.num_labels}
        return model, AutoImageProcessor.from_pretrained(recipe.pretrained, **processor_fields)
    if "model_type" not in fields:
        raise ValueError("`model` in the recipe needs a `model_type`, such as `segmenter`.")
    config = AutoConfig.for_model(**fields)
    processor_class = IMAGE_PROCESSOR_MAPPING[type(config)]["torchvision"]
    processor = processor_class(**recipe.image_processor | {"num_labels": config.num_labels})
    model = AutoModelForSemanticSegmentation.from_config(config, dtype=torch.float32)
    if recipe.pretrained_backbone:
        load_pretrained_backbone(model, recipe.pretrained_backbone)
    return model, processor


def load_pretrained_backbone(model: PreTrainedModel, source: str) -> None:
    """
    Puts pre-trained weights into the encoder of `model`: a plain ViT's and a ResNet-V1c's as [`load_backbone_weights`]
    does, those of another transformers backbone from a folder or repository.

    Raises:
        ValueError: if a weight is missing or has another shape.
    """
    backbone = model.backbone
    if isinstance(backbone, (PlainViTBackbone, ResNetV1cBackbone)):
        load_backbone_weights(model, source)
        return
    loaded, info = type(backbone).from_pretrained(
        source, config=backbone.config, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
    )
    missing = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    if missing:
        raise ValueError(
            f"{source} does not fit the recipe's {type(backbone).__name__}: {len(missing)} weights are missing or of "
            f"another shape ({', '.join(missing[:3])}, ...). Give `model.backbone_config` the fields of its config.json."
        )
    backbone.load_state_dict(loaded.state_dict())


def build_data(recipe: Recipe, processor: BaseImageProcessor, split: str) -> SegmentationData:
    """A split of the recipe's data set, with labels as `processor` says, after a quick look at them."""
    data = SegmentationData(
        recipe.dataset,
        split,
        recipe.image_column,
        recipe.label_column,
        processor,
        layout=recipe.layout,
        label_mapping=recipe.label_mapping,
        streaming=recipe.streaming,
    )
    quick_check(data)
    return data


def build_loader(
    data: SegmentationData,
    processor: BaseImageProcessor,
    recipe: Recipe,
    start: int = 0,
    process_index: int = 0,
    num_processes: int = 1,
) -> DataLoader:
    """
    A process's batches of `data` under the recipe's augmentation, from batch `start` on to the last of the run.

    Each depends only on the recipe and its number, not on what happened before.
    """
    transform = training_augmentation(
        recipe.base_size,
        recipe.crop_size,
        recipe.scale_range,
        recipe.photometric_distortion,
        recipe.max_class_ratio,
        data.ignore_index,
    )
    place: dict[str, Any] = {
        "start": start,
        "stop": recipe.max_steps * recipe.gradient_accumulation_steps,
        "process_index": process_index,
        "num_processes": num_processes,
        "seed": recipe.seed,
    }
    samples: Dataset
    order: dict[str, Any]
    if recipe.streaming:
        samples = AugmentedStream(data, transform, batch_size=recipe.batch_size, **place)
        order = {"batch_size": recipe.batch_size}
    else:
        samples = AugmentedData(data, transform, recipe.seed)
        order = {"batch_sampler": TrainingBatches(len(data), recipe.batch_size, **place)}
    return DataLoader(
        samples,
        **order,
        collate_fn=TrainingCollator(processor, recipe.crop_size),
        num_workers=recipe.num_workers,
        # its own generator: a loader draws once as it starts, which would shift the dropout of a resumed run
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
    )


def synchronize_norms(model: PreTrainedModel, num_processes: int, device: torch.device) -> PreTrainedModel:
    """
    `model` with batch norms whose statistics are those of all processes, as in the original codes. It is left as it is on one
    process, and off CUDA, where torch has no such norms.
    """
    if num_processes == 1 or device.type != "cuda":
        return model
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def build_optimizer(model: PreTrainedModel, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW or Nesterov SGD, with the method's own parameter groups or the recipe's."""
    if recipe.parameter_rules is not None:
        model.parameter_rules = tuple(map(tuple, recipe.parameter_rules))
    groups = model.get_optimizer_param_groups(recipe.learning_rate, recipe.weight_decay)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups)
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=0.9, nesterov=True)


def learning_rate_factor(recipe: Recipe) -> Callable[[int], float]:
    """
    From an update's number, from 0, to its learning rate over `recipe.learning_rate`.

    Raises:
        ValueError: for `schedule_options` that the schedule does not have, or lacks.
    """
    lowest = {"min_factor": min(1.0, recipe.min_learning_rate / recipe.learning_rate)}
    schedules = {
        "poly": (poly_schedule, {"max_steps": recipe.max_steps, "power": 0.9, **lowest}),
        "cosine": (cosine_restart_schedule, {"periods": [recipe.max_steps], "restart_factors": [1.0], **lowest}),
        "step": (step_schedule, {}),
        "constant": (step_schedule, {"milestones": []}),
    }
    make, options = schedules[recipe.schedule]
    options = options | {"warmup_steps": recipe.warmup_steps} | recipe.schedule_options
    try:
        return make(**options)
    except TypeError as error:
        raise ValueError(f"`schedule_options` of {recipe.schedule!r}: {error}") from error


def build_scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe) -> LambdaLR:
    """The recipe's learning rate over time."""
    return LambdaLR(optimizer, learning_rate_factor(recipe))


def class_weights(data: SegmentationData, num_labels: int, weighting: str) -> torch.Tensor | None:
    """Median frequency over each class's frequency in the training split, `(num_labels,)`, or its square root."""
    if weighting == "none":
        return None
    counts = data.class_counts(num_labels).double()
    weights = torch.where(counts > 0, counts[counts > 0].median() / counts.clamp(min=1), 0.0)
    return (weights.sqrt() if weighting == "sqrt_median_frequency" else weights).float()


class Loss:
    """
    The model's own loss; or, where the recipe wants weights or smoothing, cross-entropy on its logits.

    Args:
        recipe (`Recipe`): Says which.
        data (`SegmentationData`): The training split, whose classes are counted for weights.
        num_labels (`int`): Number of classes.

    Calling it raises a `ValueError` where weights or smoothing are wanted of a model that learns from more than labels
    (UN-EPT).
    """

    def __init__(self, recipe: Recipe, data: SegmentationData, num_labels: int):
        self.weights = class_weights(data, num_labels, recipe.class_weighting)
        self.label_smoothing, self.ignore_index = recipe.label_smoothing, data.ignore_index
        self.is_own = self.weights is None and recipe.label_smoothing == 0.0

    def __call__(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.is_own:
            return model(**inputs).loss
        images = {name: values for name, values in inputs.items() if name in ("pixel_values", "superpixels")}
        if others := sorted(inputs.keys() - {*images, "labels"}):
            raise ValueError(
                "`class_weighting` and `label_smoothing` would leave out the parts of this model's own loss that learn from "
                f"{' and '.join(others)}, and what predicts these would stay random: set neither."
            )
        logits = model(**images).logits
        return semantic_cross_entropy(
            logits,
            inputs["labels"],
            self.ignore_index,
            weight=self.weights if self.weights is None else self.weights.to(logits.device),
            label_smoothing=self.label_smoothing,
        )


def check_finite(loss: torch.Tensor, step: int, output_dir: str | Path) -> None:
    """
    Raises:
        FloatingPointError: where `loss` of update `step` (from 1) is not finite; says what to do.
    """
    if not torch.isfinite(loss):
        raise FloatingPointError(
            f"The loss is {loss.item()} at update {step}. Lower `learning_rate`, set `max_grad_norm` (1.0) or a longer "
            "`warmup_steps`, and use `bf16` or `no` instead of `fp16`; `resume=true` goes on from the newest checkpoint in "
            f"{output_dir}."
        )
