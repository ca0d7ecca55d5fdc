# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Parts of a training run built from its recipe: checkpoint, model, data, loss and optimizer. Both loops use them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation, set_seed
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

from .. import PlainViTBackbone, ResNetV1cBackbone
from ..conversion import load_backbone_weights
from ..data import SegmentationData, find_id2label, quick_check
from ..evaluation import evaluate_model
from ..image_processing.segmentation_image_processor import SegmentationImageProcessor
from ..labels import DATASETS, load_labels
from ..losses.semantic_cross_entropy import semantic_cross_entropy
from ..modeling_utils import SegmentationPreTrainedModel
from .augmentation import training_augmentation
from .recipe import Recipe
from .samplers import AugmentedData, AugmentedStream, TrainingBatches, TrainingCollator


@dataclass
class Run:
    """Parts of a training run that do not depend on the loop: the model with initial weights, its processor, both splits."""

    recipe: Recipe
    model: SegmentationPreTrainedModel
    processor: SegmentationImageProcessor
    train_data: SegmentationData
    eval_data: SegmentationData
    loss: "Loss"

    def evaluate(
        self, model: SegmentationPreTrainedModel, accelerator: Any, data: SegmentationData | None = None
    ) -> dict[str, Any]:
        """Return the scores of `model` on `data`, by default the evaluation split; see [`evaluate_model`]."""
        data = self.eval_data if data is None else data
        return evaluate_model(model, self.processor, data, accelerator=accelerator, **self.recipe.evaluation)


def build_run(recipe: Recipe, num_processes: int, device: torch.device) -> Run:
    """Set the seed and build model, data and loss of a run with `num_processes` processes on `device`."""
    set_seed(recipe.seed)
    model, processor = build_model(recipe)
    model = synchronize_norms(model, num_processes, device)
    train_data, eval_data = (build_data(recipe, processor, split) for split in (recipe.train_split, recipe.eval_split))
    return Run(recipe, model, processor, train_data, eval_data, Loss(recipe, train_data, model.config.num_labels))


def checkpoint_to_resume(
    output_dir: Path, resume: bool, is_complete: Callable[[Path], bool] = lambda folder: True
) -> tuple[Path | None, int]:
    """
    Return the newest complete `checkpoint-STEP` to resume from and its step; `None` and 0 for a new run.

    Raises:
        ValueError: if `output_dir` holds checkpoints and `resume` is false, because the run would replace them.
    """
    numbers = {folder: folder.name.rpartition("-")[2] for folder in output_dir.glob("checkpoint-*")}
    steps = {int(number): folder for folder, number in numbers.items() if number.isdigit() and is_complete(folder)}
    step = max(steps, default=0)
    if steps and not resume:
        raise ValueError(
            f"{output_dir} holds {steps[step].name} of an earlier run, which this run would replace: set `resume=true` to "
            "resume it, choose another `output_dir`, or delete the folder."
        )
    return steps.get(step), step


def build_model(recipe: Recipe) -> tuple[SegmentationPreTrainedModel, SegmentationImageProcessor]:
    """
    Return the model and its image processor: with random weights, with the encoder of `recipe.pretrained_backbone`, or from
    `recipe.pretrained` with a new set of classes.

    Raises:
        ValueError: if the pretrained encoder does not match the configured one, or if model and image processor ignore different
            labels.
    """
    fields = dict(recipe.model)
    if (id2label := find_id2label(recipe.dataset_spec, recipe.id2label)) is not None:
        fields |= {"id2label": id2label, "label2id": {name: index for index, name in id2label.items()}}
        benchmark = next((name for name in DATASETS if load_labels(name)[0] == list(id2label.values())), None)
        if benchmark is not None:
            fields.setdefault("palette", [list(color) for color in load_labels(benchmark)[1]])
    processor: Any
    if recipe.pretrained:
        # `palette` is not a field of all configurations, so `from_pretrained` would pass it to the model
        palette = fields.pop("palette", None)
        model = AutoModelForSemanticSegmentation.from_pretrained(
            recipe.pretrained, ignore_mismatched_sizes=True, dtype=torch.float32, **fields
        )
        if palette is not None:
            model.config.palette = palette
        processor_fields = recipe.image_processor | {"num_labels": model.config.num_labels}
        processor = AutoImageProcessor.from_pretrained(recipe.pretrained, **processor_fields)
    else:
        config = AutoConfig.for_model(**fields)
        processor_classes: Any = IMAGE_PROCESSOR_MAPPING[type(config)]
        processor = processor_classes["torchvision"](**recipe.image_processor | {"num_labels": config.num_labels})
        model = AutoModelForSemanticSegmentation.from_config(config, dtype=torch.float32)
        if recipe.pretrained_backbone:
            load_pretrained_backbone(model, recipe.pretrained_backbone)
    ignore_index = recipe.model.get("semantic_loss_ignore_index", processor.ignore_index)
    if ignore_index != processor.ignore_index:
        raise ValueError(
            f"`model.semantic_loss_ignore_index` is {ignore_index}, but labels are read with `ignore_index` "
            f"{processor.ignore_index}: set only `image_processor.ignore_index`."
        )
    model.config.semantic_loss_ignore_index = ignore_index
    return model, processor


