# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Trains a segmentation model with Accelerate.

    accelerate launch training/run_segmentation_accelerate.py RECIPE.yaml [key=value ...]

One process or several, any device, mixed precision, gradient accumulation; `resume=true` goes on from the newest
checkpoint exactly where it was. The recipe's fields are described in `training/recipe.py`.
"""

import dataclasses
import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation
from transformers.image_processing_utils import BaseImageProcessor
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING


# training/ is a folder of scripts: its own modules are found from wherever it is started
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hf_segmodels  # noqa: F401  (registers the models)
from hf_segmodels.conversion import load_backbone_weights
from hf_segmodels.losses import semantic_cross_entropy
from hf_segmodels.metrics import ConfusionMatrix
from training.augmentation import training_augmentation
from training.data import AugmentedData, SegmentationData, TrainingBatches
from training.recipe import Recipe


def load_id2label(recipe: Recipe) -> dict[int, str] | None:
    """Class names from the recipe, or from `id2label.json` beside the data; None where neither has them."""
    source = recipe.id2label
    if source is None:
        beside = Path(recipe.dataset) / "id2label.json"
        source = str(beside) if beside.is_file() else None
    if isinstance(source, str):
        source = json.loads(Path(source).read_text())
    return {int(index): name for index, name in source.items()} if source else None


def build_model(recipe: Recipe) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """
    The model and its image processor: from scratch, over the encoder `recipe.pretrained_backbone`, or from
    `recipe.pretrained` with a new set of classes.
    """
    fields = dict(recipe.model)
    id2label = load_id2label(recipe)
    if id2label is not None:
        fields |= {"id2label": id2label, "label2id": {name: index for index, name in id2label.items()}}
    if recipe.pretrained:
        model = AutoModelForSemanticSegmentation.from_pretrained(
            recipe.pretrained, ignore_mismatched_sizes=True, dtype=torch.float32, **fields
        )
        processor_fields = recipe.image_processor | {"num_labels": model.config.num_labels}
        return model, AutoImageProcessor.from_pretrained(recipe.pretrained, **processor_fields)
    if "model_type" not in fields:
        raise ValueError("`model` in the recipe needs a `model_type`, such as `segmenter`.")
    config = AutoConfig.for_model(**fields)
    processor_class = IMAGE_PROCESSOR_MAPPING[type(config)]["torchvision"]
    processor = processor_class(**recipe.image_processor | {"num_labels": config.num_labels})
    model = AutoModelForSemanticSegmentation.from_config(config, dtype=torch.float32)
    if recipe.pretrained_backbone:
        load_backbone_weights(model, recipe.pretrained_backbone)
    return model, processor


def build_optimizer(model: PreTrainedModel, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW or Nesterov SGD, with the method's own parameter groups."""
    groups = model.parameter_groups(recipe.learning_rate, recipe.weight_decay)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups)
    return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=0.9, nesterov=True)


def learning_rate_factor(step: int, recipe: Recipe) -> float:
    """Learning rate of update `step` (from 0) over `recipe.learning_rate`."""
    if step < recipe.warmup_steps:
        return (step + 1) / (recipe.warmup_steps + 1)
    progress = min(1.0, (step - recipe.warmup_steps) / max(1, recipe.max_steps - recipe.warmup_steps))
    fall = (1 - progress) ** 0.9 if recipe.schedule == "poly" else (1 + math.cos(math.pi * progress)) / 2
    lowest = min(1.0, recipe.min_learning_rate / recipe.learning_rate)
    return lowest + (1 - lowest) * fall


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of the weights; its decay rises with the updates, so that the start is forgotten."""

    def update(averaged: Sequence[torch.Tensor], current: Sequence[torch.Tensor], count: torch.Tensor | int) -> None:
        rate = min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(list(averaged), list(current), 1 - rate)

    return AveragedModel(model, multi_avg_fn=update)


def class_weights(data: SegmentationData, num_labels: int, weighting: str) -> torch.Tensor | None:
    """Median frequency over each class's frequency in the training split, `(num_labels,)`, or its square root."""
    if weighting == "none":
        return None
    counts = data.class_counts(num_labels).double()
    weights = torch.where(counts > 0, counts[counts > 0].median() / counts.clamp(min=1), 0.0)
    return (weights.sqrt() if weighting == "sqrt_median_frequency" else weights).float()


