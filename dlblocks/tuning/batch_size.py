"""A batch size for a module, its data and this machine, and why this one."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from torch import distributed

from dlblocks.data.module import TableDataModule
from dlblocks.errors import UserError
from dlblocks.tuning import memory
from dlblocks.tuning.advice import class_deviation, noise_scale
from dlblocks.tuning.batch_choice import BatchSizeChoice, Measured
from dlblocks.tuning.batches import first_batches, reload
from dlblocks.tuning.finder import Finder, find, progress
from dlblocks.tuning.sizes import Resizer, batch_sizes, contents, effective_above, guessed_count, instances
from dlblocks.tuning.trial import Trial

# The smallest size with this share of the best samples per second is at the knee of the curve.
KNEE = 0.8
# Updates that an epoch should have at least: a run of 20 epochs then has 200.
UPDATES = 10
# Share of the memory that was free at first that a size may take.
MARGIN = 0.8
# A size is timed for at least so many steps and seconds.
_STEPS, _SECONDS, _MOST_STEPS = 5, 0.03, 60
# Batches whose gradients tell the noise scale.
_GRADIENTS = 8
# The hooks of a callback that is told of training batches.
_OF_BATCHES = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
)
# Steps are timed at this rate: so low that weights hardly move, and high enough for LBFGS, which ends a step that moves
# them by less than 1e-9, to look as often at a batch as in training.
_RATE = 1e-4


def find_batch_size(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    datamodule: pl.LightningDataModule | None = None,
    *,
    train_dataloaders: Any = None,
    val_dataloaders: Any = None,
    attribute: str = "batch_size",
    sizes: Sequence[int] | None = None,
    max_size: int | None = None,
    effective: int | None = None,
    class_counts: Sequence[int] | None = None,
    allowed: Callable[[int], bool] = lambda _: True,
    callbacks: Sequence[Callback] = (),
) -> BatchSizeChoice:
    """Find a batch size for any LightningModule with one optimizer, before `trainer.fit`.

    Each size takes real training steps and a validation step on a copy of the module. The smallest size with 80 %
    of the best samples per second is chosen, if it leaves 10 updates an epoch; else the largest that does. A size
    fits if it takes no more than 80 % of the free memory; none is tried that would by the growth so far not
    fit, as an operating system ends a process that takes too much without an error to catch. Sizes beyond two
    that are no faster are left out. The time is that of steps, without loading.

    The Trainer's callbacks take no part, since they may write files or end the run. Name in `callbacks` those that take
    memory or change batches or the module; the explanation names others that are told of batches.

    Afterwards module, data module, Trainer, loaders and random states are as they were, also after an exception or
    Ctrl-C.

    Args:
        trainer: the one that will fit.
        module: to be trained; only copies of it are.
        datamodule: has the `attribute`; or give `train_dataloaders` (a DataLoader), and `val_dataloaders`.
        attribute: of the data module, of its hparams, or of a module that has its loader itself.
        sizes: to try, ascending; the powers of two from 2 if None (1, if 2 does not fit).
        max_size: the largest size to try.
        effective: instances for each update; only sizes are tried of which a whole number makes it up, over
            accumulation and processes.
        class_counts: instances of each class in the training set, for the advice.
        allowed: which sizes may be tried.
        callbacks: copies of them take part in trials: they are told of the start of training and of each batch.

    Raises:
        UserError: the size can't be set, or setting it has no effect; no size fits; an `effective` size that the
            processes can't share.
    """
    finder = BatchSizeFinder(
        attribute,
        sizes,
        max_size,
        effective,
        class_counts,
        allowed=allowed,
        callbacks=callbacks,
        apply=False,
    )
    finder.left_out = _told_of_batches(trainer, callbacks)
    found: BatchSizeChoice = find(finder, trainer, module, datamodule, train_dataloaders, val_dataloaders)
    return found


class BatchSizeFinder(Finder):
    """Finds a batch size when `fit` starts, and trains with it; with an `effective` one, it sets the Trainer's
    accumulation too. Schedulers are built anew for the new number of steps.

    Args:
        attribute, sizes, max_size, effective, class_counts, allowed, callbacks: as of
            `find_batch_size`.
        folder: where `batch_size_finder.png` and `.csv` go; None for nowhere.
        apply: train with the size. If not, `fit` ends without a step.
    """

    def __init__(
        self,
        attribute: str = "batch_size",
        sizes: Sequence[int] | None = None,
        max_size: int | None = None,
        effective: int | None = None,
        class_counts: Sequence[int] | None = None,
        folder: str | Path | None = None,
        *,
        allowed: Callable[[int], bool] = lambda _: True,
        callbacks: Sequence[Callback] = (),
        apply: bool = True,
    ) -> None:
        for name, value in (("max_size", max_size), ("effective", effective), ("sizes", min(sizes or [1]))):
            if value is not None and value < 1:
                raise UserError(f"find_batch_size: {name}={value} must be at least 1.")
        if sizes is not None and not sizes:
            raise UserError("find_batch_size: sizes=[] must hold a size at least; None tries powers of two.")
        self.attribute = attribute
        self.sizes, self.max_size, self.effective = sizes, max_size, effective
        self.class_counts = class_counts
        self.allowed, self.callbacks = allowed, callbacks
        self.left_out: list[str] = []
        super().__init__(folder, apply)

    def search(self, trainer: pl.Trainer, module: pl.LightningModule) -> BatchSizeChoice:
        self.left_out = self.left_out or _told_of_batches(trainer, self.callbacks)
        resizer = Resizer(trainer, self.attribute)
        with resizer.kept():
            return self._choose(trainer, module, resizer)

    def use(self, trainer: pl.Trainer, module: pl.LightningModule, choice: BatchSizeChoice) -> None:  # noqa: ARG002
        Resizer(trainer, self.attribute).set(choice.size)
        trainer.fit_loop._combined_loader = None
        if self.effective is not None:
            trainer.accumulate_grad_batches = choice.accumulate
        trainer.strategy.setup_optimizers(trainer)

    def _choose(self, trainer: pl.Trainer, module: pl.LightningModule, resizer: Resizer) -> BatchSizeChoice:
        measured, ended = self._measure(trainer, module, resizer)
        fitting = [one for one in measured if one.fits]
        if not fitting:
            tried = ", ".join(str(one.size) for one in measured)
            raise UserError(f"data.batch_size=auto: no size fits into the memory (tried: {tried}).")
        best = max(fitting, key=lambda one: one.samples_per_second)
        knee = next(one for one in fitting if one.samples_per_second >= KNEE * best.samples_per_second)
        enough = [
            one for one in fitting if one.updates_per_epoch is None or one.updates_per_epoch >= UPDATES
        ] or fitting[:1]
        # With accumulation, the updates do not depend on the size.
        chosen = knee if self.effective is not None or knee in enough else enough[-1]
        accumulate = trainer.accumulate_grad_batches
        if self.effective is not None:
            accumulate = self.effective // (chosen.size * _copies(trainer))
        scale = self._noise_scale(trainer, module, resizer, chosen.size)
        explained = _explanation(chosen, best, knee, scale, accumulate)
        notes = [ended] if ended is not None else []
        if self.left_out:
            notes.append(f"callbacks that took no part: {', '.join(self.left_out)}")
        return BatchSizeChoice(
            size=chosen.size,
            accumulate=accumulate,
            explanation="; ".join([explained, *notes]) + ".",
            measured=tuple(measured),
            noise_scale=scale,
        )

    def _measure(
        self, trainer: pl.Trainer, module: pl.LightningModule, resizer: Resizer
    ) -> tuple[list[Measured], str | None]:
        """What the sizes do, and why the first one after them is not legal, if that ended the search.

        Raises:
            UserError: there is no legal size.
        """
        device = trainer.strategy.root_device
        # What the process holds now counts as its own; the C library keeps memory that was given back.
        room = _Room(memory.in_use(device), memory.available(device))
        measured: list[Measured] = []
        illegal: str | None = None

        def tried(size: int) -> Measured | None:
            nonlocal illegal
            try:
                one = self._run(trainer, module, resizer, size, room)
            except _IllegalSizeError as error:
                illegal = f"{size} is not legal: {error}"
                return None
            illegal = None
            return one

        sizes = [size for size in self._candidates(trainer) if self.allowed(size)]
        with progress("finding the batch size", len(sizes)) as passed:
            for size in sizes:
                if not _may_fit(measured, size, room.free) or _is_past(measured):
                    break
                one = tried(size)
                passed(1)
                if one is not None:
                    measured.append(one)
                if (one is None and (measured or illegal is None)) or (one is not None and not one.fits):
                    break
        least = _least_size(trainer)
        given = self.sizes is not None or self.effective is not None
        if not given and least not in sizes and self.allowed(least) and not any(m.fits for m in measured):
            single = tried(least)
            measured = [single, *measured] if single is not None else measured
        if not measured and illegal:
            raise UserError(f"data.batch_size=auto: there is no size to try: {illegal}.")
        if not measured:
            raise NoSizeError(
                "data.batch_size=auto: there is no size to try, given the instances of the training set and the"
                " limits set."
            )
        return measured, illegal

    def _candidates(self, trainer: pl.Trainer) -> list[int]:
        source, least = trainer.fit_loop._data_source.instance, _least_size(trainer)
        most = min(
            self.max_size or math.inf, source.n_train if isinstance(source, TableDataModule) else math.inf
        )
        if self.effective is not None:
            copies = _copies(trainer)
            share, rest = divmod(self.effective, copies)
            if rest:
                raise UserError(
                    f"data.effective_batch_size={self.effective}: {copies} processes can't share it evenly; take a"
                    f" multiple of {copies}."
                )
            return [size for size in range(least, share + 1) if share % size == 0 and size <= most]
        if self.sizes is not None:
            return [size for size in sorted(self.sizes) if size <= most]
        return [2**power for power in range(1, 31) if least <= 2**power <= most] or [least]

    def _run(
        self, trainer: pl.Trainer, module: pl.LightningModule, resizer: Resizer, size: int, room: _Room
    ) -> Measured | None:
        """What a size does; None if the training set has fewer instances."""
        device = trainer.strategy.root_device
        memory.release(device)
        memory.start_peak(device)
        fits, whole, seconds, updates = True, True, math.inf, math.inf
        try:
            trials = self._batches(trainer, resizer, size)
            whole = trials is not None
            if trials is not None:
                updates = trials.updates
                trial = Trial(trainer, module, alone=True, callbacks=self.callbacks)
                if trial.has_rate:
                    trial.set_rate(_RATE)
                seconds = _seconds_a_step(trial, trials.train, trials.judged)
        except Exception as error:
            if not memory.is_out_of_memory(error):
                raise
            fits = False
        taken = max(0, memory.peak(device) - room.used)
        memory.release(device, broken=not fits)
        fits = fits and (room.free is None or taken <= MARGIN * room.free)
        # Every process has to come to the same size: it fits where it fits all, and is as fast as the slowest.
        fits, whole = bool(_least(trainer, float(fits))), bool(_least(trainer, float(whole)))
        if not whole:
            return None
        together = size * _copies(trainer)
        updates = _least(trainer, float(updates))
        return Measured(
            size=size,
            samples_per_second=_least(trainer, together / seconds if fits else 0.0),
            memory=int(-_least(trainer, -float(taken))),
            fits=fits,
            updates_per_epoch=int(updates) if math.isfinite(updates) else None,
            class_deviation=class_deviation(self.class_counts, size) if self.class_counts else None,
        )

    def _batches(self, trainer: pl.Trainer, resizer: Resizer, size: int) -> _Batches | None:
        """Batches of a size; None if the training set has fewer instances.

        Raises:
            UserError: setting the size has no effect, or an update would take more than an epoch.
        """
        loaders = _loaded(trainer, resizer, size)
        known = instances(loaders)
        if not trainer.num_training_batches or (known is not None and known < size):
            return None
        self._check_effective(trainer, size, known)
        train, judged = first_batches(trainer, _GRADIENTS if known is not None else UPDATES)
        if not train:
            raise UserError("the training set gives no batch.")
        if size not in batch_sizes(loaders) and guessed_count(train[0]) != size:
            self._check_effect(trainer, resizer, size, train[0])
        updates = float(trainer.num_training_batches)
        if known is not None:
            return _Batches(train[: known // size], judged, updates)
        # Of an epoch that may end anywhere, the last batch may be smaller.
        if len(train) > 1:
            return _Batches(
                train[:-1], judged, updates if len(train) == UPDATES else min(updates, len(train))
            )
        return _Batches(train, judged, 1.0) if guessed_count(train[0]) == size else None

    def _check_effective(self, trainer: pl.Trainer, size: int, known: int | None) -> None:
        """The Trainer updates at the end of an epoch, with whatever it has then."""
        if self.effective is None:
            return
        copies = _copies(trainer)
        if known is not None and self.effective > known * copies:
            raise effective_above(self.effective, known * copies)
        needed = self.effective // (size * copies)
        if trainer.num_training_batches < needed:
            raise _IllegalSizeError(
                f"an epoch has {trainer.num_training_batches} batches, and an update of {self.effective} instances"
                f" takes {needed}"
            )

    def _check_effect(self, trainer: pl.Trainer, resizer: Resizer, size: int, batch: Any) -> None:
        """Where the loader does not say the size, and the batch may have any shape: another size has other batches."""
        found = contents(batch)
        loaders = _loaded(trainer, resizer, size // 2 if size > 1 else 2)
        other, _ = first_batches(trainer, 1)
        if found is not None and other and contents(other[0]) == found:
            said = batch_sizes(loaders)
            raise UserError(
                f"{self.attribute}={size}: has no effect, since the batches of the training loader"
                f" {f'have {min(said)} instances' if said else 'stay the same'}. Name the attribute that the loader"
                " reads: find_batch_size(..., attribute=...)."
            )
        _loaded(trainer, resizer, size)

    def _noise_scale(
        self, trainer: pl.Trainer, module: pl.LightningModule, resizer: Resizer, size: int
    ) -> float | None:
        """The noise scale at the module's weights, by the batches of all processes; None if it can't be told."""
        small = large = math.nan
        batches = 0
        try:
            trials = self._batches(trainer, resizer, size)
            if trials is not None:
                batches = len(trials.train)
                small, large = Trial(trainer, module, alone=True).gradient_lengths(trials.train)
        except Exception as error:
            if not memory.is_out_of_memory(error):
                raise
        small, large = _mean(trainer, small), _mean(trainer, large)
        if not math.isfinite(small + large):
            return None
        own = size * _copies(trainer) // trainer.world_size
        return noise_scale(small, large, own, int(_least(trainer, float(batches))))


class NoSizeError(UserError):
    """The limits and what is `allowed` leave no size to try."""


class _IllegalSizeError(Exception):
    """The Trainer's limits leave no run with this size; says why."""


