# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""A training run that ends right after its first checkpoint."""

from collections.abc import Callable
from typing import Any

import pytest


class Interrupted(Exception):
    pass


def train_until_first_checkpoint(train: Callable, recipe: Any, owner: Any, function: str) -> None:
    """Train until `owner.function` has saved a checkpoint, and fail if it saves none."""
    save = getattr(owner, function)

    def save_then_stop(*arguments: Any, **options: Any) -> None:
        save(*arguments, **options)
        raise Interrupted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, function, save_then_stop)
        with pytest.raises(Interrupted):
            train(recipe)