class Loss:
    """The model's own loss; or, where the recipe wants weights or smoothing, cross-entropy on its logits."""

    def __init__(self, weights: torch.Tensor | None, label_smoothing: float, ignore_index: int):
        self.is_own = weights is None and label_smoothing == 0.0
        self.options = {"weight": weights, "label_smoothing": label_smoothing, "ignore_index": ignore_index}

    def __call__(
        self, model: nn.Module, pixel_values: torch.Tensor, labels: torch.Tensor, **inputs: torch.Tensor
    ) -> torch.Tensor:
        if self.is_own:
            return model(pixel_values=pixel_values, labels=labels, **inputs).loss
        logits = model(pixel_values=pixel_values, **inputs).logits
        return semantic_cross_entropy(logits, labels, **self.options)


@torch.no_grad()
def evaluate(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    data: SegmentationData,
    accelerator: Accelerator,
    flip: bool = False,
) -> dict[str, Any]:
    """
    Scores of `model.predict` on `data` at the images' own size; each process takes every n-th image.

    Raises:
        ValueError: if the labels of `data` are not those of `processor`.
    """
    if data.do_reduce_labels != bool(processor.do_reduce_labels):
        raise ValueError(
            f"The processor has `do_reduce_labels={processor.do_reduce_labels}` but the labels of `data` were read "
            "otherwise: make it with `SegmentationData(..., processor=processor)`."
        )
    matrix = ConfusionMatrix(model.config.num_labels, processor.ignore_index)
    model.eval()
    indices = range(accelerator.process_index, len(data), accelerator.num_processes)
    for index in tqdm(indices, desc="evaluate", disable=not accelerator.is_main_process, leave=False):
        image, label_map = data[index]
        inputs = processor(image, return_tensors="pt").to(accelerator.device)
        with accelerator.autocast():
            (prediction,) = model.predict(**inputs, target_sizes=[tuple(label_map.shape)], flip=flip)
        label_map = label_map.as_subclass(torch.Tensor)
        matrix.update(prediction.cpu(), label_map)
    counts = matrix.counts.to(accelerator.device)
    matrix.counts = accelerator.reduce(counts, reduction="sum").cpu()
    return matrix.compute()


