"""A learning rate for a module and its data, and why this one."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import lightning.pytorch as pl

from dlblocks.errors import UserError, first_line, unknown
from dlblocks.module import NonFiniteLossError
from dlblocks.tuning import range_test
from dlblocks.tuning.agreement import total
from dlblocks.tuning.batches import Batches, gather, of_update
from dlblocks.tuning.choice import LearningRateChoice
from dlblocks.tuning.finder import Finder, find, progress
from dlblocks.tuning.judge import Judge
from dlblocks.tuning.memory import is_out_of_memory
from dlblocks.tuning.race import STEPS, Lap, aim, ladder, leader, planned, race, winner
from dlblocks.tuning.range_test import SUGGESTIONS
from dlblocks.tuning.rates import Change, check_schedulers, replace_rates
from dlblocks.tuning.schedules import is_number
from dlblocks.tuning.sizes import guessed_count
from dlblocks.tuning.trial import NoLossError, Trial
from dlblocks.tuning.updates import set_accumulation, updates_left

Method = Literal["race", "valley", "steepest", "minimum"]
METHODS = ("race", *SUGGESTIONS)
MIN_RATE, MAX_RATE = 1e-5, 10.0
WHAT = "finding the learning rate"
# Where modules and their hparams keep the rate, and what says that there is none.
_KEPT_AS, _NO_RATE = ("lr", "learning_rate"), object()
# A range test has so many steps, and is repeated on small data: once for each time that an epoch fits into the steps, three
# times at most.
_RANGE_STEPS, _RANGE_RUNS = 100, 3
# A step of a race sees so many instances: of a few updates where batches are smaller, or by the losses of single
# instances the fastest rates are chance.
_INSTANCES = 16
# Of all copies of a net that are kept between the rungs of a race, in bytes of their weights.
_KEPT_BYTES = 2**31


def find_lr(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    datamodule: pl.LightningDataModule | None = None,
    *,
    train_dataloaders: Any = None,
    val_dataloaders: Any = None,
    method: Method = "race",
    min_lr: float = MIN_RATE,
    max_lr: float = MAX_RATE,
    steps: int = STEPS,
    monitor: str | None = None,
) -> LearningRateChoice:
    """Find a learning rate for any LightningModule with one optimizer, before `trainer.fit`.

    `race` trains the same net at 13 rates from the same weights on the same batches, sees by their training losses
    where the fast ones lie, trains at some rates around there, and takes the one with the lowest validation loss or
    one that comes near it; without validation, the loss on a fifth of the training batches that no rate has trained
    on (`tuning.race`), as also where validation gives no loss. The validation loss is that in a mapping which
    `validation_step` returns; else what a callback monitors with mode=min, a tensor that is returned, or what is logged
    by a name such as `val_loss` (`tuning.judge`). The other methods are suggestions of a range test (Smith 2015,
    arXiv:1506.01186), the mean of up to three curves: `valley`, `steepest` and `minimum`.

    Trials have the Trainer's precision, clipping, accumulation and processes; schedulers take no part: the
    rate is their base, or the maximum of a one-cycle or cyclic schedule. With several parameter groups it is that of the
    first, and the others keep their ratio. Afterwards module, Trainer, loaders and random states are as
    they were, also after an exception or Ctrl-C.

    Args:
        trainer: the one that will fit.
        module: to be trained; only copies of it are.
        datamodule: or give `train_dataloaders`, and `val_dataloaders`.
        method: see above.
        min_lr, max_lr: the range.
        steps: of the last rates in the race; a run of less than twice as many is raced whole, at more of them. A step
            is an update, or with batches of less than 16 instances as many as see 16.
        monitor: the name of the logged value by which the race is judged, lower being better.

    Raises:
        UserError: a range, method or monitor that is not legal, validation that logs several losses, a module with
            several optimizers or none, a strategy that splits the module, or no rate with a finite loss.
    """
    finder = LearningRateFinder(method, min_lr, max_lr, steps, apply=False, monitor=monitor)
    found: LearningRateChoice = find(finder, trainer, module, datamodule, train_dataloaders, val_dataloaders)
    return found


class LearningRateFinder(Finder):
    """Finds a learning rate when `fit` starts, and trains with it.

    The rates in the optimizer and its schedulers are scaled, and so is a number `lr` or `learning_rate` of the module, or
    of its hparams; where that is None, 0 or "auto", it becomes the rate. A run that goes on from a checkpoint keeps
    the rates of that.

    Args:
        method, min_lr, max_lr, steps, monitor: as of `find_lr`.
        folder: where `lr_finder.png` and `lr_finder.csv` go; None for nowhere.
        apply: train with the rate. If not, `fit` ends without a step.
    """

    def __init__(
        self,
        method: Method = "race",
        min_lr: float = MIN_RATE,
        max_lr: float = MAX_RATE,
        steps: int = STEPS,
        folder: str | Path | None = None,
        *,
        apply: bool = True,
        monitor: str | None = None,
    ) -> None:
        _check_settings(method, min_lr, max_lr, steps, monitor)
        self.method, self.min_lr, self.max_lr, self.steps = method, min_lr, max_lr, steps
        self.monitor = monitor
        super().__init__(folder, apply)

    def search(self, trainer: pl.Trainer, module: pl.LightningModule) -> LearningRateChoice:
        if self.apply and trainer.optimizers:
            check_schedulers(trainer.optimizers[0], _schedulers(trainer))
        set_accumulation(trainer, self.callbacks_of(trainer))
        if self.method == "race":
            judge = Judge(self.monitor, self.callbacks_of(trainer))
            return _race(trainer, module, ladder(self.min_lr, self.max_lr), self.steps, judge)
        return _range_test(trainer, module, self.method, self.min_lr, self.max_lr)

    def use(self, trainer: pl.Trainer, module: pl.LightningModule, choice: LearningRateChoice) -> None:
        change = replace_rates(trainer.optimizers[0], _schedulers(trainer), choice.lr)
        kept = [(name, getattr(module, name, _NO_RATE)) for name in _KEPT_AS]
        for name in _KEPT_AS:
            if _is_rate(value := module.hparams.get(name, _NO_RATE)):
                module.hparams[name] = _kept_rate(value, change, choice.lr)
        for name, value in kept:
            if _is_rate(value):
                # A property without a setter reads the rate from where it is.
                with suppress(AttributeError):
                    setattr(module, name, _kept_rate(value, change, choice.lr))


def _check_settings(method: Any, min_lr: Any, max_lr: Any, steps: Any, monitor: Any) -> None:
    if method not in METHODS:
        raise unknown("method", method, METHODS, "lr_finder.method")
    for name, value in (("min_lr", min_lr), ("max_lr", max_lr)):
        if not is_number(value):
            raise UserError(f"lr_finder.{name}={value!r}: must be a number.")
    if not 0 < min_lr < max_lr < math.inf:
        raise UserError(
            f"lr_finder.min_lr={min_lr:g}, lr_finder.max_lr={max_lr:g}: must be 0 < min_lr < max_lr."
        )
    if not isinstance(steps, Integral) or isinstance(steps, bool) or steps < 1:
        raise UserError(f"lr_finder.steps={steps!r}: must be a whole number, at least 1.")
    if steps != STEPS and method != "race":
        raise UserError(
            f"lr_finder.steps={steps}: has no effect, since method={method} has {_RANGE_STEPS} steps; take"
            " method='race', or leave it out."
        )
    if monitor is not None and not isinstance(monitor, str):
        raise UserError(
            f"find_lr: monitor={monitor!r} must be the name of a value that validation logs, or None."
        )
    if monitor is not None and method != "race":
        raise UserError(
            f"find_lr: monitor={monitor!r} has no effect, since method={method} looks at the training loss; take"
            " method='race', or leave it out."
        )


def _schedulers(trainer: pl.Trainer) -> list[Any]:
    return [config.scheduler for config in trainer.lr_scheduler_configs]


def _is_rate(value: Any) -> bool:
    """Whether an attribute of that name holds the rate, or a place for it; a layer or a method is another thing."""
    return value is None or (isinstance(value, str) and value == "auto") or is_number(value)


def _kept_rate(value: Any, change: Change, rate: float) -> float:
    """The first group may have been built with a part of what the module keeps."""
    return float(change(value)) if is_number(value) and value > 0 else rate


# What modules, distributions and linear algebra raise at values that are not finite or too large; and a step whose loss
# is left out for that.
_FAILURES = (ArithmeticError, AssertionError, RuntimeError, ValueError, NoLossError)
# So much lower than the lowest rate is one at which nothing diverges.
_STILL = 1e-3
# Of a module that returns no loss for so many steps in a row, whatever the rate, none is to be expected.
_MOST_LEFT_OUT = 100


class _Control:
    """The same steps at a rate at which nothing diverges, taken only if others fail: where this fails as well, no rate
    is to blame but the module or its data.

    Args:
        start: makes the trial.
        step: takes its next step.
    """

    def __init__(self, start: Callable[[], Trial], step: Callable[[Trial], float | None]) -> None:
        self._start, self._step = start, step
        self._trial: Trial | None = None
        # Steps at which it has no loss.
        self._left_out: set[int] = set()
        self.failure = ""

    def loss(self, of: Callable[[Trial], float | None], trial: Trial) -> float:
        """A loss of a trial; NaN also where it fails and the control does not. Steps without a loss are left out, if the
        control has none there either.

        Raises:
            Exception: that of the trial, if the control fails as well.
        """
        left_out = 0
        while True:
            steps = trial.steps
            try:
                return _given(of, trial)
            except Exception as error:
                if isinstance(error, NonFiniteLossError) or self._blames_rate(error, of, steps):
                    # The error itself would keep its trial.
                    self.failure = f"{type(error).__name__}: {first_line(error)}"
                    return math.nan
                left_out += 1
                if not isinstance(error, NoLossError) or trial.steps == steps or left_out == _MOST_LEFT_OUT:
                    raise

    def _blames_rate(self, error: Exception, of: Callable[[Trial], float | None], steps: int) -> bool:
        without_loss = isinstance(error, NoLossError)
        if (
            not isinstance(error, _FAILURES)
            or is_out_of_memory(error)
            or (without_loss and steps in self._left_out)
        ):
            return False
        # Other batches may have a loss where these have none.
        if self._trial is None or (without_loss and self._trial.steps > steps):
            self._trial = self._start()
        trial = self._trial
        # Of several processes, one that fails alone leaves the others waiting.
        if trial.trainer.world_size > 1:
            return False
        try:
            while trial.steps < steps:
                self._step(trial)
            _given(of, trial)
        except _FAILURES as failure:
            if isinstance(failure, NoLossError):
                self._left_out.add(steps)
            return False
        return True


def _given(of: Callable[[Trial], float | None], trial: Trial) -> float:
    """A loss that has to be there.

    Raises:
        NoLossError: it is not.
    """
    if (loss := of(trial)) is None:
        raise NoLossError(trial.module)
    return loss


@dataclass
class _Course:
    """What all rates of a race have in common."""

    batches: Batches
    accumulate: int
    epoch: float
    judge: Judge
    unit: int  # updates that count as a step of the race

    def step(self, trial: Trial) -> float | None:
        train = self.batches.train
        chosen = of_update(trial.steps, self.accumulate, self.epoch)
        return trial.step([train[index % len(train)] for index in chosen])

    def score(self, trial: Trial) -> float:
        if self.batches.validation:
            if (loss := trial.validate(self.batches.judged, self.judge)) is not None:
                return loss
            # Known of the untrained net, before any rate trains.
            self.batches = self.batches.kept_apart()
        return trial.training_loss(self.batches.judged)


class _Runner:
    """A trial of one rate in a race."""

    def __init__(self, trial: Trial, course: _Course, control: _Control) -> None:
        self._trial, self._course, self._control = trial, course, control
        self._losses: list[float] = []

    def run_to(self, step: int) -> None:
        unit = self._course.unit
        while self._finite and self._trial.steps < step * unit:
            self._losses.append(
                fmean(self._control.loss(self._course.step, self._trial) for _ in range(unit))
            )

    @property
    def _finite(self) -> bool:
        return not self._losses or not math.isnan(self._losses[-1])

    def losses(self) -> list[float]:
        return self._losses

    def score(self) -> float:
        return self._control.loss(self._course.score, self._trial) if self._finite else math.nan


class _Replayed:
    """A runner that keeps no net between the rungs of a race, for nets of which few fit into memory."""

    def __init__(self, start: Callable[[], _Runner]) -> None:
        self._start = start
        self._runner: _Runner | None = None

    def run_to(self, step: int) -> None:
        self._runner = self._start()
        self._runner.run_to(step)

    def losses(self) -> list[float]:
        return self._leave().losses()

    def score(self) -> float:
        return self._leave().score()

    def _leave(self) -> _Runner:
        assert self._runner is not None
        runner, self._runner = self._runner, None
        return runner


def _race(
    trainer: pl.Trainer, module: pl.LightningModule, rates: list[float], steps: int, judge: Judge
) -> LearningRateChoice:
    if len(rates) < 2:
        raise UserError(
            "lr_finder.min_lr, lr_finder.max_lr: a race needs two rates of 1e-5, 3e-5, 1e-4, ... in between."
        )
    accumulate = trainer.accumulate_grad_batches

    def plan(batch: Any) -> tuple[int, float, int]:
        """Updates that count as a step, such steps in the run, and in the race."""
        instances = int(total(trainer, guessed_count(batch) or _INSTANCES))
        unit = math.ceil(_INSTANCES / (accumulate * max(1, instances)))
        updates = updates_left(trainer)
        run = max(1, updates // unit) if updates < math.inf else math.inf
        return unit, run, int(run) if run < 2 * steps else steps

    def wanted(batch: Any) -> int:
        unit, _, length = plan(batch)
        return length * unit * accumulate

    batches = gather(trainer, wanted)
    unit, run, steps = plan(batches.of_training[0])
    if judge.monitor is not None and not batches.validation:
        raise UserError(f"find_lr: monitor={judge.monitor!r} has no effect, since there is no validation.")
    weights = len(rates) * sum(p.nbytes for p in module.parameters())

    course = _Course(batches, accumulate, trainer.num_training_batches, judge, unit)
    control = _Control(lambda: Trial(trainer, module, _STILL * rates[0]), course.step)

    def enter(rate: float) -> _Runner | _Replayed:
        def start() -> _Runner:
            return _Runner(Trial(trainer, module, rate), course, control)

        return start() if weights <= _KEPT_BYTES else _Replayed(start)

    unseen = 1 - steps / run
    with progress(WHAT, planned(len(rates), steps, unseen)) as passed:
        laps = race(rates, enter, steps, unseen, passed)
    laps = [replace(lap, steps=lap.steps * unit) for lap in laps]
    best = winner(laps, unseen)
    if best is None:
        raise UserError(
            f"optimizer.lr=auto: the loss is not finite at any rate from {rates[0]:g} to {rates[-1]:g}. Look at"
            f" the data and the initialisation. {control.failure}".rstrip()
        )
    judged_by = judge.told if course.batches.validation else "loss on training batches kept apart"
    return LearningRateChoice(
        lr=best.rate,
        method="race",
        explanation=_explained(best, laps, judged_by, rates, unseen),
        judged_by=judged_by,
        laps=tuple(laps),
    )


def _explained(best: Lap, laps: list[Lap], judged_by: str, rates: list[float], unseen: float) -> str:
    beside = ""
    first = leader(laps)
    last = [lap for lap in laps if lap.steps == best.steps and lap.judged == best.judged]
    if first is not None and first != best:
        beside = (
            f", near the lowest ({first.loss:.4g} at {first.rate:g}) and nearer to {aim(laps, unseen):.2g}, to which"
            " the fast rates point"
        )
    elif others := sorted((lap.loss, lap.rate) for lap in last if lap.loss > best.loss)[:2]:
        beside = f", lower than at {' and '.join(f'{rate:g}' for rate in sorted(rate for _, rate in others))}"
    return (
        f"learning rate {best.rate:g}: {judged_by if best.judged else 'training loss'} {best.loss:.4g} after"
        f" {best.steps} steps{beside}; {len({lap.rate for lap in laps})} rates tried.{_warning(best, laps, last, rates)}"
    )


def _warning(best: Lap, laps: list[Lap], last: list[Lap], rates: list[float]) -> str:
    """Why the choice may not be the best there is: an end of the range is among the best rates, or no rate trains."""
    untrained = laps[0].loss
    among_the_best = {best.rate}
    if (fastest := leader([lap for lap in laps if not lap.judged])) is not None:
        as_fast = {lap.rate for lap in laps if (lap.steps, lap.loss) == (fastest.steps, fastest.loss)}
        diverged_later = {lap.rate for lap in last if best.loss < untrained and not lap.loss < untrained}
        # Where all are as fast, as before an optimizer's own warm-up is over, they say nothing.
        if as_fast == {fastest.rate}:
            among_the_best |= as_fast - diverged_later
    warning = ""
    for end, name, setting in ((rates[0], "lowest", "min_lr"), (rates[-1], "highest", "max_lr")):
        if end in among_the_best:
            warning = f" The {name} rate of all is among the best: widen lr_finder.{setting}."
    if best.judged and best.loss >= untrained:
        warning += f" None is better than the untrained net ({untrained:.4g})."
    return warning


def _range_test(
    trainer: pl.Trainer, module: pl.LightningModule, method: str, low: float, high: float
) -> LearningRateChoice:
    rates = range_test.spaced(low, high, _RANGE_STEPS)
    accumulate = trainer.accumulate_grad_batches
    train = gather(trainer, _RANGE_STEPS * accumulate).of_training
    # A small set gives few different batches, and one curve of them is noisy.
    different = min(len(train), trainer.num_training_batches)
    count = min(_RANGE_RUNS, max(1, round(_RANGE_STEPS * accumulate / different)))
    before, runs = _losses_before(trainer, module, train), []
    with progress(WHAT, count * _RANGE_STEPS) as passed:
        for run in range(count):
            start = partial(Trial, trainer, module, seed=run)
            first = run * len(train) // count

            def update(step: int, first: int = first) -> list[int]:
                chosen = of_update(first + step, accumulate, trainer.num_training_batches)
                return [index % len(train) for index in chosen]

            runs.append(_range_run(start, rates, train, update, before, passed))
    curve = range_test.mean_curve(rates, runs)
    if len(curve.rates) < 2:
        raise UserError(f"optimizer.lr=auto: the loss is not finite from the first rate, {low:g}, on.")
    suggestions = {name: suggest(curve) for name, suggest in SUGGESTIONS.items()}
    told = ", ".join(f"{name} {rate:.2g}" for name, rate in suggestions.items())
    falls = min(curve.smooth) < curve.smooth[0]
    warning = "" if falls else f" None is better than the untrained net ({curve.smooth[0]:.4g})."
    return LearningRateChoice(
        lr=suggestions[method],
        method=method,
        explanation=f"learning rate {suggestions[method]:.3g}: {method} of a range test of {count} x"
        f" {len(curve.rates)} steps ({told}).{warning}",
        judged_by="training loss",
        curve=curve,
        suggestions=suggestions,
    )


def _range_run(
    start: Callable[..., Trial],
    rates: list[float],
    train: list[Any],
    update: Callable[[int], list[int]],
    before: list[float],
    passed: Callable[[int], None],
) -> list[float]:
    """The losses at rising rates, up to one that diverged.

    Args:
        start: makes a trial of a rate.
        rates: one for each step.
        train: the batches.
        update: which of them a step takes.
        before: the untrained net's loss on each batch.
        passed: told that a step has been taken.
    """

    def take(trial: Trial) -> float | None:
        return trial.step([train[index] for index in update(trial.steps)])

    trial, control, losses = start(), _Control(lambda: start(_STILL * rates[0]), take), list[float]()
    for step, rate in enumerate(rates):
        trial.set_rate(rate)
        easier = fmean(before[index] for index in update(step)) - fmean(before)
        losses.append(control.loss(take, trial) - easier)
        passed(1)
        if range_test.diverged(losses):
            # So high a loss says nothing of lower rates, over which it would be smoothed.
            return losses[:-1]
    return losses


def _losses_before(trainer: pl.Trainer, module: pl.LightningModule, train: list[Any]) -> list[float]:
    """The loss of the untrained net on each batch: that one batch is easier than another is then no noise."""
    trial = Trial(trainer, module)
    try:
        losses = [trial.training_loss([batch]) for batch in train]
    except NoLossError:
        losses = [math.nan]
    return losses if all(map(math.isfinite, losses)) else [0.0] * len(train)
