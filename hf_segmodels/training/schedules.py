# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
The learning rate schedules of mmcv, for `torch.optim.lr_scheduler.LambdaLR`: functions from a training step, counted from 0, to a
factor of the learning rate. torch's own schedulers lack the lower bound of the polynomial decay and the factors of the restarts.
"""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate

from .recipe import Recipe


Schedule = Callable[[int], float]


def poly_schedule(max_steps: int, power: float = 0.9, min_factor: float = 0.0) -> Schedule:
    """Return the decay `(1 - step / max_steps) ** power` from 1 to `min_factor`."""
    if max_steps < 1:
        raise ValueError(f"`max_steps` must be at least 1, got {max_steps}.")
    return lambda step: min_factor + (1 - min_factor) * max(1 - step / max_steps, 0.0) ** power


def cosine_restart_schedule(
    periods: Sequence[int], restart_factors: Sequence[float], min_factor: float = 0.0
) -> Schedule:
    """
    Return repeated decays along half a cosine to `min_factor`: decay i takes `periods[i]` steps and starts at
    `restart_factors[i]`. The last value is kept afterwards.
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

    return decay


def step_schedule(milestones: Sequence[int], factor: float = 0.1) -> Schedule:
    """Return the product of one `factor` for each of the `milestones` (training steps) that is reached."""
    return lambda step: factor ** sum(step >= milestone for milestone in milestones)


def with_warmup(schedule: Schedule, warmup_steps: int, warmup_factor: float = 1e-6) -> Schedule:
    """Return `schedule` times a factor that rises linearly from `warmup_factor` to 1 in `warmup_steps` steps."""
    return lambda step: (
        schedule(step) * (warmup_factor + (1 - warmup_factor) * step / warmup_steps if step < warmup_steps else 1.0)
    )


def learning_rate_factor(recipe: Recipe) -> Schedule:
    """
    Return the function from a training step to its learning rate divided by `recipe.learning_rate`. It depends only on the step,
    so that a resumed run continues bit for bit.

    Raises:
        ValueError: if `recipe.schedule_options` holds an unknown option of the schedule or lacks a required one.
    """
    min_factor = {"min_factor": min(1.0, recipe.min_learning_rate / recipe.learning_rate)}
    schedules: dict[str, tuple[Callable[..., Schedule], dict]] = {
        "poly": (poly_schedule, {"max_steps": recipe.max_steps, **min_factor}),
        "cosine": (cosine_restart_schedule, {"periods": [recipe.max_steps], "restart_factors": [1.0], **min_factor}),
        "step": (step_schedule, {}),
        "constant": (step_schedule, {"milestones": []}),
    }
    make, options = schedules[recipe.schedule]
    options |= {"warmup_steps": recipe.warmup_steps} | recipe.schedule_options
    warmup = {name: options.pop(name) for name in ("warmup_steps", "warmup_factor") if name in options}
    try:
        return with_warmup(make(**options), **warmup)
    except TypeError as error:
        raise ValueError(f"`schedule_options` of {recipe.schedule!r}: {error}") from error