def newest_checkpoint(output_dir: Path) -> Path | None:
    """The checkpoint folder with the highest step, or None."""
    checkpoints = [path for path in output_dir.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return max(checkpoints, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def save_checkpoint(accelerator: Accelerator, output_dir: Path, step: int) -> None:
    """Saves the state after `step` updates; older checkpoints go once the new one is complete."""
    folder = output_dir / f"checkpoint-{step}"
    partial = output_dir / "checkpoint-partial"
    accelerator.save_state(str(partial))
    # each process writes its own random state
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        for old in output_dir.glob("checkpoint-*"):
            if old != folder:
                shutil.rmtree(old)
    accelerator.wait_for_everyone()


def train(recipe: Recipe) -> dict[str, Any]:
    """
    Runs a recipe.

    Returns:
        `dict`: the last evaluation's scores (see [`~hf_segmodels.metrics.ConfusionMatrix.compute`]) and `losses`, the
        loss at every `log_steps`-th update. The model, its processor and `results.json` are in `recipe.output_dir`.

    Raises:
        FloatingPointError: when the loss is not finite; the newest checkpoint is from before.
    """
    accelerator = Accelerator(
        mixed_precision=recipe.mixed_precision, gradient_accumulation_steps=recipe.gradient_accumulation_steps
    )
    set_seed(recipe.seed)
    output_dir = Path(recipe.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)

    model, processor = build_model(recipe)
    if processor.do_reduce_labels:
        accelerator.print("Labels are reduced (`do_reduce_labels`): 0 means unlabelled, classes start at 1")
    train_data, eval_data = (
        SegmentationData(recipe.dataset, split, recipe.image_column, recipe.label_column, processor)
        for split in (recipe.train_split, recipe.eval_split)
    )
    weights = class_weights(train_data, model.config.num_labels, recipe.class_weighting)
    loss_function = Loss(
        weights if weights is None else weights.to(accelerator.device), recipe.label_smoothing, processor.ignore_index
    )
    optimizer = build_optimizer(model, recipe)
    # one step of this scheduler for each update: Accelerate's wrapper would step once for each process
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, recipe))
    averaged = None
    if recipe.ema_decay:
        averaged = average_weights(model, recipe.ema_decay).to(accelerator.device)
        accelerator.register_for_checkpointing(averaged)
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(scheduler)

    step = 0
    checkpoint = newest_checkpoint(output_dir) if recipe.resume else None
    if checkpoint is not None:
        accelerator.load_state(str(checkpoint))
        step = int(checkpoint.name.rpartition("-")[2])
        accelerator.print(f"Going on after {step} updates from {checkpoint}")

    transform = training_augmentation(
        recipe.base_size,
        recipe.crop_size,
        processor.image_mean,
        recipe.scale_range,
        recipe.color_jitter,
        recipe.max_class_share,
        processor.ignore_index,
    )
    batches = TrainingBatches(
        len(train_data),
        recipe.batch_size,
        start=step * recipe.gradient_accumulation_steps,
        stop=recipe.max_steps * recipe.gradient_accumulation_steps,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
        seed=recipe.seed,
    )
    loader = DataLoader(
        AugmentedData(train_data, transform, recipe.seed, getattr(processor, "make_superpixels", None)),
        batch_sampler=batches,
        num_workers=recipe.num_workers,
        # its own generator: a loader draws once as it starts, which would shift the dropout of a resumed run
        generator=torch.Generator(),
        pin_memory=accelerator.device.type == "cuda",
    )

    def evaluated_model() -> PreTrainedModel:
        return averaged.module if averaged is not None else accelerator.unwrap_model(model)

    def evaluate_and_save() -> dict[str, Any]:
        scores = evaluate(evaluated_model(), processor, eval_data, accelerator)
        if accelerator.is_main_process:
            evaluated_model().save_pretrained(output_dir)
            processor.save_pretrained(output_dir)
            results = {"step": step, "split": recipe.eval_split, **scores, "recipe": dataclasses.asdict(recipe)}
            (output_dir / "results.json").write_text(json.dumps(results, indent=1) + "\n")
            tqdm.write(f"step {step}: mIoU {100 * scores['mean_iou']:.2f} on {recipe.eval_split}")
        return scores

    mean, std = (
        torch.tensor(values, device=accelerator.device).view(1, -1, 1, 1)
        for values in (processor.image_mean, processor.image_std)
    )
    scores: dict[str, Any] = {}
    losses: list[float] = []
    update_loss = torch.zeros((), device=accelerator.device)
    model.train()
    progress = tqdm(initial=step, total=recipe.max_steps, disable=not accelerator.is_main_process, mininterval=2)
    for images, label_maps, *superpixels in loader:
        with accelerator.accumulate(model):
            # (batch_size, 3, height, width) uint8 -> normalised float32
            pixel_values = (images.to(accelerator.device).float() / 255 - mean) / std
            inputs = {"superpixels": superpixels[0].to(accelerator.device)} if superpixels else {}
            loss = loss_function(model, pixel_values, label_maps.to(accelerator.device).long(), **inputs)
            update_loss += loss.detach() / recipe.gradient_accumulation_steps
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                # of all processes, so that all of them stop
                update_loss = accelerator.reduce(update_loss, reduction="mean")
                # before the update, so that neither the weights nor a checkpoint take the damage
                if not torch.isfinite(update_loss):
                    raise FloatingPointError(
                        f"The loss is {update_loss.item()} at update {step + 1}. Lower `learning_rate`, set "
                        "`max_grad_norm` (1.0) or a longer `warmup_steps`, and use `bf16` or `no` instead of `fp16`; "
                        f"`resume=true` goes on from the newest checkpoint in {output_dir}."
                    )
                if recipe.max_grad_norm:
                    accelerator.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        if not accelerator.sync_gradients:
            continue

        scheduler.step()
        if averaged is not None:
            averaged.update_parameters(accelerator.unwrap_model(model))
        step += 1
        progress.update()
        if step % recipe.log_steps == 0:
            losses.append(update_loss.item())
            progress.set_postfix(loss=f"{losses[-1]:.4f}", lr=f"{scheduler.get_last_lr()[0]:.2e}")
        update_loss = torch.zeros_like(update_loss)
        if step % recipe.checkpoint_steps == 0 and step < recipe.max_steps:
            save_checkpoint(accelerator, output_dir, step)
        if step % recipe.eval_steps == 0 and step < recipe.max_steps:
            scores = evaluate_and_save()
            model.train()
    progress.close()
    save_checkpoint(accelerator, output_dir, step)
    scores = evaluate_and_save()
    accelerator.end_training()
    return {**scores, "losses": losses}


def main(argv: Sequence[str]) -> int:
    if not argv or argv[0] in {"-h", "--help"}:
        print(__doc__.strip())
        return 0 if argv else 2
    try:
        recipe = Recipe.read(argv[0], argv[1:])
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    train(recipe)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
