# Copyright the hf_segmodels authors. Licensed under the Apache License, Version 2.0.
"""Learning rates against those that mmcv's hooks set, in RegProxy's ten configurations and SegViT's six."""

import json
from pathlib import Path

import pytest
import torch

from hf_segmodels.training.schedules import cosine_restart_schedule, poly_schedule, with_warmup


FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
SCHEDULES = {
    name: {"lr": 6e-5, **fields}
    for method in ("regproxy", "segvit")
    for name, fields in json.loads((FIXTURES / method / "schedules.json").read_text()).items()
}


@pytest.mark.parametrize("name", list(SCHEDULES))
def test_learning_rates_of_the_original(name: str):
    fields = SCHEDULES[name]["lr_config"]
    if fields["policy"] == "poly":
        schedule = poly_schedule(SCHEDULES[name]["max_iters"], fields["power"], fields["min_lr"])
    else:
        schedule = cosine_restart_schedule(fields["periods"], fields["restart_weights"])
    schedule = with_warmup(schedule, fields["warmup_iters"], fields["warmup_ratio"])
    rates = {step: SCHEDULES[name]["lr"] * schedule(int(step)) for step in SCHEDULES[name]["lr_at_iter"]}
    assert rates == pytest.approx(SCHEDULES[name]["lr_at_iter"], rel=1e-6)


def test_schedules_end_at_their_lowest_factor():
    assert poly_schedule(10, power=0.9, min_factor=0.1)(10) == pytest.approx(0.1)
    assert poly_schedule(10, power=0.9, min_factor=0.1)(99) == pytest.approx(0.1)
    cosine = cosine_restart_schedule([4, 8], [1, 0.5], min_factor=0.2)
    assert [cosine(step) for step in (0, 4, 12, 99)] == pytest.approx([1, 0.6, 0.2, 0.2])


def test_an_optimizer_follows_a_schedule():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, poly_schedule(4, power=1.0))
    rates = []
    for _ in range(4):
        rates += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([2.0, 1.5, 1.0, 0.5])


@pytest.mark.parametrize(("periods", "factors"), [([4, 8], [1]), ([], []), ([4, 0], [1, 0.5])])
def test_each_decay_needs_steps_and_a_factor(periods, factors):
    with pytest.raises(
        ValueError, match="need one entry for each decay, and each period must be at least 1 training step"
    ):
        cosine_restart_schedule(periods, factors)


def test_poly_needs_steps():
    with pytest.raises(ValueError, match="`max_steps` must be at least 1, got 0"):
        poly_schedule(0)
