"""A batch size for a module, its data and this machine, and why this one."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from dlblocks.data.module import TableDataModule
from dlblocks.errors import UserError, first_line
from dlblocks.tuning.batch_choice import UPDATES, BatchSizeChoice, Measured
from dlblocks.tuning.finder import Finder, find, progress
from dlblocks.tuning.learning_rate import LearningRateFinder
from dlblocks.tuning.measuring import MARGIN, IllegalSizeError, Measuring, Room, copies, room_of
from dlblocks.tuning.sizes import Resizer

# The smallest size with this share of the best samples per second is at the knee of the curve.
KNEE = 0.8
# The hooks of a callback that is told of training batches.
_OF_BATCHES = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
)


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
            return self._choose(
                Measuring(trainer, module, resizer, self.effective, self.class_counts, self.callbacks)
            )

    def use(self, trainer: pl.Trainer, module: pl.LightningModule, choice: BatchSizeChoice) -> None:  # noqa: ARG002
        Resizer(trainer, self.attribute).set(choice.size)
        trainer.fit_loop._combined_loader = None
        if self.effective is not None:
            trainer.accumulate_grad_batches = choice.accumulate
        trainer.strategy.setup_optimizers(trainer)

    def _choose(self, trials: Measuring) -> BatchSizeChoice:
        trainer = trials.trainer
        measured, room, ended = self._measure(trials)
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
        accumulate = trials.accumulation(chosen.size)
        scale = trials.noise_scale(chosen.size)
        notes = [f"{one.size} does not fit into the memory" for one in measured if not one.fits]
        notes += [ended] if ended is not None else []
        if left_out := _told_of_batches(self.callbacks_of(trainer), self.callbacks):
            notes.append(f"callbacks that took no part: {', '.join(left_out)}")
        return BatchSizeChoice(
            size=chosen.size,
            accumulate=accumulate,
            processes=copies(trainer),
            explanation="; ".join([*_explained(chosen, why, scale, accumulate), *notes]) + ".",
            measured=tuple(measured),
            knee=knee.size,
            memory_limit=None if room.free is None else int(MARGIN * room.free),
            noise_scale=scale,
        )

    def _measure(self, trials: Measuring) -> tuple[list[Measured], Room, str | None]:
        """What the sizes do, the memory they had, and why the first one after them was not tried or is not legal, if
        that ended the search.

        Raises:
            UserError: there is no legal size.
        """
        trainer = trials.trainer
        room = room_of(trainer)
        measured: list[Measured] = []
        ended: str | None = None
        failure: Exception | None = None

        def tried(size: int) -> Measured | None:
            nonlocal ended, failure, room
            ended = None
            try:
                one = trials.run(size, room)
                if not measured and one is not None and one.fits:
                    # The first steps load libraries, whose memory is none of a batch's.
                    room = room_of(trainer)
                    one = trials.run(size, room)
            except IllegalSizeError as error:
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
                    measured[-2:] = [_faster(trials, one, room) for one in measured[-2:]]
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

    def _candidates(self, trainer: pl.Trainer) -> list[int]:
        source, lowest = trainer.fit_loop._data_source.instance, _least_size(trainer)
        most = min(
            self.max_size or math.inf, source.n_train if isinstance(source, TableDataModule) else math.inf
        )
        if self.effective is not None:
            together = copies(trainer)
            share, rest = divmod(self.effective, together)
            if rest:
                raise UserError(
                    f"data.effective_batch_size={self.effective}: {together} processes can't share it evenly; take"
                    f" a multiple of {together}."
                )
            wanted = self.sizes if self.sizes is not None else range(lowest, share + 1)
            return [size for size in sorted({*wanted}) if lowest <= size <= most and share % size == 0]
        if self.sizes is not None:
            return [size for size in sorted({*self.sizes}) if size <= most]
        return [2**power for power in range(1, 31) if lowest <= 2**power <= most] or [lowest]


# What modules raise at a batch that is too small for them; beyond a size, something else is wrong.
_MOST_WANTED = 64
_STEP_FAILURES = (ArithmeticError, AssertionError, LookupError, RuntimeError, ValueError)


class NoSizeError(UserError):
    """The limits and what is `allowed` leave no size to try."""


def _whole(name: str, value: Any, least: int = 1) -> int:
    """A setting that is a whole number, NumPy's too."""
    try:
        number = operator.index(value)
    except TypeError:
        raise UserError(f"find_batch_size: {name}={value!r} must be a whole number.") from None
    if number < least:
        raise UserError(f"find_batch_size: {name}={number} must be at least {least}.")
    return number


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
    return trainer.world_size // copies(trainer)


def _faster(trials: Measuring, one: Measured, room: Room) -> Measured:
    """A size measured again, where it is faster then."""
    again = trials.run(one.size, room)
    return again if again is not None and again.samples_per_second > one.samples_per_second else one


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