class _Batches(NamedTuple):
    """Training batches of one size, one to validate on (or none), and the batches of an epoch: infinitely many where
    that is not known."""

    train: list[Any]
    judged: list[Any]
    updates: float


class _Room(NamedTuple):
    """Bytes in use, and bytes that are free, before the first size; None where that is not known."""

    used: int
    free: int | None


def _copies(trainer: pl.Trainer) -> int:
    """Batches for each step over all processes: the size that `TableDataModule` has is that of all together."""
    together = isinstance(trainer.fit_loop._data_source.instance, TableDataModule)
    return 1 if together else trainer.world_size


def _told_of_batches(trainer: pl.Trainer, named: Sequence[Callback]) -> list[str]:
    """The classes of the Trainer's callbacks that are told of training batches, but for those named, and those of
    Lightning and of this library, which keep nothing of a batch."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [
        type(callback).__name__
        for callback in callbacks
        if callback not in named
        and type(callback).__module__.split(".")[0] not in ("lightning", "pytorch_lightning", "dlblocks")
        and any(getattr(type(callback), hook) is not getattr(Callback, hook) for hook in _OF_BATCHES)
    ]


def _least_size(trainer: pl.Trainer) -> int:
    """With which each process has an instance."""
    return trainer.world_size // _copies(trainer)


def _loaded(trainer: pl.Trainer, resizer: Resizer, size: int) -> list[Any]:
    """The training loaders, with batches of a size.

    Raises:
        _IllegalSizeError: the Trainer's limits do not go with it.
    """
    resizer.set(size)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Total length of")
            reload(trainer)
    except (MisconfigurationException, ValueError) as error:
        if not isinstance(error, MisconfigurationException) and "val_check_interval" not in str(error):
            raise
        raise _IllegalSizeError(str(error).strip().split(". ")[0]) from error
    loaders = trainer.fit_loop._combined_loader
    assert loaders is not None
    return list(loaders.flattened)


def _seconds_a_step(trial: Trial, train: Sequence[Any], judged: Sequence[Any]) -> float:
    """The median time of a training step, after one that is not counted; and one validation step. Steps are taken
    near the weights of the module, which are finite whatever its rate would make of them."""
    trial.step(train[:1])
    trial.stay()
    seconds: list[float] = []
    while len(seconds) < _STEPS or (sum(seconds) < _SECONDS and len(seconds) < _MOST_STEPS):
        start = time.perf_counter()
        trial.step([train[len(seconds) % len(train)]])
        seconds.append(time.perf_counter() - start)
        trial.stay()
    if judged and trial.validate(judged) is None:
        trial.training_loss(judged)
    return statistics.median(seconds)


def _may_fit(measured: Sequence[Measured], size: int, free: int | None) -> bool:
    """Whether a size fits if memory goes on to grow as between the last two: in proportion, at least."""
    if free is None or not measured or measured[-1].memory < 2**26:
        return True
    last = measured[-1]
    return last.memory * size / last.size <= MARGIN * free


def _is_past(measured: Sequence[Measured]) -> bool:
    """Whether the last two sizes were no faster than one before them."""
    rates = [one.samples_per_second for one in measured]
    return len(rates) > 3 and max(rates[-2:]) < 1.05 * max(rates[:-2])


def _least(trainer: pl.Trainer, value: float) -> float:
    """The least of all processes' values."""
    return _reduced(trainer, value, distributed.ReduceOp.MIN)


