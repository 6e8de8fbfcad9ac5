"""Rates in optimizers and schedulers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim import lr_scheduler as ls
from torch.optim.swa_utils import SWALR

from dlblocks.errors import UserError
from dlblocks.tuning.rates import base_rates, check_schedulers, replace_rates, scale_rates, set_rates


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
    "averaging": lambda o, f: SWALR(o, [0.05 * f, 0.01 * f], anneal_epochs=4),
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


class Warm(ls.LRScheduler):
    """As those of many packages: an LRScheduler with rates of its own."""

    def __init__(self, optimizer: Optimizer, max_lr: float, min_lr: float) -> None:
        self.max_lr, self.min_lr = max_lr, min_lr
        super().__init__(optimizer)

    def get_lr(self) -> list[float | torch.Tensor]:
        share = min(1.0, self.last_epoch / 4)
        return [self.min_lr + (self.max_lr - self.min_lr) * share for _ in self.base_lrs]


class Plain:
    """As timm's: no LRScheduler, and told of the epoch."""

    def __init__(self, optimizer: Optimizer, warmup_lr_init: float) -> None:
        self.optimizer, self.warmup_lr_init = optimizer, warmup_lr_init
        self.base_values = [float(group["lr"]) for group in optimizer.param_groups]
        self.warmup_steps = [(value - warmup_lr_init) / 5 for value in self.base_values]

    def step(self, epoch: int, metric: float | None = None) -> None:  # noqa: ARG002
        for group, base, warm in zip(
            self.optimizer.param_groups, self.base_values, self.warmup_steps, strict=True
        ):
            group["lr"] = self.warmup_lr_init + epoch * warm if epoch < 5 else base * 0.9**epoch


class Anonymous:
    """Its rate has no name to know it by, but is that of the optimizer."""

    def __init__(self, optimizer: Optimizer, start: float) -> None:
        self.optimizer, self.start, self.gamma = optimizer, start, 0.9

    def step(self, epoch: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.start * self.gamma**epoch


class Hidden(ls.LRScheduler):
    def get_lr(self) -> list[float | torch.Tensor]:
        return [0.05 for _ in self.base_lrs]


FOREIGN: dict[str, Callable[[Optimizer, float], Any]] = {
    "named": lambda o, f: Warm(o, 0.4 * f, 0.01 * f),
    "of timm": lambda o, f: Plain(o, 0.001 * f),
    "equal": lambda o, f: Anonymous(o, 0.1 * f),
    "in a sequence of torch's": lambda o, f: ls.SequentialLR(
        o, [ls.ConstantLR(o, 0.5, 3), Warm(o, 0.4 * f, 0.01 * f)], [3]
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_schedulers_of_other_libraries_are_scaled(name: str) -> None:
    built, scaled = two_groups(3.0), two_groups()
    expected = FOREIGN[name](built, 3.0)
    scheduler = FOREIGN[name](scaled, 1.0)
    random = torch.get_rng_state()
    scale_rates(scaled, [scheduler], 3.0)
    assert torch.get_rng_state().equal(random)
    for step in range(9):
        assert [g["lr"] for g in scaled.param_groups] == pytest.approx([g["lr"] for g in built.param_groups])
        for optimizer, one in ((built, expected), (scaled, scheduler)):
            optimizer.step()
            one.step(*(() if isinstance(one, ls.LRScheduler) else (step + 1,)))


def test_a_scheduler_of_ones_own_that_watches_a_metric() -> None:
    class Watches(ls.ReduceLROnPlateau):
        pass

    optimizer = two_groups()
    scale_rates(optimizer, [Watches(optimizer)], 3.0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.3, 0.06])


def test_a_scheduler_whose_rates_are_not_found_is_refused() -> None:
    optimizer = two_groups()
    with pytest.raises(UserError, match=r"^Hidden: keeps learning rates of its own.*find_lr"):
        check_schedulers(optimizer, [Hidden(optimizer)])


def test_one_that_cannot_be_tried_says_why() -> None:
    class Fails(Anonymous):
        def step(self, epoch: int) -> None:  # noqa: ARG002
            raise RuntimeError("no epoch")

    optimizer = two_groups()
    with pytest.raises(UserError, match=r"^Fails: .*Tried out, it fails: no epoch"):
        check_schedulers(optimizer, [Fails(optimizer, 0.1)])


def test_the_maximum_of_a_cycle_is_its_rate() -> None:
    optimizer = two_groups()
    cyclic = ls.CyclicLR(optimizer, [0.01, 0.002], [0.1, 0.02], step_size_up=3)
    assert base_rates(optimizer, [cyclic]) == [0.1, 0.02]
    replace_rates(optimizer, [cyclic], 0.7)
    assert cyclic.max_lrs == pytest.approx([0.7, 0.14])
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.07, 0.014])


def test_the_rate_is_exactly_the_one_given_and_that_of_groups_to_come() -> None:
    optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
    change = replace_rates(optimizer, [], 0.3)
    assert optimizer.param_groups[0]["lr"] == optimizer.defaults["lr"] == change(0.01) == 0.3
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    assert optimizer.param_groups[1]["lr"] == 0.3


def test_a_tensor_that_is_the_rate_of_all_is_scaled_once() -> None:
    rate = torch.tensor(0.1)
    optimizer = SGD([{"params": [nn.Parameter(torch.zeros(1))]} for _ in range(2)], lr=rate)
    scale_rates(optimizer, [ls.LambdaLR(optimizer, lambda _: 1.0)], 4.0)
    assert all(group["lr"] is rate for group in optimizer.param_groups)
    assert float(rate) == pytest.approx(0.4)
