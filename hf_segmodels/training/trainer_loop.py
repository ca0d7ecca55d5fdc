# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Training loop on transformers' Trainer, with the samples, order and augmentation of the Accelerate loop. Devices, mixed precision,
checkpoints and logging are the Trainer's. It has no moving average of the weights.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from .factory import Run, build_loader, build_optimizer, build_run, check_finite, checkpoint_to_resume
from .recipe import Recipe
from .reporting import History, RunReport, log_metrics
from .schedules import learning_rate_factor


class SegmentationTrainer(Trainer):
    """Trainer with a recipe's loss, optimizer, schedule and order of samples, and the papers' evaluation."""

    def __init__(self, run: Run, args: TrainingArguments):
        super().__init__(
            run.model,
            args,
            train_dataset=run.train_data,
            eval_dataset=run.eval_data,
            processing_class=run.processor,
        )
        self.run = run
        self.scores: dict[str, Any] = {}
        self.scored_step = -1

    def get_train_dataloader(self) -> DataLoader:
        process = {"process_index": self.args.process_index, "num_processes": self.args.world_size}
        return build_loader(self.run.train_data, self.run.processor, self.run.recipe, **process)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = build_optimizer(self.accelerator.unwrap_model(model or self.model), self.run.recipe)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        if self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(optimizer or self.create_optimizer(), learning_rate_factor(self.run.recipe))
        return self.lr_scheduler

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        loss = self.run.loss(model, inputs)
        check_finite(
            self.accelerator.reduce(loss.detach(), "mean"), self.state.global_step + 1, self.run.recipe.output_dir
        )
        return loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Return the scores of the evaluation split by the recipe's protocol, see [`~hf_segmodels.evaluation.evaluate_model`]."""
        self.scores = self.run.evaluate(self.accelerator.unwrap_model(self.model), self.accelerator, eval_dataset)
        self.scored_step = self.state.global_step
        metrics = {f"{metric_key_prefix}_{name}": score for name, score in log_metrics(self.scores).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """Return the recipe's settings as arguments of the Trainer."""
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
    """Return whether a checkpoint was written completely, and not interrupted by a killed process or a full disk."""
    # the Trainer writes its state last
    try:
        json.loads((checkpoint / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False
    return True


def train(recipe: Recipe | Mapping[str, Any] | str | Path, **overrides: Any) -> dict[str, Any]:
    """
    Train a model with transformers' Trainer. Arguments, output and errors are those of
    [`~hf_segmodels.training.train`], except that `losses` are means over `log_steps` training steps.

    Raises:
        ValueError: also if the recipe sets `ema_decay`.
    """
    recipe = Recipe.read(recipe, overrides)
    if recipe.ema_decay:
        raise ValueError(
            "The Trainer does not support a moving average of the weights: set `ema_decay=0`, or use the Accelerate loop "
            "(training/run_segmentation_accelerate.py)."
        )
    checkpoint, first_step = checkpoint_to_resume(Path(recipe.output_dir), recipe.resume, is_complete)
    arguments = training_arguments(recipe)
    run = build_run(recipe, arguments.world_size, arguments.device)
    trainer = SegmentationTrainer(run, arguments)
    report = RunReport(run, History(), first_step)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if trainer.scored_step != trainer.state.global_step:
        trainer.evaluate()
    trainer.save_model()
    report.history.entries = [
        {name.removeprefix("eval_"): value for name, value in log.items()}
        for log in trainer.state.log_history
        # the Trainer's last line is a summary of its running time
        if "train_runtime" not in log
    ]
    if trainer.is_world_process_zero():
        report.write(run.model, trainer.state.global_step, trainer.scores)
    return {**trainer.scores, "losses": report.history.losses}
