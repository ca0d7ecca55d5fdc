# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Trains a segmentation model with Accelerate.

    accelerate launch training/run_segmentation_accelerate.py RECIPE.yaml [key=value ...]

One process or several, any device, mixed precision, gradient accumulation, moving average of the weights;
`resume=true` goes on from the newest checkpoint exactly where it was. The recipe's fields are described in
`hf_segmodels/training/recipe.py`.
"""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed
from torch import nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm
from transformers.modeling_utils import PreTrainedModel

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
from .reporting import History, write_records


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average of the weights; its decay rises with the updates, so that the start is forgotten."""

    def update(averaged: Sequence[torch.Tensor], current: Sequence[torch.Tensor], count: torch.Tensor | int) -> None:
        rate = min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(list(averaged), list(current), 1 - rate)

    return AveragedModel(model, multi_avg_fn=update)


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
        `dict`: the last evaluation's scores (see [`~hf_segmodels.evaluation.evaluate_model`]) and `losses`, the loss at
        every `log_steps`-th update. The model, its processor and `results.json` are in `recipe.output_dir`.

    Raises:
        FloatingPointError: when the loss is not finite; the newest checkpoint is from before.
        ValueError: if the folder holds checkpoints and the recipe is not to resume.
    """
    output_dir = Path(recipe.output_dir)
    checkpoint = checkpoint_to_resume(output_dir, recipe.resume)
    output_dir.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(
        mixed_precision=recipe.mixed_precision,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        log_with=list(recipe.report_to) or None,
        project_dir=output_dir,
    )
    set_seed(recipe.seed)
    if recipe.report_to:
        accelerator.init_trackers("hf_segmodels")

    model, processor = build_model(recipe)
    model = synchronize_norms(model, accelerator.num_processes, accelerator.device)
    if processor.do_reduce_labels:
        accelerator.print("Labels are reduced (`do_reduce_labels`): 0 means unlabeled, classes start at 1")
    train_data, eval_data = (build_data(recipe, processor, split) for split in (recipe.train_split, recipe.eval_split))
    loss_function = Loss(recipe, train_data, model.config.num_labels)
    optimizer = build_optimizer(model, recipe)
    # not prepared: Accelerate's wrapper would step once for each process
    scheduler = build_scheduler(optimizer, recipe)
    averaged = None
    if recipe.ema_decay:
        averaged = average_weights(model, recipe.ema_decay).to(accelerator.device)
        accelerator.register_for_checkpointing(averaged)
    model, optimizer = accelerator.prepare(model, optimizer)
    history = History()
    accelerator.register_for_checkpointing(scheduler, history)

    step = 0
    if checkpoint is not None:
        accelerator.load_state(str(checkpoint))
        step = step_of(checkpoint)
        accelerator.print(f"Going on after {step} updates from {checkpoint}")

    first_step = step
    loader = build_loader(
        train_data,
        processor,
        recipe,
        start=step * recipe.gradient_accumulation_steps,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )

    def evaluated_model() -> PreTrainedModel:
        return averaged.module if averaged is not None else accelerator.unwrap_model(model)

    def log(**figures: float) -> None:
        history.entries.append({"step": step, **figures})
        accelerator.log(figures, step=step)

    def evaluate_and_save() -> dict[str, Any]:
        evaluated_model().eval()
        scores = evaluate_model(evaluated_model(), processor, eval_data, accelerator=accelerator, **recipe.evaluation)
        log(**{name: score for name, score in scores.items() if isinstance(score, float)})
        if accelerator.is_main_process:
            evaluated_model().save_pretrained(output_dir)
            processor.save_pretrained(output_dir)
            seconds = time.monotonic() - started
            write_records(
                recipe, evaluated_model(), processor, eval_data, step, scores, history.entries, seconds, first_step
            )
            tqdm.write(f"step {step}: mIoU {100 * scores['mean_iou']:.2f} on {recipe.eval_split}")
        return scores

    scores: dict[str, Any] = {}
    update_loss = torch.zeros((), device=accelerator.device)
    started = time.monotonic()
    model.train()
    progress = tqdm(initial=step, total=recipe.max_steps, disable=not accelerator.is_main_process, mininterval=2)
    for batch in loader:
        with accelerator.accumulate(model):
            loss = loss_function(model, send_to_device(batch, accelerator.device))
            update_loss += loss.detach() / recipe.gradient_accumulation_steps
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                # of all processes, so that all of them stop
                update_loss = accelerator.reduce(update_loss, reduction="mean")
                # before the update, so that neither the weights nor a checkpoint take the damage
                check_finite(update_loss, step + 1, output_dir)
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
            figures = {"loss": update_loss.item(), "learning_rate": scheduler.get_last_lr()[0]}
            log(**figures)
            progress.set_postfix({name: f"{value:.4g}" for name, value in figures.items()})
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
    return {**scores, "losses": history.losses}
