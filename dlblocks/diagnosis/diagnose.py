"""Diagnose any net: `dlblocks.diagnose(model, (x, y))`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dlblocks import factory
from dlblocks.diagnosis.batch import countable, output_of, parts_of, take
from dlblocks.diagnosis.report import Diagnosis, Finding
from dlblocks.diagnosis.signal import LossError, LossFunction, Signal, matrices, measure, norm_of
from dlblocks.diagnosis.stepper import descends, rate_of, second_order, takes_rate, twin
from dlblocks.diagnosis.ties import findings
from dlblocks.diagnosis.trial import SLOW, STARTED, UNSURE, Trial, run_trial, update
from dlblocks.diagnosis.verdict import Verdict, judge, likeliest
from dlblocks.errors import UserError
from dlblocks.initializers.apply import initialize
from dlblocks.optimizers.build import optimizer as build_optimizer
from dlblocks.probing import copied, probed
from dlblocks.registry import Spec
from dlblocks.theory.prediction import predict

# Tried where no rate is given, the likeliest first.
RATES = {True: (1e-3, 1e-2, 1e-4), False: (1e-1, 1e-2, 1e-3, 1.0)}
# Offered where a net will not start, if they help.
_INITS = ("auto", "he_normal", "glorot_uniform", "lecun_normal", "orthogonal")
_SUGGESTIONS = 3
# In so many orders of the instances is a net tried at most; the middle one tells.
_ORDERS = 5
# Instances for the signal, whose bounds were set with as many.
_SEEN = 256


def diagnose(
    model: nn.Module,
    batch: Any,
    *,
    loss: Spec | LossFunction | None = None,
    optimizer: Spec = "adamw",
    lr: float | None = None,
    batch_size: int = 64,
    trials: bool = True,
    suggest: bool = True,
) -> Diagnosis:
    """Whether a net will start to train, the layer where it breaks if not, and what would help.

    One batch of up to 256 instances is run forward and back. Where that does not tell, copies are trained for at
    most 200 steps on most of the instances and judged by the rest; near the border between started and not,
    in up to five orders of the instances, of which the middle one counts. The model, its modes, its buffers and the
    random states stay as they are.

    Args:
        model: any module that gives a tensor (or `logits` in what it gives).
        batch: `(x, y)`, some hundred instances or more, in any order; or x alone, for the signal only: then targets are
            noise, and nothing is trained. Where x is a tuple or a mapping of tensors, the model gets them as arguments
            if it takes as many, else as they are.
        loss: a name, a module or a function `(output, y)`; by default cross-entropy for whole numbers, else
            squared error.
        optimizer: that will train it: a name, a mapping, a class or partial, or a ready one, of which a copy trains.
        lr: its learning rate; None for that which the optimizer has been given, or else the best of a few.
        batch_size: instances for each step.
        trials: whether copies may be trained.
        suggest: whether to look for what would help.

    Returns:
        The diagnosis; `.panel()` shows it, `.save(folder)` writes it, `.check()` raises.

    Raises:
        UserError: the model can't be run on the batch, gives no tensor, or has nothing to train; the batch is empty,
            not finite, or of parts that don't belong together; the loss does not take what the model gives.

    >>> from dlblocks import initialize
    >>> net = torch.nn.Sequential(*[torch.nn.Linear(8, 8) for _ in range(3)])
    >>> diagnose(initialize(net, "zeros"), torch.randn(64, 8)).verdict.outcome
    'will not start'
    """
    x, y, known = parts_of(model, batch)
    criterion = _criterion(loss, y)
    wrong = tuple(findings(model, x, y, criterion)) if known else ()
    rate = rate_of(optimizer) if lr is None else lr
    case = _Case(x, y, criterion, optimizer, rate, batch_size, trials and known and countable(x, y))
    verdict, signal, ran = _judged(model, case, wrong)
    found: tuple[str, ...] = ()
    if suggest and verdict.outcome in ("will not start", "will diverge"):
        found = tuple(_suggestions(model, case))
    # As the signal is measured: without dropout.
    theory = predict(model, x[:_SEEN], dropout=False) if isinstance(x, Tensor) else None
    return Diagnosis(verdict, signal, ran, found, wrong, theory)


@dataclass(frozen=True)
class _Case:
    """What a net is diagnosed with."""

    x: Any
    y: Tensor
    loss: LossFunction
    optimizer: Spec
    lr: float | None
    batch_size: int
    trials: bool

    @property
    def adaptive(self) -> bool:
        return not descends(self.optimizer)

    def rates(self) -> Sequence[float | None]:
        if self.lr is not None:
            return (self.lr,)
        return RATES[self.adaptive] if takes_rate(self.optimizer) else (None,)

    def build(self, net: nn.Module, made: nn.Module, lr: float | None) -> Optimizer:
        """The optimizer of a copy of a net."""
        if isinstance(self.optimizer, Optimizer):
            return twin(self.optimizer, net, made, lr)
        if lr is None:
            return build_optimizer(self.optimizer, made)
        return build_optimizer(self.optimizer, made, lr=lr)

    def trial(self, net: nn.Module, lr: float | None, order: int) -> Trial:
        return run_trial(
            net,
            self.x,
            self.y,
            self.loss,
            partial(self.build, net),
            lr,
            batch_size=self.batch_size,
            second_order=second_order(self.optimizer),
            order=order,
        )


def _judged(
    net: nn.Module, case: _Case, wrong: Sequence[Finding] = ()
) -> tuple[Verdict, Signal, tuple[Trial, ...]]:
    """The verdict of the signal, or of trials where that is unclear."""
    some = torch.arange(min(_SEEN, len(case.y)))
    x, y = (take(case.x, some, len(case.y)), case.y[some]) if countable(case.x, case.y) else (case.x, case.y)
    try:
        signal = measure(net, x, y, case.loss)
    except LossError as error:
        told = " ".join(f"{finding.where}: {finding.message}" for finding in wrong)
        raise UserError(told or str(error)) from error
    if case.lr is not None and signal.finite:
        signal = _with_updates(net, case, signal)
    verdict = judge(signal, case.adaptive)
    if verdict.outcome != "unclear":
        return verdict, signal, ()
    if not case.trials:
        return likeliest(signal, case.adaptive), signal, ()
    rounds = _rounds(net, case)
    middle = sorted(rounds, key=_skill_of)[len(rounds) // 2]
    return _after(middle, verdict), signal, tuple(trial for trials in rounds for trial in trials)


def _rounds(net: nn.Module, case: _Case) -> list[list[Trial]]:
    """Trials at each rate until one starts for sure; in other orders too, where the first leaves it open."""
    rounds: list[list[Trial]] = []
    for order in range(_ORDERS):
        rounds.append([])
        for lr in case.rates():
            rounds[-1].append(case.trial(net, lr, order))
            if _skill_of(rounds[-1]) >= UNSURE[1]:
                break
        started = [_skill_of(trials) >= STARTED for trials in rounds]
        if order == 0 and not UNSURE[0] <= _skill_of(rounds[0]) < UNSURE[1]:
            break
        if max(started.count(True), started.count(False)) > _ORDERS // 2:
            break
    return rounds


def _skill_of(trials: Sequence[Trial]) -> float:
    return max(trial.skill for trial in trials)


def _after(trials: Sequence[Trial], verdict: Verdict) -> Verdict:
    """The verdict of trials; what the signal showed is the reason where they failed."""
    last = max(trials, key=lambda trial: trial.skill)
    at = "" if last.lr is None else f" at learning rate {last.lr:g}"
    if last.outcome == "started":
        return Verdict(
            "trains", f"a trial of {last.steps} steps{at} got {last.skill:.0%} of the way from chance."
        )
    if all(trial.outcome == "diverged" for trial in trials):
        return Verdict("will diverge", f"the loss went off in a trial{at}; {verdict.reason}", verdict.layer)
    if last.skill >= SLOW:
        return Verdict(
            "slow", f"a trial of {last.steps} steps{at} got {last.skill:.0%} of the way from chance."
        )
    rates = f"in trials at {len(trials)} learning rates" if len(trials) > 1 else f"in a trial{at}"
    reason = f"nothing was learnt {rates}; {verdict.reason}"
    return Verdict("will not start", reason, verdict.layer)


def _with_updates(net: nn.Module, case: _Case, signal: Signal) -> Signal:
    """The size of the first update of each layer, beside that of its weights."""
    made = copied(net)
    with probed(made, training=True, gradients=True):
        stepper = case.build(net, made, case.lr)
        update(stepper, lambda: case.loss(output_of(made, case.x), case.y), second_order(case.optimizer))
    before, after = dict(net.named_modules()), dict(made.named_modules())
    layers = []
    for layer in signal.layers:
        pairs = zip(matrices(before[layer.name]), matrices(after[layer.name]), strict=True)
        moved = norm_of([new.detach() - old.detach() for old, new in pairs])
        known = layer.weight and layer.gradient is not None
        layers.append(replace(layer, update=moved / layer.weight if known else None))
    return replace(signal, layers=tuple(layers))


def _suggestions(model: nn.Module, case: _Case) -> Iterator[str]:
    """Changes with which the net starts, each tried out."""
    found = 0
    for change, net, other in _changes(model, case):
        if _judged(net, other)[0].outcome == "trains":
            yield change
            found += 1
        if found == _SUGGESTIONS:
            return


def _changes(model: nn.Module, case: _Case) -> Iterator[tuple[str, nn.Module, _Case]]:
    for init in _INITS:
        made = copied(model)
        draw = torch.Generator().manual_seed(0)
        try:
            initialize(made, init, generator=draw, batch=case.x)
        except UserError:
            continue  # one that does not fit this model
        yield f"init={init}", made, case
    if case.lr is not None:
        for lr in (case.lr / 10, case.lr / 100, case.lr * 10):
            yield f"optimizer.lr={lr:g}", model, replace(case, lr=lr)
    if not case.adaptive:
        yield "optimizer=adamw", model, replace(case, optimizer="adamw", lr=None)


def _criterion(loss: Spec | LossFunction | None, y: Tensor) -> LossFunction:
    if loss is None:
        return nn.functional.mse_loss if y.is_floating_point() else nn.functional.cross_entropy
    if isinstance(loss, (str, Mapping)):
        return factory.loss(loss)
    function: LossFunction = loss
    return function