def _mean(trainer: pl.Trainer, value: float) -> float:
    """The mean of all processes' values."""
    return _reduced(trainer, value, distributed.ReduceOp.SUM) / trainer.world_size


def _reduced(trainer: pl.Trainer, value: float, operation: Any) -> float:
    if trainer.world_size == 1:
        return value
    device = trainer.strategy.root_device
    shared = torch.tensor(value, dtype=torch.float32 if device.type == "mps" else torch.float64).to(device)
    distributed.all_reduce(shared, operation)
    return float(shared)


def _explanation(
    chosen: Measured, best: Measured, knee: Measured, scale: float | None, accumulate: int
) -> str:
    if chosen is knee:
        speed = f"{chosen.samples_per_second / best.samples_per_second:.0%} of the speed of {best.size}"
    else:
        speed = f"the largest that leaves {UPDATES} updates an epoch; the knee of the speed is at {knee.size}"
    parts = [f"batch size {chosen.size}: {speed} ({chosen.samples_per_second:,.0f} instances a second)"]
    if accumulate > 1:
        parts.append(f"{accumulate} batches for each update")
    if chosen.class_deviation is not None:
        parts.append(f"class shares in a batch are {chosen.class_deviation:.0%} off on average")
    if scale is not None:
        parts.append(f"gradient noise scale {scale:.2g}")
    return "; ".join(parts)
