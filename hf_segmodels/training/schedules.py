# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
The learning rate schedules of mmcv, for `torch.optim.lr_scheduler.LambdaLR`. Each function returns a function from the number of
a training step, counted from 0, to a factor of the learning rate.

torch's own schedulers lack the lower bound of the polynomial decay and the factors of the cosine restarts.
"""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch.optim.lr_scheduler import LambdaLR

from .recipe import Recipe


Schedule = Callable[[int], float]


def poly_schedule(
    max_steps: int, power: float = 1.0, min_factor: float = 0.0, warmup_steps: int = 0, warmup_factor: float = 1e-6
) -> Schedule:
    """
    Decay from 1 to `min_factor` as `(1 - step / max_steps) ** power`.

    Args:
        max_steps (`int`): Number of training steps.
        power (`float`, *optional*, defaults to 1.0): Exponent: 1 in RegProxy, 0.9 in Segmenter.
        min_factor (`float`, *optional*, defaults to 0.0): Final factor.
        warmup_steps (`int`, *optional*, defaults to 0): Steps in which a second factor rises linearly to 1.
        warmup_factor (`float`, *optional*, defaults to 1e-06): Initial value of the second factor.

    Raises:
        ValueError: if `max_steps` is less than 1.
    """
    if max_steps < 1:
        raise ValueError(f"`max_steps` must be at least 1, got {max_steps}.")

    def decay(step: int) -> float:
        return min_factor + (1 - min_factor) * max(1 - step / max_steps, 0.0) ** power

    return _with_warmup(decay, warmup_steps, warmup_factor)


def cosine_restart_schedule(
    periods: Sequence[int],
    restart_factors: Sequence[float],
    min_factor: float = 0.0,
    warmup_steps: int = 0,
    warmup_factor: float = 1e-6,
) -> Schedule:
    """
    Repeated decay along half a cosine to `min_factor`.

    Args:
        periods (`Sequence[int]`): Training steps of each decay. The last value is kept afterwards.
        restart_factors (`Sequence[float]`): Initial factor of each decay.
        min_factor, warmup_steps, warmup_factor (*optional*): See [`poly_schedule`].

    Raises:
        ValueError: if `periods` and `restart_factors` are empty or differ in length, or if a period is less than 1.
    """
    if len(periods) != len(restart_factors) or not periods or min(periods) < 1:
        raise ValueError(
            f"`periods` {list(periods)} and `restart_factors` {list(restart_factors)} need one entry for each decay, and each "
            "period must be at least 1 training step."
        )
    ends = list(accumulate(periods))

    def decay(step: int) -> float:
        step = min(step, ends[-1])
        number = next((number for number, end in enumerate(ends) if step < end), len(ends) - 1)
        progress = (step - ends[number] + periods[number]) / periods[number]
        return min_factor + (1 - min_factor) * restart_factors[number] * (1 + math.cos(math.pi * progress)) / 2

    return _with_warmup(decay, warmup_steps, warmup_factor)


def step_schedule(
    milestones: Sequence[int], factor: float = 0.1, warmup_steps: int = 0, warmup_factor: float = 1e-6
) -> Schedule:
    """
    Multiplication by `factor` at each milestone.

    Args:
        milestones (`Sequence[int]`): Training steps; 126000 in UN-EPT's released code.
        factor (`float`, *optional*, defaults to 0.1): Factor of each milestone.
        warmup_steps, warmup_factor (*optional*): See [`poly_schedule`].
    """
    return _with_warmup(lambda step: factor ** sum(step >= each for each in milestones), warmup_steps, warmup_factor)


def _with_warmup(schedule: Schedule, steps: int, start: float) -> Schedule:
    return lambda step: schedule(step) * (start + (1 - start) * step / steps if step < steps else 1.0)


def learning_rate_factor(recipe: Recipe) -> Schedule:
    """
    Return the function from a training step to its learning rate divided by `recipe.learning_rate`.

    Raises:
        ValueError: if `recipe.schedule_options` holds an unknown option of the schedule or lacks a required one.
    """
    min_factor = {"min_factor": min(1.0, recipe.min_learning_rate / recipe.learning_rate)}
    schedules: dict[str, tuple[Callable[..., Schedule], dict]] = {
        "poly": (poly_schedule, {"max_steps": recipe.max_steps, "power": 0.9, **min_factor}),
        "cosine": (cosine_restart_schedule, {"periods": [recipe.max_steps], "restart_factors": [1.0], **min_factor}),
        "step": (step_schedule, {}),
        "constant": (step_schedule, {"milestones": []}),
    }
    make, options = schedules[recipe.schedule]
    try:
        return make(**options | {"warmup_steps": recipe.warmup_steps} | recipe.schedule_options)
    except TypeError as error:
        raise ValueError(f"`schedule_options` of {recipe.schedule!r}: {error}") from error


def build_scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe) -> LambdaLR:
    """Return the recipe's scheduler. The factor depends on the step alone, so a resumed run continues bit for bit."""
    return LambdaLR(optimizer, learning_rate_factor(recipe))


__all__ = [
    "build_scheduler",
    "cosine_restart_schedule",
    "learning_rate_factor",
    "poly_schedule",
    "step_schedule",
]