def load_pretrained_backbone(model: SegmentationPreTrainedModel, source: str) -> None:
    """
    Load pretrained weights into the encoder of `model`: by [`load_backbone_weights`] for plain ViTs and ResNet-V1c, from a
    folder or repository for other transformers backbones.

    Raises:
        ValueError: if a weight is missing or has another shape.
    """
    backbone = model.backbone
    if isinstance(backbone, (PlainViTBackbone, ResNetV1cBackbone)):
        load_backbone_weights(model, source)
        return
    backbone_class: Any = type(backbone)
    loaded, info = backbone_class.from_pretrained(
        source, config=backbone.config, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
    )
    missing = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    if missing:
        raise ValueError(
            f"{source} does not fit the recipe's {backbone_class.__name__}: {len(missing)} weights are missing or have "
            f"another shape ({', '.join(missing[:3])}, ...). Set `model.backbone_config` to the fields of its config.json."
        )
    backbone.load_state_dict(loaded.state_dict())


def build_data(recipe: Recipe, processor: SegmentationImageProcessor, split: str) -> SegmentationData:
    """Return a split of the recipe's data set, read with the label settings of `processor`, after a quick check of labels."""
    data = SegmentationData(recipe.dataset_spec, split, processor=processor)
    quick_check(data)
    return data


def build_loader(
    data: SegmentationData,
    processor: SegmentationImageProcessor,
    recipe: Recipe,
    start: int = 0,
    process_index: int = 0,
    num_processes: int = 1,
) -> DataLoader:
    """
    Return the batches of a process with the recipe's augmentation, from batch `start` to the end of the run. A batch depends only
    on the recipe and the number of the batch.
    """
    transform = training_augmentation(
        recipe.base_size,
        recipe.crop_size,
        recipe.scale_range,
        recipe.photometric_distortion,
        recipe.max_class_ratio,
        data.labels.ignore_index,
    )
    batches: dict[str, Any] = {
        "batch_size": recipe.batch_size,
        "start": start,
        "stop": recipe.max_steps * recipe.gradient_accumulation_steps,
        "process_index": process_index,
        "num_processes": num_processes,
        "seed": recipe.seed,
    }
    samples: Dataset
    order: dict[str, Any]
    if recipe.streaming:
        samples, order = AugmentedStream(data, transform, **batches), {"batch_size": recipe.batch_size}
    else:
        samples = AugmentedData(data, transform, recipe.seed)
        order = {"batch_sampler": TrainingBatches(len(data), **batches)}
    return DataLoader(
        samples,
        **order,
        collate_fn=TrainingCollator(processor, recipe.crop_size),
        num_workers=recipe.num_workers,
        # the loader draws a number when it starts; from the global generator, this would change the dropout of a resumed run
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
    )


def synchronize_norms(
    model: SegmentationPreTrainedModel, num_processes: int, device: torch.device
) -> SegmentationPreTrainedModel:
    """Return `model` with batch norms that use the statistics of all processes, as in the original codes."""
    # torch supports such norms only on CUDA
    if num_processes == 1 or device.type != "cuda":
        return model
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def build_optimizer(model: SegmentationPreTrainedModel, recipe: Recipe) -> torch.optim.Optimizer:
    """Return AdamW or Nesterov SGD, with the parameter groups of the method or of the recipe."""
    if recipe.parameter_rules is not None:
        model.parameter_rules = tuple(map(tuple, recipe.parameter_rules))
    groups = model.get_optimizer_param_groups(recipe.learning_rate, recipe.weight_decay)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups)
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=0.9, nesterov=True)


class Loss:
    """
    Loss of a batch: the loss of the model, or the cross-entropy of its logits if the recipe sets class weights (from the class
    frequencies in `data`) or smoothing. The latter raises a `ValueError` for a model with further targets (UN-EPT).
    """

    def __init__(self, recipe: Recipe, data: SegmentationData, num_labels: int):
        self.weights: torch.Tensor | None = None
        if recipe.class_weighting != "none":
            # the median class frequency divided by the frequency of each class, (num_labels,), or the square root of this
            counts = data.class_counts(num_labels).double()
            weights = torch.where(counts > 0, counts[counts > 0].median() / counts.clamp(min=1), 0.0)
            self.weights = (weights.sqrt() if recipe.class_weighting == "sqrt_median_frequency" else weights).float()
        self.label_smoothing, self.ignore_index = recipe.label_smoothing, data.labels.ignore_index
        self.uses_model_loss = self.weights is None and recipe.label_smoothing == 0.0

    def __call__(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.uses_model_loss:
            return model(**inputs).loss
        images = {name: values for name, values in inputs.items() if name in ("pixel_values", "superpixels")}
        if others := sorted(inputs.keys() - {*images, "labels"}):
            raise ValueError(
                "`class_weighting` and `label_smoothing` replace the loss of the model, so the layers that learn from "
                f"{' and '.join(others)} would stay random: set neither for this model."
            )
        logits = model(**images).logits
        return semantic_cross_entropy(
            logits,
            inputs["labels"],
            self.ignore_index,
            weight=None if self.weights is None else self.weights.to(logits.device),
            label_smoothing=self.label_smoothing,
        )


def check_finite(loss: torch.Tensor, step: int, output_dir: str | Path) -> None:
    """Raise a `FloatingPointError` if `loss` of training step `step`, counted from 1, is not finite."""
    if not torch.isfinite(loss):
        raise FloatingPointError(
            f"The loss is {loss.item()} at training step {step}. Lower `learning_rate`, set `max_grad_norm=1.0` or more "
            "`warmup_steps`, and use `bf16` or `no` instead of `fp16`; `resume=true` resumes from the newest checkpoint in "
            f"{output_dir}."
        )
