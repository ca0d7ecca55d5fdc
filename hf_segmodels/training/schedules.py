# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""
Learning rates over time as mmcv sets them, in the form that `torch.optim.lr_scheduler.LambdaLR` takes.

Each function returns a function from the update's number, from 0, to the factor of the learning rate.
"""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate


Schedule = Callable[[int], float]


def poly_schedule(
    max_steps: int, power: float = 1.0, min_factor: float = 0.0, warmup_steps: int = 0, warmup_factor: float = 1e-6
) -> Schedule:
    """
    Falls from 1 to `min_factor` as `(1 - step / max_steps) ** power`.

    Args:
        max_steps (`int`): Number of updates.
        power (`float`, *optional*, defaults to 1.0): 1 in RegProxy, 0.9 in many recipes.
        min_factor (`float`, *optional*, defaults to 0.0): Where it ends.
        warmup_steps (`int`, *optional*, defaults to 0): Updates over which a second factor rises linearly to 1.
        warmup_factor (`float`, *optional*, defaults to 1e-06): Where that one starts.

    Raises:
        ValueError: if there is no update.

    Example:

    ```python
    >>> import torch
    >>> from hf_segmodels.training.schedules import poly_schedule

    >>> optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=6e-5)
    >>> schedule = poly_schedule(160_000, warmup_steps=1500)  # RegProxy-S/16 on ADE20K
    >>> scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    ```
    """

    if max_steps < 1:
        raise ValueError(f"`max_steps` must be at least 1, got {max_steps}.")

    def fall(step: int) -> float:
        return min_factor + (1 - min_factor) * max(1 - step / max_steps, 0.0) ** power

    return _with_warmup(fall, warmup_steps, warmup_factor)


def cosine_restart_schedule(
    periods: Sequence[int],
    restart_factors: Sequence[float],
    min_factor: float = 0.0,
    warmup_steps: int = 0,
    warmup_factor: float = 1e-6,
) -> Schedule:
    """
    Falls from 1 to `min_factor` along half a cosine, again and again.

    Args:
        periods (`Sequence[int]`): Updates of each fall; the end of the last one holds afterwards.
        restart_factors (`Sequence[float]`): What each fall is multiplied by.
        min_factor, warmup_steps, warmup_factor: See [`poly_schedule`].

    Raises:
        ValueError: if there is not one factor for each period, or a period without updates.
    """
    if len(periods) != len(restart_factors) or not periods or min(periods) < 1:
        raise ValueError(
            f"`periods` {list(periods)} and `restart_factors` {list(restart_factors)} need an entry for each fall, and each "
            "period at least one update."
        )
    ends = list(accumulate(periods))

    def fall(step: int) -> float:
        step = min(step, ends[-1])
        number = next((number for number, end in enumerate(ends) if step < end), len(ends) - 1)
        progress = (step - ends[number] + periods[number]) / periods[number]
        return min_factor + (1 - min_factor) * restart_factors[number] * (1 + math.cos(math.pi * progress)) / 2

    return _with_warmup(fall, warmup_steps, warmup_factor)


def step_schedule(
    milestones: Sequence[int], factor: float = 0.1, warmup_steps: int = 0, warmup_factor: float = 1e-6
) -> Schedule:
    """
    Multiplies by `factor` at each milestone.

    Args:
        milestones (`Sequence[int]`): Updates from which the next factor holds; 126000 in UN-EPT's released code.
        factor (`float`, *optional*, defaults to 0.1): That factor.
        warmup_steps, warmup_factor: See [`poly_schedule`].
    """

    def fall(step: int) -> float:
        return factor ** sum(step >= milestone for milestone in milestones)

    return _with_warmup(fall, warmup_steps, warmup_factor)


def _with_warmup(schedule: Schedule, steps: int, start: float) -> Schedule:
    return lambda step: schedule(step) * (start + (1 - start) * step / steps if step < steps else 1.0)


__all__ = ["cosine_restart_schedule", "poly_schedule", "step_schedule"]
