"""Diagnose any net: `dlblocks.diagnose(model, (x, y))`."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dlblocks import factory
from dlblocks.diagnosis.report import Diagnosis
from dlblocks.diagnosis.signal import LossFunction, Signal, measure, output_of
from dlblocks.diagnosis.ties import findings
from dlblocks.diagnosis.trial import SLOW, STARTED, UNSURE, Trial, run_trial, update
from dlblocks.diagnosis.verdict import Verdict, judge
from dlblocks.errors import UserError
from dlblocks.initializers.apply import initialize
from dlblocks.optimizers.build import optimizer as build_optimizer
from dlblocks.probing import probed
from dlblocks.registry import REGISTRY, Spec, name_of

# Tried where no rate is given, the likeliest first.
RATES = {True: (1e-3, 1e-2, 1e-4), False: (1e-1, 1e-2, 1e-3, 1.0)}
# Offered where a net will not start, if they help.
_INITS = ("auto", "he_normal", "glorot_uniform", "lecun_normal", "orthogonal")
_SUGGESTIONS = 3
# In so many orders of the instances is a net tried at most; the middle one tells.
_ORDERS = 3
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
    most 200 steps on three quarters of the instances and judged by the rest; near the border between started and not,
    in up to three orders of the instances, of which the middle one counts. The model, its modes and the random state
    stay as they are.

    Args:
        model: any module that gives a tensor (or has `.logits` in what it gives).
        batch: `(x, y)`, some hundred instances or more; or x alone, for the signal only: then targets are noise, and
            nothing is trained.
        loss: a name, a module or a function `(output, y)`; by default cross-entropy for whole numbers, else
            squared error.
        optimizer: that will train it.
        lr: its learning rate; None for the best of a few.
        batch_size: instances for each step.
        trials: whether copies may be trained.
        suggest: whether to look for what would help.

    Returns:
        The diagnosis; `.panel()` shows it, `.save(folder)` writes it, `.check()` raises.

    Raises:
        UserError: the model can't be run on the batch, gives no tensor, or has nothing to train.

    >>> from dlblocks import initialize
    >>> net = torch.nn.Sequential(*[torch.nn.Linear(8, 8) for _ in range(3)])
    >>> diagnose(initialize(net, "zeros"), torch.randn(64, 8)).verdict.outcome
    'will not start'
    """
    x, y, known = _parts(model, batch)
    criterion = _criterion(loss, y)
    case = _Case(x, y, criterion, optimizer, lr, batch_size, trials and known)
    wrong = tuple(findings(model, x, y, criterion)) if known else ()
    verdict, signal, ran = _judged(model, case)
    found: tuple[str, ...] = ()
    if suggest and verdict.outcome in ("will not start", "will diverge"):
        found = tuple(_suggestions(model, case))
    return Diagnosis(verdict, signal, ran, found, wrong)


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
        return not self._tag("gradient_descent")

    def build(self, net: nn.Module, lr: float | None) -> Optimizer:
        """The optimizer of a net; a ready one is not known to other nets, so AdamW stands for it."""
        spec = "adamw" if isinstance(self.optimizer, Optimizer) else self.optimizer
        return build_optimizer(spec, net) if lr is None else build_optimizer(spec, net, lr=lr)

    def rates(self) -> Sequence[float | None]:
        if self.lr is not None:
            return (self.lr,)
        if isinstance(self.optimizer, (str, Mapping)):
            block = REGISTRY.get("optimizer", name_of(self.optimizer), "optimizer")
            if all(param.name != "lr" for param in block.params):
                return (None,)
        return RATES[self.adaptive]

    def trial(self, net: nn.Module, lr: float | None, order: int) -> Trial:
        return run_trial(
            net,
            self.x,
            self.y,
            self.loss,
            self.build,
            lr,
            batch_size=self.batch_size,
            second_order=bool(self._tag("second_order")),
            order=order,
        )

    def _tag(self, name: str) -> Any:
        if not isinstance(self.optimizer, (str, Mapping)):
            return None
        return REGISTRY.get("optimizer", name_of(self.optimizer), "optimizer").tags.get(name)


def _judged(net: nn.Module, case: _Case) -> tuple[Verdict, Signal, tuple[Trial, ...]]:
    """The verdict of the signal, or of trials where that is unclear."""
    seen = case.x[:_SEEN] if isinstance(case.x, Tensor) else case.x
    signal = measure(net, seen, case.y[:_SEEN] if seen is not case.x else case.y, case.loss)
    if case.lr is not None and signal.finite:
        signal = _with_updates(net, case, signal)
    verdict = judge(signal, case.adaptive)
    if verdict.outcome != "unclear" or not case.trials:
        return verdict, signal, ()
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
        skills = [_skill_of(trials) for trials in rounds]
        if order == 0 and not UNSURE[0] <= skills[0] < UNSURE[1]:
            break
        if order == 1 and (skills[0] >= STARTED) == (skills[1] >= STARTED):
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
    made = copy.deepcopy(net)
    with probed(made, training=True, gradients=True):
        update(case.build(made, case.lr), lambda: case.loss(output_of(made, case.x), case.y))
    before, after = dict(net.named_modules()), dict(made.named_modules())
    layers = []
    for layer in signal.layers:
        old, new = before[layer.name].weight, after[layer.name].weight
        assert isinstance(old, Tensor)
        assert isinstance(new, Tensor)
        moved = float(torch.linalg.vector_norm((new - old).detach(), dtype=torch.float64))
        layers.append(replace(layer, update=moved / layer.weight if layer.weight else None))
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
        made = copy.deepcopy(model)
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


def _parts(model: nn.Module, batch: Any) -> tuple[Any, Tensor, bool]:
    """Inputs, targets, and whether the targets are known."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Tensor):
        return batch[0], batch[1], True
    with probed(model):
        output = output_of(model, batch)
    draw = torch.Generator().manual_seed(0)
    return batch, torch.randn(output.shape, generator=draw).to(output), False


def _criterion(loss: Spec | LossFunction | None, y: Tensor) -> LossFunction:
    if loss is None:
        return nn.functional.mse_loss if y.is_floating_point() else nn.functional.cross_entropy
    if isinstance(loss, (str, Mapping)):
        return factory.loss(loss)
    function: LossFunction = loss
    return function
