# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Training loop on Accelerate: one or several processes, any device, mixed precision, gradient accumulation, moving average of the
weights, and resumption from the newest checkpoint bit for bit.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from .factory import build_loader, build_optimizer, build_run, check_finite, checkpoint_to_resume
from .recipe import Recipe
from .reporting import History, RunReport, log_metrics
from .schedules import learning_rate_factor


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential moving average of the weights. Its decay rises up to `decay`, so that it forgets the initial ones."""

    def update(averaged: Sequence[torch.Tensor], current: Sequence[torch.Tensor], count: torch.Tensor | int) -> None:
        rate = min(decay, (1 + int(count)) / (10 + int(count)))
        torch._foreach_lerp_(list(averaged), list(current), 1 - rate)

    return AveragedModel(model, multi_avg_fn=update)


def save_checkpoint(accelerator: Accelerator, output_dir: Path, step: int) -> None:
    """Save the state after `step` training steps, and remove older checkpoints once the new one is complete."""
    folder = output_dir / f"checkpoint-{step}"
    partial = output_dir / "checkpoint-partial"
    accelerator.save_state(str(partial))
    # each process writes its own random state into the folder, which may be renamed only afterwards
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        for old in output_dir.glob("checkpoint-*"):
            if old != folder:
                shutil.rmtree(old)
    accelerator.wait_for_everyone()


def train(recipe: Recipe | Mapping[str, Any] | str | Path, **overrides: Any) -> dict[str, Any]:
    """
    Train a model. Writes the model, its image processor, `results.json`, `curves.png`, `predictions.png` and checkpoints into
    the recipe's `output_dir`. To use several processes, start the program with `accelerate launch`.

    Args:
        recipe (`str`, `Path`, `dict` or `Recipe`): YAML file, its content, or a [`Recipe`].
        overrides: Settings to replace. A dotted key sets one value within a setting: `**{"model.window_size": 512}`.

    Returns:
        `dict`: Scores of the last evaluation (see [`~hf_segmodels.evaluation.evaluate_model`]) and `losses`, the loss at every
        `log_steps`-th training step.

    Raises:
        FloatingPointError: if the loss is not finite; the newest checkpoint was saved before.
        ValueError: if a setting is not allowed, or if `output_dir` holds checkpoints and `resume` is false.

    Example:

    ```python
    >>> from hf_segmodels.training import train

    >>> scores = train("recipe.yaml", max_steps=500, mixed_precision="bf16")  # doctest: +SKIP
    ```
    """
    recipe = Recipe.read(recipe, overrides)
    output_dir = Path(recipe.output_dir)
    checkpoint, step = checkpoint_to_resume(output_dir, recipe.resume)
    output_dir.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(
        mixed_precision=recipe.mixed_precision,
        gradient_accumulation_steps=recipe.gradient_accumulation_steps,
        log_with=list(recipe.report_to) or None,
        project_dir=output_dir,
    )
    if recipe.report_to:
        accelerator.init_trackers("hf_segmodels")
    run = build_run(recipe, accelerator.num_processes, accelerator.device)
    if run.processor.do_reduce_labels:
        accelerator.print("Labels are reduced (`do_reduce_labels`): 0 means unlabeled, classes start at 1")

    optimizer = build_optimizer(run.model, recipe)
    # not prepared: Accelerate's wrapper would step once per process
    scheduler = LambdaLR(optimizer, learning_rate_factor(recipe))
    averaged = None
    if recipe.ema_decay:
        averaged = average_weights(run.model, recipe.ema_decay).to(accelerator.device)
        accelerator.register_for_checkpointing(averaged)
    model, optimizer = accelerator.prepare(run.model, optimizer)
    history = History()
    accelerator.register_for_checkpointing(scheduler, history)
    if checkpoint is not None:
        accelerator.load_state(str(checkpoint))
        accelerator.print(f"Resuming from {checkpoint} after {step} training steps")
    report = RunReport(run, history, first_step=step)

    def log(**metrics: float) -> None:
        history.entries.append({"step": step, **metrics})
        accelerator.log(metrics, step=step)

    def evaluate_and_save() -> dict[str, Any]:
        evaluated: Any = averaged.module if averaged is not None else accelerator.unwrap_model(model)
        evaluated.eval()
        scores = run.evaluate(evaluated, accelerator)
        log(**log_metrics(scores))
        if accelerator.is_main_process:
            evaluated.save_pretrained(output_dir)
            run.processor.save_pretrained(output_dir)
            report.write(evaluated, step, scores)
            tqdm.write(f"step {step}: mIoU {100 * scores['mean_iou']:.2f} on {recipe.eval_split}")
        return scores

    loader = build_loader(
        run.train_data,
        run.processor,
        recipe,
        start=step * recipe.gradient_accumulation_steps,
        process_index=accelerator.process_index,
        num_processes=accelerator.num_processes,
    )
    step_loss = torch.zeros((), device=accelerator.device)
    model.train()
    progress = tqdm(initial=step, total=recipe.max_steps, disable=not accelerator.is_main_process, mininterval=2)
    for batch in loader:
        with accelerator.accumulate(model):
            loss = run.loss(model, send_to_device(batch, accelerator.device))
            step_loss += loss.detach() / recipe.gradient_accumulation_steps
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                # the mean over all processes, so that all of them stop
                step_loss = accelerator.reduce(step_loss, reduction="mean")
                # before the optimizer's step, so that neither the weights nor a checkpoint become invalid
                check_finite(step_loss, step + 1, output_dir)
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
            metrics = {"loss": step_loss.item(), "learning_rate": float(scheduler.get_last_lr()[0])}
            log(**metrics)
            progress.set_postfix({name: f"{value:.4g}" for name, value in metrics.items()})
        step_loss = torch.zeros_like(step_loss)
        if step % recipe.checkpoint_steps == 0 and step < recipe.max_steps:
            save_checkpoint(accelerator, output_dir, step)
        if step % recipe.eval_steps == 0 and step < recipe.max_steps:
            evaluate_and_save()
            model.train()
    progress.close()
    save_checkpoint(accelerator, output_dir, step)
    scores = evaluate_and_save()
    accelerator.end_training()
    return {**scores, "losses": history.losses}
