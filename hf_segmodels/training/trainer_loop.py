# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Trains a segmentation model with transformers' Trainer, from the same recipes as `run_segmentation_accelerate.py`.

    python training/run_segmentation_trainer.py RECIPE.yaml [key=value ...]

Samples, their order and their augmentation are those of the other script; what the Trainer does itself (devices, mixed
precision, checkpoints, logging) is the Trainer's. It keeps no moving average of the weights.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments, set_seed

from ..data import SegmentationData
from ..evaluation.evaluate import evaluate_model
from .checkpoints import checkpoint_to_resume, step_of
from .factory import (
    Loss,
    build_data,
    build_loader,
    build_model,
    build_optimizer,
    build_scheduler,
    check_finite,
    synchronize_norms,
)
from .recipe import Recipe
from .reporting import losses_of, write_records


class SegmentationTrainer(Trainer):
    """A Trainer with a recipe's loss, optimizer, schedule and order of samples, and the papers' evaluation."""

    def __init__(self, recipe: Recipe, train_dataset: SegmentationData, **kwargs: Any):
        super().__init__(train_dataset=train_dataset, **kwargs)
        self.recipe = recipe
        self.loss_function = Loss(recipe, train_dataset, self.model.config.num_labels)
        self.scores: dict[str, Any] = {}
        self.scored_step = -1

    def get_train_dataloader(self) -> DataLoader:
        place = {"process_index": self.args.process_index, "num_processes": self.args.world_size}
        return build_loader(self.train_dataset, self.processing_class, self.recipe, **place)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = build_optimizer(self.accelerator.unwrap_model(model or self.model), self.recipe)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        if self.lr_scheduler is None:
            self.lr_scheduler = build_scheduler(optimizer or self.optimizer, self.recipe)
        return self.lr_scheduler

    def compute_loss(
        self, model: torch.nn.Module, inputs: dict[str, torch.Tensor], return_outputs: bool = False, **kwargs: Any
    ) -> torch.Tensor:
        loss = self.loss_function(model, inputs)
        check_finite(self.accelerator.reduce(loss.detach(), "mean"), self.state.global_step + 1, self.args.output_dir)
        return loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """
        Scores as the papers count them, with the recipe's options: sliding window, labels at their own size, no scores of
        pixels kept.
        """
        model = self.accelerator.unwrap_model(self.model)
        data = self.eval_dataset if eval_dataset is None else eval_dataset
        scores = evaluate_model(
            model, self.processing_class, data, accelerator=self.accelerator, **self.recipe.evaluation
        )
        metrics = {f"{metric_key_prefix}_{name}": score for name, score in scores.items() if isinstance(score, float)}
        self.log(metrics)
        self.scores, self.scored_step = scores, self.state.global_step
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """The recipe's fields as the Trainer names them."""
    return TrainingArguments(
        output_dir=recipe.output_dir,
        max_steps=recipe.max_steps,
        per_device_train_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        bf16=recipe.mixed_precision == "bf16",
        fp16=recipe.mixed_precision == "fp16",
        logging_steps=recipe.log_steps,
        eval_strategy="steps",
        eval_steps=recipe.eval_steps,
        save_steps=recipe.checkpoint_steps,
        save_total_limit=1,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to=list(recipe.report_to) or "none",
        seed=recipe.seed,
    )


def is_complete(checkpoint: Path) -> bool:
    """
    Whether a checkpoint was written to its end. The Trainer writes its own state last; a killed process or a full disk leave a
    folder without it, or with a part of it.
    """
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False
    return True


def train(recipe: Recipe) -> dict[str, Any]:
    """
    Runs a recipe.

    Returns:
        `dict`: the last evaluation's scores (see [`~hf_segmodels.evaluation.evaluate_model`]) and `losses`, the mean of
        every `log_steps` updates. The model, its processor and `results.json` are in `recipe.output_dir`.

    Raises:
        FloatingPointError: when the loss is not finite; the newest checkpoint is from before.
        ValueError: for a recipe with `ema_decay`, or if the folder holds checkpoints and the recipe is not to resume.
    """
    if recipe.ema_decay:
        raise ValueError(
            "The Trainer keeps no moving average of the weights: set `ema_decay=0`, or run the recipe with "
            "training/run_segmentation_accelerate.py."
        )
    checkpoint = checkpoint_to_resume(Path(recipe.output_dir), recipe.resume, is_complete)
    set_seed(recipe.seed)
    arguments = training_arguments(recipe)
    model, processor = build_model(recipe)
    model = synchronize_norms(model, arguments.world_size, arguments.device)
    train_data, eval_data = (build_data(recipe, processor, split) for split in (recipe.train_split, recipe.eval_split))
    trainer = SegmentationTrainer(
        recipe,
        train_data,
        eval_dataset=eval_data,
        model=model,
        args=arguments,
        processing_class=processor,
    )
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if trainer.scored_step != trainer.state.global_step:
        trainer.evaluate()
    trainer.save_model()
    if trainer.is_world_process_zero():
        # without the last line, of how long training took
        history = [
            {name.removeprefix("eval_"): value for name, value in log.items()}
            for log in trainer.state.log_history
            if "train_runtime" not in log
        ]
        step, seconds = trainer.state.global_step, time.monotonic() - started
        first_step = 0 if checkpoint is None else step_of(checkpoint)
        write_records(recipe, trainer.model, processor, eval_data, step, trainer.scores, history, seconds, first_step)
    return {**trainer.scores, "losses": losses_of(trainer.state.log_history)}
