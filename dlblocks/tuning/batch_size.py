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
from torch import distributed

from dlblocks.data.module import TableDataModule
from dlblocks.errors import UserError
from dlblocks.tuning import memory
from dlblocks.tuning.advice import class_deviation, noise_scale
from dlblocks.tuning.batch_choice import BatchSizeChoice, Measured
from dlblocks.tuning.batches import gather, reload
from dlblocks.tuning.finder import Finder, find, progress
from dlblocks.tuning.sizes import Resizer, count
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
) -> BatchSizeChoice:
    """Find a batch size for any LightningModule with one optimizer, before `trainer.fit`.

    Each size takes real training steps and a validation step on a copy of the module. The smallest size with 80 %
    of the best samples per second is chosen, if it leaves 10 updates an epoch; else the largest that does. A size
    fits if it takes no more than 80 % of the free memory; none is tried that would by the growth so far not
    fit, as an operating system ends a process that takes too much without an error to catch. Sizes beyond two
    that are no faster are left out. The time is that of steps, without loading.

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

    Raises:
        UserError: the size can't be set, or setting it has no effect; no size fits; an `effective` size that the
            processes can't share.
    """
    finder = BatchSizeFinder(
        attribute, sizes, max_size, effective, class_counts, allowed=allowed, apply=False
    )
    found: BatchSizeChoice = find(finder, trainer, module, datamodule, train_dataloaders, val_dataloaders)
    return found


