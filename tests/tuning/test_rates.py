"""Rates in optimizers and schedulers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim import lr_scheduler as ls

from dlblocks.tuning.rates import base_rates, scale_rates, set_rates


def two_groups(factor: float = 1.0) -> Optimizer:
    params = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [params[0]], "lr": 0.1 * factor}, {"params": [params[1]], "lr": 0.02 * factor}]
    return SGD(groups, lr=1.0, momentum=0.9)


SCHEDULERS: dict[str, Callable[[Optimizer, float], Any]] = {
    "lambda": lambda o, _: ls.LambdaLR(o, lambda step: 0.9**step),
    "multiplicative": lambda o, _: ls.MultiplicativeLR(o, lambda _: 0.9),
    "step": lambda o, _: ls.StepLR(o, 2, 0.5),
    "exponential": lambda o, _: ls.ExponentialLR(o, 0.9),
    "cosine": lambda o, _: ls.CosineAnnealingLR(o, 8),
    "restarts": lambda o, _: ls.CosineAnnealingWarmRestarts(o, 3),
    "one_cycle": lambda o, f: ls.OneCycleLR(o, [0.1 * f, 0.02 * f], total_steps=10),
    "cyclic": lambda o, f: ls.CyclicLR(o, [0.01 * f, 0.002 * f], [0.1 * f, 0.02 * f], step_size_up=3),
    "warm-up, then cosine": lambda o, _: ls.SequentialLR(
        o, [ls.LinearLR(o, 0.1, total_iters=3), ls.CosineAnnealingLR(o, 5)], [3]
    ),
    "chained": lambda o, _: ls.ChainedScheduler([ls.ConstantLR(o, 0.5, 2), ls.ExponentialLR(o, 0.9)]),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_scaled_is_as_if_built_with_other_rates(name: str) -> None:
    built, scaled = two_groups(3.0), two_groups()
    expected = SCHEDULERS[name](built, 3.0)
    scheduler = SCHEDULERS[name](scaled, 1.0)
    scale_rates(scaled, [scheduler], 3.0)
    for _ in range(9):
        assert [g["lr"] for g in scaled.param_groups] == pytest.approx([g["lr"] for g in built.param_groups])
        for optimizer, step in ((built, expected), (scaled, scheduler)):
            optimizer.step()
            step.step()


def test_setting_keeps_ratios() -> None:
    optimizer = two_groups()
    bases = base_rates(optimizer)
    set_rates(optimizer, bases, 5.0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([5.0, 1.0])
    set_rates(optimizer, bases, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(bases)


def test_base_of_a_schedule_is_what_it_starts_from_or_its_maximum() -> None:
    warm = two_groups()
    ls.LinearLR(warm, 0.1)
    assert base_rates(warm) == [0.1, 0.02]
    cycle = two_groups()
    ls.OneCycleLR(cycle, [0.5, 0.1], total_steps=10)
    assert base_rates(cycle) == [0.5, 0.1]


def test_a_tensor_stays_the_same_tensor() -> None:
    rate = torch.tensor(0.1)
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=rate)
    set_rates(optimizer, base_rates(optimizer), 0.4)
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.4)


def test_the_floor_of_reduce_on_plateau_stays() -> None:
    optimizer = two_groups()
    scheduler = ls.ReduceLROnPlateau(optimizer, min_lr=0.05)
    scale_rates(optimizer, [scheduler], 10.0)
    assert scheduler.min_lrs == [0.05, 0.05]
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1.0, 0.2])
