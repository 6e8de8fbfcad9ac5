"""A short run on a copy: whether a net has started to learn after two hundred steps."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import inf, isfinite
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dlblocks.diagnosis.signal import LossFunction, output_of
from dlblocks.probing import probed

STEPS = 200
# Checked as often, so that a run that has started is not run on.
_EVERY = 25
# Of the way from chance to perfect, what counts as started; chosen on the benchmark's tuned grid.
STARTED = 0.2
# And what counts as slow.
SLOW = 0.08
# From 0.1 to here the order of the instances decides as much as the net does; beyond, a run is not run on.
UNSURE = (0.1, 0.35)
# A loss so many times the first one has gone off.
_GONE = 1e3


@dataclass(frozen=True)
class Trial:
    """What came of a short run.

    Args:
        lr: its learning rate; None for an optimizer that has none.
        outcome: `started`, `nothing`, or `diverged`.
        skill: 0 at chance, 1 perfect; of instances that were not trained on.
        steps: run.
        order: of the instances, a number; the same net may start in one order and not in another.
    """

    lr: float | None
    outcome: Literal["started", "nothing", "diverged"]
    skill: float
    steps: int
    order: int = 0


def run_trial(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    loss: LossFunction,
    optimizer: Callable[[nn.Module, float | None], Optimizer],
    lr: float | None,
    *,
    batch_size: int = 64,
    second_order: bool = False,
    order: int = 0,
) -> Trial:
    """Train a copy on three quarters of the instances, and judge it by the rest.

    Args:
        net: stays as it is.
        x, y: instances, some hundred; with fewer than 8, all are trained on and judged by.
        loss: `loss(output, y)`, a number.
        optimizer: makes an optimizer of a net with a learning rate.
        lr: the rate.
        batch_size: instances for each step, at most those there are.
        second_order: whether the optimizer wants a graph of the gradients.
        order: of the instances, and of all that is random in the run.
    """
    train = len(x) - len(x) // 4 if len(x) >= 8 else len(x)
    judged = slice(train if train < len(x) else 0, None)
    made = copy.deepcopy(net)
    skill, first, gone = 0.0, inf, False
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using backward.. with create_graph=True")
        torch.manual_seed(order)
        stepper = optimizer(made, lr)
        baseline = _constant_loss(made, x[:train], y[:train], loss)
        for step, rows in enumerate(_batches(train, min(batch_size, train), order), 1):
            made.train()
            value = update(stepper, partial(_loss_of, made, x[rows], y[rows], loss), second_order)
            first = min(first, value) if step == 1 else first
            if not isfinite(value) or value > _GONE * max(first, 1.0):
                gone = True
                break
            if step % _EVERY == 0:
                made.eval()
                with torch.no_grad():
                    skill = max(skill, _skill(output_of(made, x[judged]), y[judged], loss, baseline))
                if skill >= UNSURE[1]:
                    break
    return Trial(lr, "started" if skill >= STARTED else "diverged" if gone else "nothing", skill, step, order)


def _loss_of(net: nn.Module, x: Tensor, y: Tensor, loss: LossFunction) -> Tensor:
    return loss(output_of(net, x), y)


def update(stepper: Optimizer, loss_of: Callable[[], Tensor], second_order: bool = False) -> float:
    """One update by a closure, as all optimizers take it; the loss before it."""
    losses: list[float] = []

    def closure() -> Tensor:
        stepper.zero_grad()
        value = loss_of()
        torch.autograd.backward(value, create_graph=second_order)
        losses.append(float(value.detach()))
        return value

    stepper.step(closure)  # type: ignore[arg-type]
    return losses[0]


def _batches(rows: int, size: int, order: int) -> Iterator[Tensor]:
    """Whole batches in a new order each pass."""
    draw = torch.Generator().manual_seed(order)
    given = 0
    while True:
        places = torch.randperm(rows, generator=draw)
        for start in range(0, rows - size + 1, size):
            if given == STEPS:
                return
            given += 1
            yield places[start : start + size]


def _constant_loss(net: nn.Module, x: Tensor, y: Tensor, loss: LossFunction) -> float:
    """The loss of the best constant output, which a net reaches that tells no inputs apart."""
    with probed(net):
        constant = torch.zeros_like(output_of(net, x[:1]))
    constant = constant.requires_grad_()
    search = torch.optim.LBFGS([constant], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        value = loss(constant.expand(len(x), *constant.shape[1:]), y)
        torch.autograd.backward(value)
        return value

    search.step(closure)  # type: ignore[no-untyped-call]
    return float(closure().detach())


def _skill(output: Tensor, y: Tensor, loss: LossFunction, baseline: float) -> float:
    """From 0 at chance to 1: of the accuracy for classes, of the loss for all else."""
    if not output.isfinite().all():
        return 0.0
    classes = not y.is_floating_point() and output.ndim == 2 and output.shape[1] > 1 and y.ndim == 1
    binary = y.ndim == 1 and output.numel() == len(y) and bool(((y == 0) | (y == 1)).all())
    if not (classes or binary):
        return 1 - float(loss(output, y)) / baseline if baseline > 0 else 0.0
    guess = output.argmax(1) if classes else (output.flatten() > 0).to(y.dtype)
    chance = float(y.long().bincount().max()) / len(y)
    return (float((guess == y).double().mean()) - chance) / (1 - chance) if chance < 1 else 0.0
