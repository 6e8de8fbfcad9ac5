"""A batch size for a module, its data and this machine, and why this one."""

from __future__ import annotations

import math
import operator
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback

from dlblocks.data.module import TableDataModule
from dlblocks.errors import UserError, first_line
from dlblocks.tuning import memory
from dlblocks.tuning.advice import class_deviation, noise_scale
from dlblocks.tuning.agreement import least, mean
from dlblocks.tuning.batch_choice import UPDATES, BatchSizeChoice, Measured
from dlblocks.tuning.batches import first_batches, no_batch, reload
from dlblocks.tuning.finder import Finder, find, progress
from dlblocks.tuning.learning_rate import LearningRateFinder
from dlblocks.tuning.sizes import Resizer, batch_sizes, contents, effective_above, guessed_count, instances
from dlblocks.tuning.trial import Trial

# The smallest size with this share of the best samples per second is at the knee of the curve.
KNEE = 0.8
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
    of the best samples per second is chosen, if it leaves 10 updates an epoch; else the largest that does, or the
    smallest of all if none does. A size fits if it takes no more than 80 % of the free memory; none is tried that
    would by the growth so far not fit, as an operating system ends a process that takes too much without an error to
    catch. Sizes beyond two that are less than 5 % faster are left out. The time is that of steps, without loading.

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
        effective: instances for each update; only sizes are tried, of `sizes` if given, of which a whole number makes
            it up, over accumulation and processes.
        class_counts: instances of each class in the training set, for the advice.
        allowed: which sizes may be tried.
        callbacks: copies of them take part in trials: they are told of the start of training, and of the start and end
            of each batch.

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
        self.attribute = attribute
        self.sizes = None if sizes is None else [_whole("sizes", size) for size in sizes]
        if self.sizes == []:
            raise UserError("find_batch_size: sizes=[] must hold a size at least; None tries powers of two.")
        self.max_size = None if max_size is None else _whole("max_size", max_size)
        self.effective = None if effective is None else _whole("effective", effective)
        self.class_counts = [_whole("class_counts", count, least=0) for count in class_counts or []]
        self.allowed, self.callbacks = allowed, callbacks
        super().__init__(folder, apply)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        earlier = callbacks[: callbacks.index(self)]
        if self.apply and any(isinstance(one, LearningRateFinder) for one in earlier):
            raise UserError(
                "callbacks: the BatchSizeFinder has to come before the LearningRateFinder, since a rate is found at a"
                " batch size."
            )

    def search(self, trainer: pl.Trainer, module: pl.LightningModule) -> BatchSizeChoice:
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
        measured, room, ended = self._measure(trainer, module, resizer)
        fitting = [one for one in measured if one.fits]
        if not fitting:
            tried = ", ".join(str(one.size) for one in measured)
            raise UserError(f"data.batch_size=auto: no size fits into the memory (tried: {tried}).")
        best = max(fitting, key=lambda one: one.samples_per_second)
        knee = next(one for one in fitting if one.samples_per_second >= KNEE * best.samples_per_second)
        # A small set, or a limit of the Trainer, may leave fewer at any size.
        updates = min(UPDATES, fitting[0].updates_per_epoch or UPDATES)
        enough = [one for one in fitting if one.updates_per_epoch is None or one.updates_per_epoch >= updates]
        if self.effective is not None or knee in enough:  # with it, the updates do not depend on the size
            chosen, why = (
                knee,
                f"{knee.samples_per_second / best.samples_per_second:.0%} of the speed of {best.size}",
            )
        else:
            chosen = enough[-1]
            why = (
                f"the largest that leaves {updates} updates an epoch; the knee of the speed is at {knee.size}"
            )
        accumulate = self._accumulation(trainer, chosen.size)
        scale = self._noise_scale(trainer, module, resizer, chosen.size)
        notes = [f"{one.size} does not fit into the memory" for one in measured if not one.fits]
        notes += [ended] if ended is not None else []
        if left_out := _told_of_batches(self.callbacks_of(trainer), self.callbacks):
            notes.append(f"callbacks that took no part: {', '.join(left_out)}")
        return BatchSizeChoice(
            size=chosen.size,
            accumulate=accumulate,
            processes=_copies(trainer),
            explanation="; ".join([*_explained(chosen, why, scale, accumulate), *notes]) + ".",
            measured=tuple(measured),
            knee=knee.size,
            memory_limit=None if room.free is None else int(MARGIN * room.free),
            noise_scale=scale,
        )

    def _measure(
        self, trainer: pl.Trainer, module: pl.LightningModule, resizer: Resizer
    ) -> tuple[list[Measured], _Room, str | None]:
        """What the sizes do, the memory they had, and why the first one after them was not tried or is not legal, if
        that ended the search.

        Raises:
            UserError: there is no legal size.
        """
        room = _room(trainer)
        measured: list[Measured] = []
        ended: str | None = None
        failure: Exception | None = None

        def tried(size: int) -> Measured | None:
            nonlocal ended, failure, room
            ended = None
            try:
                one = self._run(trainer, module, resizer, size, room)
                if not measured and one is not None and one.fits:
                    # The first steps load libraries, whose memory is none of a batch's.
                    room = _room(trainer)
                    one = self._run(trainer, module, resizer, size, room)
            except _IllegalSizeError as error:
                ended = f"{size} is not legal: {error}"
                return None
            except _STEP_FAILURES as error:
                # A step may want some instances. Of several processes, one that fails alone leaves the others waiting.
                if isinstance(error, UserError) or trainer.world_size > 1 or measured or size > _MOST_WANTED:
                    raise
                failure = failure or error
                ended = f"{size} is not legal: {type(error).__name__}: {first_line(error)}"
                return None
            return one

        sizes = [size for size in self._candidates(trainer) if self.allowed(size)]
        with progress("finding the batch size", len(sizes)) as passed:
            for size in sizes:
                if (
                    measured
                    and room.free is not None
                    and (needed := _forecast(measured, size)) > MARGIN * room.free
                ):
                    ended = (
                        f"{size} was not tried: by the growth so far it takes some {needed / 2**20:,.0f} MiB, and"
                        f" {MARGIN:.0%} of the free memory is {MARGIN * room.free / 2**20:,.0f} MiB"
                    )
                    break
                if _is_past(measured):
                    # Another process may have taken the processor from them for a while.
                    measured[-2:] = [
                        self._faster(trainer, module, resizer, one, room) for one in measured[-2:]
                    ]
                    if _is_past(measured):
                        break
                one = tried(size)
                passed(1)
                if one is not None:
                    measured.append(one)
                if (one is None and (measured or ended is None)) or (one is not None and not one.fits):
                    break
        lowest = _least_size(trainer)
        given = self.sizes is not None or self.effective is not None
        if not given and lowest not in sizes and self.allowed(lowest) and not any(m.fits for m in measured):
            single = tried(lowest)
            measured = [single, *measured] if single is not None else measured
        if not measured and failure is not None:
            raise failure
        if not measured and ended:
            raise UserError(f"data.batch_size=auto: there is no size to try: {ended}.")
        if not measured:
            raise NoSizeError(
                "data.batch_size=auto: there is no size to try, given the instances of the training set and the"
                " limits set."
            )
        return measured, room, ended

    def _faster(
        self, trainer: pl.Trainer, module: pl.LightningModule, resizer: Resizer, one: Measured, room: _Room
    ) -> Measured:
        """A size measured again, where it is faster then."""
        again = self._run(trainer, module, resizer, one.size, room)
        return again if again is not None and again.samples_per_second > one.samples_per_second else one

    def _candidates(self, trainer: pl.Trainer) -> list[int]:
        source, lowest = trainer.fit_loop._data_source.instance, _least_size(trainer)
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
            wanted = self.sizes if self.sizes is not None else range(lowest, share + 1)
            return [size for size in sorted({*wanted}) if lowest <= size <= most and share % size == 0]
        if self.sizes is not None:
            return [size for size in sorted({*self.sizes}) if size <= most]
        return [2**power for power in range(1, 31) if lowest <= 2**power <= most] or [lowest]

    def _run(
        self, trainer: pl.Trainer, module: pl.LightningModule, resizer: Resizer, size: int, room: _Room
    ) -> Measured | None:
        """What a size does; None if the training set has fewer instances."""
        device = trainer.strategy.root_device
        memory.release(device)
        memory.start_peak(device)
        fits, whole, seconds, updates, fixed = True, True, math.inf, math.inf, 0
        try:
            trials = self._batches(trainer, resizer, size)
            whole = trials is not None
            if trials is not None:
                updates = trials.epoch / self._accumulation(trainer, size)
                trial = Trial(trainer, module, alone=True, callbacks=self.callbacks)
                if trial.has_rate:
                    trial.set_rate(_RATE)
                with _normalising(trial.module) as counts:
                    seconds = _seconds_a_step(trial, trials.train, trials.judged)
                if trials.leaves_one and size in counts:
                    raise _IllegalSizeError(
                        "it leaves a last batch of one instance, which batch normalisation can't normalise"
                    )
                fixed = trial.bytes_of_any_size()
        except Exception as error:
            if not memory.is_out_of_memory(error):
                raise
            fits = False
        taken = max(0, memory.peak(device) - room.used)
        memory.release(device, broken=not fits)
        fits = fits and (room.free is None or taken <= MARGIN * room.free)
        # Every process has to come to the same size: it fits where it fits all, and is as fast as the slowest.
        fits, whole = bool(least(trainer, float(fits))), bool(least(trainer, float(whole)))
        if not whole:
            return None
        together = size * _copies(trainer)
        updates = least(trainer, float(updates))
        return Measured(
            size=size,
            samples_per_second=least(trainer, together / seconds if fits else 0.0),
            memory=int(-least(trainer, -float(taken))),
            fixed=fixed,
            fits=fits,
            updates_per_epoch=math.ceil(updates) if math.isfinite(updates) else None,
            class_deviation=class_deviation(self.class_counts, size) if self.class_counts else None,
        )

    def _batches(self, trainer: pl.Trainer, resizer: Resizer, size: int) -> _Batches | None:
        """Batches of a size; None if the training set has fewer instances.

        Raises:
            UserError: setting the size has no effect, or an update would take more than an epoch.
        """
        loaders = _loaded(trainer, resizer, size)
        known = instances(loaders)
        if known is not None and not _counts_instances(loaders, known, size):
            known = None  # of sequences, say, whose numbers a size is the sum of
        if not trainer.num_training_batches or (known is not None and known < size):
            return None
        self._check_effective(trainer, size, known)
        # Of an epoch that may end anywhere, the last batch may be smaller, and is left out.
        train, judged, whole = first_batches(trainer, _GRADIENTS + (known is None))
        if not train:
            raise no_batch()
        if size not in batch_sizes(loaders) and guessed_count(train[0]) != size:
            self._check_effect(trainer, resizer, size, train[0])
        epoch = float(trainer.num_training_batches)
        if known is not None:
            leaves_one = known % size == 1 and len(loaders[0]) * size > known
            return _Batches(train[: known // size], judged, epoch, leaves_one)
        epoch = min(epoch, len(train)) if whole else epoch
        if len(train) > 1:
            return _Batches(train[:-1], judged, epoch)
        return _Batches(train, judged, epoch) if guessed_count(train[0]) == size else None

    def _accumulation(self, trainer: pl.Trainer, size: int) -> int:
        """Batches for each update."""
        if self.effective is None:
            return trainer.accumulate_grad_batches
        return self.effective // (size * _copies(trainer))

    def _check_effective(self, trainer: pl.Trainer, size: int, known: int | None) -> None:
        """The Trainer updates at the end of an epoch, with whatever it has then."""
        if self.effective is None:
            return
        copies = _copies(trainer)
        if known is not None and self.effective > known * copies:
            raise effective_above(self.effective, known * copies)
        needed = self._accumulation(trainer, size)
        if trainer.num_training_batches < needed:
            raise _IllegalSizeError(
                f"an epoch has {trainer.num_training_batches} batches, and an update of {self.effective} instances"
                f" takes {needed}"
            )

    def _check_effect(self, trainer: pl.Trainer, resizer: Resizer, size: int, batch: Any) -> None:
        """Where the loader does not say the size, and the batch may have any shape: another size has other batches."""
        found = contents(batch)
        # Batches of a sum of lengths may be the same for two small ones.
        for other in (max(1, size // 64), 64 * size):
            loaders = _loaded(trainer, resizer, other)
            there = first_batches(trainer, 1).train
            if found is None or not there or contents(there[0]) != found:
                _loaded(trainer, resizer, size)
                return
        said = batch_sizes(loaders)
        raise UserError(
            f"{self.attribute}={size}: has no effect, since the batches of the training loader"
            f" {f'have {min(said)} instances' if said else 'stay the same'}. Name the attribute that the loader"
            " reads: find_batch_size(..., attribute=...)."
        )

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
        small, large = mean(trainer, small), mean(trainer, large)
        if not math.isfinite(small + large):
            return None
        own = size * _copies(trainer) // trainer.world_size
        return noise_scale(small, large, own, int(least(trainer, float(batches))))


# What modules raise at a batch that is too small for them; beyond a size, something else is wrong.
_MOST_WANTED = 64
_STEP_FAILURES = (ArithmeticError, AssertionError, LookupError, RuntimeError, ValueError)


class NoSizeError(UserError):
    """The limits and what is `allowed` leave no size to try."""


class _IllegalSizeError(Exception):
    """The Trainer's limits leave no run with this size; says why."""


class _Batches(NamedTuple):
    """Training batches of one size, one to validate on (or none), how many batches an epoch has (infinitely many where
    that is not known), and whether the last of them has a single instance."""

    train: list[Any]
    judged: list[Any]
    epoch: float
    leaves_one: bool = False


class _Room(NamedTuple):
    """Bytes in use, and bytes that are free for each process, before a size takes any; None where that is not known."""

    used: int
    free: int | None


def _room(trainer: pl.Trainer) -> _Room:
    device = trainer.strategy.root_device
    memory.release(device, broken=True)
    free = memory.available(device)
    # All have to come to the same decisions.
    shared = least(trainer, math.inf if free is None else float(free))
    return _Room(memory.in_use(device), int(shared) if math.isfinite(shared) else None)


def _whole(name: str, value: Any, least: int = 1) -> int:
    """A setting that is a whole number, NumPy's too."""
    try:
        number = operator.index(value)
    except TypeError:
        raise UserError(f"find_batch_size: {name}={value!r} must be a whole number.") from None
    if number < least:
        raise UserError(f"find_batch_size: {name}={number} must be at least {least}.")
    return number


def _copies(trainer: pl.Trainer) -> int:
    """Batches for each step over all processes: the size that `TableDataModule` has is that of all together."""
    together = isinstance(trainer.fit_loop._data_source.instance, TableDataModule)
    return 1 if together else trainer.world_size


def _told_of_batches(callbacks: Sequence[Callback], named: Sequence[Callback]) -> list[str]:
    """The classes of callbacks that are told of training batches, but for those named, and those of Lightning and of
    this library, which keep nothing of a batch."""
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


def _counts_instances(loaders: Sequence[Any], known: int, size: int) -> bool:
    """Whether a size is a number of instances, by the batches of an epoch."""
    return any(abs(known / size - len(loader)) < 1 for loader in loaders if isinstance(loader, Sized))


@contextmanager
def _normalising(module: torch.nn.Module) -> Iterator[set[int]]:
    """How many values of a feature batch normalisations get in training."""
    counts: set[int] = set()

    def note(_: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        counts.add(inputs[0][:, 0].numel())

    layers = [part for part in module.modules() if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


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
    if judged:
        trial.validate(judged)
    return statistics.median(seconds)


def _forecast(measured: Sequence[Measured], size: int) -> float:
    """The bytes that a size takes if all but what does not depend on the size grows in proportion, or as between the
    last two sizes if that is more."""
    *_, last = measured
    growth = (last.memory - last.fixed) / last.size
    if len(measured) > 1:
        before = measured[-2]
        growth = max(growth, (last.memory - before.memory) / (last.size - before.size))
    return last.memory + max(0.0, growth) * (size - last.size)


def _is_past(measured: Sequence[Measured]) -> bool:
    """Whether the last two sizes were less than 5 % faster than one before them."""
    rates = [one.samples_per_second for one in measured]
    return len(rates) > 3 and max(rates[-2:]) < 1.05 * max(rates[:-2])


def _explained(chosen: Measured, why: str, scale: float | None, accumulate: int) -> list[str]:
    parts = [f"batch size {chosen.size} ({chosen.samples_per_second:,.0f} instances a second): {why}"]
    if accumulate > 1:
        parts.append(f"{accumulate} batches for each update")
    if chosen.class_deviation is not None:
        parts.append(f"class shares in a batch are {chosen.class_deviation:.0%} off on average")
    if scale is not None:
        parts.append(f"gradient noise scale {scale:.2g}")
    return parts
