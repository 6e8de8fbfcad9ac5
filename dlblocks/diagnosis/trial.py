"""A short run on a copy: whether a net has started to learn after two hundred steps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import inf, isfinite
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dlblocks.diagnosis.batch import output_of, take
from dlblocks.diagnosis.signal import LossFunction
from dlblocks.probing import copied, probed, random_states

STEPS = 200
# Checked as often, so that a run that has started is not run on.
_EVERY = 25
# Of the way from chance to perfect, what counts as started; chosen on the benchmark's tuned grid.
STARTED = 0.22
# And what counts as slow.
SLOW = 0.08
# From 0.1 to here the order of the instances decides as much as the net does; beyond, a run is not run on.
UNSURE = (0.1, 0.35)
# A loss so many times the first one has gone off.
_GONE = 1e6
# So many instances tell a skill of 0.2 from chance.
_JUDGED = 128


@dataclass(frozen=True)
class Trial:
    """What came of a short run.

    Args:
        lr: its learning rate; None for an optimizer that has none.
        outcome: `started`, `nothing`, or `diverged`.
        skill: 1 is perfect, 0 is chance or, where that is better, the untrained net; of instances that were not trained
            on.
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
    x: Any,
    y: Tensor,
    loss: LossFunction,
    optimizer: Callable[[nn.Module, float | None], Optimizer],
    lr: float | None,
    *,
    batch_size: int = 64,
    second_order: bool = False,
    order: int = 0,
) -> Trial:
    """Train a copy on most of the instances, and judge it by the rest: an eighth, of fewer than 1024 up to a quarter.

    Args:
        net: stays as it is.
        x, y: instances, some hundred; with fewer than 8, all are trained on and judged by.
        loss: `loss(output, y)`, a number.
        optimizer: makes an optimizer of a copy of the net with a learning rate.
        lr: the rate.
        batch_size: instances for each step, at most those there are.
        second_order: whether the optimizer wants a graph of the gradients.
        order: of the instances, which also parts them, and of all that is random in the run.
    """
    trained, judged = _parted(len(y), order)
    held_x, held_y = take(x, judged, len(y)), y[judged]
    made = copied(net)
    skill, first, gone = 0.0, inf, False
    with random_states(), torch.enable_grad():
        torch.manual_seed(order)
        stepper = optimizer(made, lr)
        skill_of = _measure(made, take(x, trained, len(y)), y[trained], loss)

        def gained(start: float = 0.0) -> float:
            made.eval()
            with torch.no_grad():
                now = skill_of(output_of(made, held_x), held_y)
            return (now - start) / (1 - start) if start < 1 else 0.0

        start = max(0.0, gained())
        for step, places in enumerate(_batches(len(trained), min(batch_size, len(trained)), order), 1):
            rows = trained[places]
            made.train()
            value = update(
                stepper, partial(_loss_of, made, take(x, rows, len(y)), y[rows], loss), second_order
            )
            first = min(first, value) if step == 1 else first
            if not isfinite(value) or value > _GONE * max(first, 1.0):
                gone = True
                break
            if step % _EVERY == 0:
                skill = max(skill, gained(start))
                if skill >= UNSURE[1]:
                    break
    return Trial(lr, "started" if skill >= STARTED else "diverged" if gone else "nothing", skill, step, order)


def _parted(count: int, order: int) -> tuple[Tensor, Tensor]:
    """The places of the instances to train on, and of those to judge by."""
    places = torch.randperm(count, generator=torch.Generator().manual_seed(order))
    if count < 8:
        return places, places
    held = max(count // 8, min(count // 4, _JUDGED))
    return places[held:], places[:held]


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

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using backward.. with create_graph=True")
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


def _measure(net: nn.Module, x: Any, y: Tensor, loss: LossFunction) -> Callable[[Tensor, Tensor], float]:
    """How to tell skill from chance: by the accuracy for classes, by the loss for all else."""
    with probed(net):
        output = output_of(net, x)
    if y.ndim == 1 and not y.is_floating_point() and output.ndim == 2 and output.shape[1] > 1:
        return partial(_accuracy_skill, lambda given: given.argmax(1))
    if y.ndim == 1 and output.numel() == len(y) and bool(((y == 0) | (y == 1)).all()):
        # Half of the probabilities, and none of the logits, lie on this side.
        border = 0.5 if float(output.min()) >= 0 and float(output.max()) <= 1 else 0.0
        return partial(_accuracy_skill, lambda given: (given.flatten() > border).to(y.dtype))
    # The mean output of the untrained net is one that the loss takes.
    mean = output.mean(0, keepdim=True) if output.is_floating_point() else torch.zeros_like(output[:1])
    return partial(_loss_skill, loss, constant_loss(mean.nan_to_num(0, 0, 0), y, loss))


def _accuracy_skill(guess: Callable[[Tensor], Tensor], output: Tensor, y: Tensor) -> float:
    counted = y >= 0  # labels below 0 mark instances that the loss ignores
    y = y[counted]
    if not (len(y) and output.isfinite().all()):
        return 0.0
    chance = float(y.long().bincount().max()) / len(y)
    return (
        (float((guess(output)[counted] == y).double().mean()) - chance) / (1 - chance) if chance < 1 else 0.0
    )


def _loss_skill(loss: LossFunction, baseline: float, output: Tensor, y: Tensor) -> float:
    """The share of the constant's loss that is gone, of a loss that ends at 0; one that goes below 0 has no such end,
    and is measured by the larger of both."""
    value = float(loss(output, y))
    if not isfinite(value):
        return 0.0
    if baseline > 0 and value >= 0:
        return 1 - value / baseline
    return (baseline - value) / max(abs(baseline), abs(value)) if value != baseline else 0.0


def constant_loss(start: Tensor, y: Tensor, loss: LossFunction) -> float:
    """The loss of the best constant output, which a net reaches that tells no inputs apart.

    Some losses take probabilities only, and raise where the search leaves them; then the best so far counts.

    Args:
        start: one instance's output, which the loss takes.
        y: targets.
        loss: `loss(output, y)`, a number.
    """
    constant = start.detach().contiguous().requires_grad_()
    search = torch.optim.LBFGS([constant], max_iter=50, line_search_fn="strong_wolfe")
    found: list[float] = []

    def closure() -> Tensor:
        value = loss(constant.expand(len(y), *constant.shape[1:]).contiguous(), y)
        (constant.grad,) = torch.autograd.grad(value, constant)  # a loss may have parameters; they get none
        if isfinite(float(value.detach())):
            found.append(float(value.detach()))
        return value

    try:
        search.step(closure)  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError):
        if not found:
            raise
    return min(found, default=inf)