class BatchSizeFinder(Finder):
    """Finds a batch size when `fit` starts, and trains with it; with an `effective` one, it sets the Trainer's
    accumulation too. Schedulers are built anew for the new number of steps.

    Args:
        attribute, sizes, max_size, effective, class_counts, allowed: as of `find_batch_size`.
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
        apply: bool = True,
    ) -> None:
        for name, value in (("max_size", max_size), ("effective", effective), ("sizes", min(sizes or [1]))):
            if value is not None and value < 1:
                raise UserError(f"find_batch_size: {name}={value} must be at least 1.")
        self.attribute = attribute
        self.sizes, self.max_size, self.effective = sizes, max_size, effective
        self.class_counts = class_counts
        self.allowed = allowed
        super().__init__(folder, apply)

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
        measured = self._measure(trainer, module, resizer)
        fitting = [one for one in measured if one.fits]
        if not fitting:
            tried = ", ".join(str(one.size) for one in measured)
            raise UserError(f"data.batch_size=auto: no size fits into the memory (tried: {tried}).")
        best = max(fitting, key=lambda one: one.samples_per_second)
        knee = next(one for one in fitting if one.samples_per_second >= KNEE * best.samples_per_second)
        enough = [one for one in fitting if one.updates_per_epoch >= UPDATES] or fitting[:1]
        # With accumulation, the updates do not depend on the size.
        chosen = knee if self.effective is not None or knee in enough else enough[-1]
        accumulate = trainer.accumulate_grad_batches
        if self.effective is not None:
            accumulate = self.effective // (chosen.size * _copies(trainer))
        scale = self._noise_scale(trainer, module, resizer, chosen.size)
        return BatchSizeChoice(
            size=chosen.size,
            accumulate=accumulate,
            explanation=_explanation(chosen, best, knee, scale, accumulate),
            measured=tuple(measured),
            noise_scale=scale,
        )

    def _measure(self, trainer: pl.Trainer, module: pl.LightningModule, resizer: Resizer) -> list[Measured]:
        device = trainer.strategy.root_device
        # What the process holds now counts as its own; the C library keeps memory that was given back.
        room = _Room(memory.in_use(device), memory.available(device))
        measured: list[Measured] = []
        sizes = [size for size in self._candidates(trainer) if self.allowed(size)]
        with progress("finding the batch size", len(sizes)) as passed:
            for size in sizes:
                if not _may_fit(measured, size, room.free) or _is_past(measured):
                    break
                one = self._run(trainer, module, resizer, size, room)
                passed(1)
                if one is None:
                    break
                measured.append(one)
                if not one.fits:
                    break
        if self.sizes is None and measured and not measured[0].fits and measured[0].size > 1:
            single = self._run(trainer, module, resizer, 1, room)
            measured = [single, *measured] if single is not None else measured
        return measured

    def _candidates(self, trainer: pl.Trainer) -> list[int]:
        source, world = trainer.fit_loop._data_source.instance, trainer.world_size
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
            least = world // copies  # each process needs an instance
            return [size for size in range(least, share + 1) if share % size == 0 and size <= most]
        if self.sizes is not None:
            return [size for size in sorted(self.sizes) if size <= most]
        powers = [2**power for power in range(1, 31) if 2**power <= most]
        return [power for power in powers if power >= world] or [1]

    def _run(
        self, trainer: pl.Trainer, module: pl.LightningModule, resizer: Resizer, size: int, room: _Room
    ) -> Measured | None:
        """What a size does; None if the training set has fewer instances."""
        device = trainer.strategy.root_device
        memory.release(device)
        memory.start_peak(device)
        fits, whole, seconds, updates = True, True, math.inf, 0
        try:
            trials = self._batches(trainer, resizer, size)
            whole = trials is not None
            if trials is not None:
                updates = int(trainer.num_training_batches)
                seconds = _seconds_a_step(Trial(trainer, module, alone=True), *trials)
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
        return Measured(
            size=size,
            samples_per_second=_least(trainer, together / seconds if fits else 0.0),
            memory=int(-_least(trainer, -float(taken))),
            fits=fits,
            updates_per_epoch=int(_least(trainer, float(updates))),
            class_deviation=class_deviation(self.class_counts, size) if self.class_counts else None,
        )

    def _batches(
        self, trainer: pl.Trainer, resizer: Resizer, size: int
    ) -> tuple[list[Any], list[Any]] | None:
        """Training batches of a size, and one to validate on; None if the training set has fewer instances.

        Raises:
            UserError: the loader has batches of another size.
        """
        resizer.set(size)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Total length of")
            reload(trainer)
        if not trainer.num_training_batches:
            return None
        batches = gather(trainer, _GRADIENTS)
        got = max(map(count, batches.of_training))
        expected = size * _copies(trainer) / trainer.world_size
        if abs(got - expected) < 1:
            whole = [batch for batch in batches.of_training if count(batch) == got]
            return whole, batches.judged[:1] if batches.validation else []
        if got < expected and trainer.num_training_batches == 1:
            return None
        raise UserError(
            f"{self.attribute}={size}: has no effect, since the batches of the training loader have {got}"
            " instances. Name the attribute that the loader reads: find_batch_size(..., attribute=...)."
        )

    def _noise_scale(
        self, trainer: pl.Trainer, module: pl.LightningModule, resizer: Resizer, size: int
    ) -> float | None:
        trials = self._batches(trainer, resizer, size)
        assert trials is not None
        batches = trials[0]
        small, large = Trial(trainer, module, alone=True).gradient_lengths(batches)
        return noise_scale(small, large, count(batches[0]), len(batches))


class _Room(NamedTuple):
    """Bytes in use, and bytes that are free, before the first size; None where that is not known."""

    used: int
    free: int | None


def _copies(trainer: pl.Trainer) -> int:
    """Batches for each step over all processes: the size that `TableDataModule` has is that of all together."""
    together = isinstance(trainer.fit_loop._data_source.instance, TableDataModule)
    return 1 if together else trainer.world_size


def _seconds_a_step(trial: Trial, train: Sequence[Any], judged: Sequence[Any]) -> float:
    """The median time of a training step, after one that is not counted; and one validation step."""
    trial.step(train[:1])
    seconds: list[float] = []
    while len(seconds) < _STEPS or (sum(seconds) < _SECONDS and len(seconds) < _MOST_STEPS):
        start = time.perf_counter()
        trial.step([train[len(seconds) % len(train)]])
        seconds.append(time.perf_counter() - start)
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
    if trainer.world_size == 1:
        return value
    shared = torch.tensor(
        value, dtype=torch.float64 if trainer.strategy.root_device.type != "mps" else torch.float32
    )
    shared = shared.to(trainer.strategy.root_device)
    distributed.all_reduce(shared, distributed.ReduceOp.MIN)
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
    return "; ".join(parts) + "."
