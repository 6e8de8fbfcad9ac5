"""What a batch size does: its speed, its memory and its updates, by real steps."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback

from dlblocks.data.module import TableDataModule
from dlblocks.errors import UserError
from dlblocks.tuning import memory
from dlblocks.tuning.advice import class_deviation, noise_scale
from dlblocks.tuning.agreement import least, mean
from dlblocks.tuning.batch_choice import Measured
from dlblocks.tuning.batches import first_batches, no_batch, reload
from dlblocks.tuning.sizes import Resizer, batch_sizes, contents, effective_above, guessed_count, instances
from dlblocks.tuning.trial import Trial

# Share of the memory that was free at first that a size may take.
MARGIN = 0.8
# A size is timed for at least so many steps and seconds.
_STEPS, _SECONDS, _MOST_STEPS = 5, 0.03, 60
# Batches whose gradients tell the noise scale.
_GRADIENTS = 8
# Steps are timed at this rate: so low that weights hardly move, and high enough for LBFGS, which ends a step that moves
# them by less than 1e-9, to look as often at a batch as in training.
_RATE = 1e-4


class IllegalSizeError(Exception):
    """No run is possible with this size; says why."""


class Room(NamedTuple):
    """Bytes in use, and bytes that are free for each process, before a size takes any; None where that is not known."""

    used: int
    free: int | None


class _Batches(NamedTuple):
    """Training batches of one size, one to validate on (or none), how many batches an epoch has (infinitely many where
    that is not known), and whether the last of them has a single instance."""

    train: list[Any]
    judged: list[Any]
    epoch: float
    leaves_one: bool = False


@dataclass(frozen=True)
class Measuring:
    """Trials of batch sizes, by real steps on copies of a module.

    Args:
        trainer: in the middle of `fit`, with its loaders open.
        module: to be trained.
        resizer: sets the size.
        effective, class_counts, callbacks: as of `find_batch_size`.
    """

    trainer: pl.Trainer
    module: pl.LightningModule
    resizer: Resizer
    effective: int | None
    class_counts: Sequence[int]
    callbacks: Sequence[Callback]

    def run(self, size: int, room: Room) -> Measured | None:
        """What a size does; None if the training set has fewer instances.

        Raises:
            IllegalSizeError: the Trainer's limits, or a batch norm, do not go with the size.
            UserError: setting the size has no effect, or an update would take more than an epoch.
        """
        trainer = self.trainer
        device = trainer.strategy.root_device
        memory.release(device)
        memory.start_peak(device)
        fits, whole, seconds, updates, fixed = True, True, math.inf, math.inf, 0
        try:
            trials = self._batches(size)
            whole = trials is not None
            if trials is not None:
                updates = trials.epoch / self.accumulation(size)
                trial = Trial(trainer, self.module, alone=True, callbacks=self.callbacks)
                if trial.has_rate:
                    trial.set_rate(_RATE)
                with _normalising(trial.module) as counts:
                    seconds = _seconds_a_step(trial, trials.train, trials.judged)
                if trials.leaves_one and size in counts:
                    raise IllegalSizeError(
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
        together = size * copies(trainer)
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

    def _batches(self, size: int) -> _Batches | None:
        """Batches of a size; None if the training set has fewer instances."""
        trainer = self.trainer
        loaders = self._loaded(size)
        known = instances(loaders)
        if known is not None and not _counts_instances(loaders, known, size):
            known = None  # of sequences, say, whose numbers a size is the sum of
        if not trainer.num_training_batches or (known is not None and known < size):
            return None
        self._check_effective(size, known)
        # Of an epoch that may end anywhere, the last batch may be smaller, and is left out.
        train, judged, whole = first_batches(trainer, _GRADIENTS + (known is None))
        if not train:
            raise no_batch()
        if size not in batch_sizes(loaders) and guessed_count(train[0]) != size:
            self._check_effect(size, train[0])
        epoch = float(trainer.num_training_batches)
        if known is not None:
            leaves_one = known % size == 1 and len(loaders[0]) * size > known
            return _Batches(train[: known // size], judged, epoch, leaves_one)
        epoch = min(epoch, len(train)) if whole else epoch
        if len(train) > 1:
            return _Batches(train[:-1], judged, epoch)
        return _Batches(train, judged, epoch) if guessed_count(train[0]) == size else None

    def accumulation(self, size: int) -> int:
        """Batches for each update."""
        if self.effective is None:
            return self.trainer.accumulate_grad_batches
        return self.effective // (size * copies(self.trainer))

    def _check_effective(self, size: int, known: int | None) -> None:
        """The Trainer updates at the end of an epoch, with whatever it has then."""
        if self.effective is None:
            return
        if known is not None and self.effective > (most := known * copies(self.trainer)):
            raise effective_above(self.effective, most)
        needed, batches = self.accumulation(size), self.trainer.num_training_batches
        if batches < needed:
            raise IllegalSizeError(
                f"an epoch has {batches} batches, and an update of {self.effective} instances takes {needed}"
            )

    def _check_effect(self, size: int, batch: Any) -> None:
        """Where the loader does not say the size, and the batch may have any shape: another size has other batches."""
        found = contents(batch)
        # Batches of a sum of lengths may be the same for two small ones.
        for other in (max(1, size // 64), 64 * size):
            loaders = self._loaded(other)
            there = first_batches(self.trainer, 1).train
            if found is None or not there or contents(there[0]) != found:
                self._loaded(size)
                return
        said = batch_sizes(loaders)
        raise UserError(
            f"{self.resizer.attribute}={size}: has no effect, since the batches of the training loader"
            f" {f'have {min(said)} instances' if said else 'stay the same'}. Name the attribute that the loader"
            " reads: find_batch_size(..., attribute=...)."
        )

    def noise_scale(self, size: int) -> float | None:
        """The noise scale at the module's weights, by the batches of all processes; None if it can't be told."""
        trainer = self.trainer
        small = large = math.nan
        batches = 0
        try:
            trials = self._batches(size)
            if trials is not None:
                batches = len(trials.train)
                small, large = Trial(trainer, self.module, alone=True).gradient_lengths(trials.train)
        except Exception as error:
            if not memory.is_out_of_memory(error):
                raise
        small, large = mean(trainer, small), mean(trainer, large)
        if not math.isfinite(small + large):
            return None
        own = size * copies(trainer) // trainer.world_size
        return noise_scale(small, large, own, int(least(trainer, float(batches))))

    def _loaded(self, size: int) -> list[Any]:
        """The training loaders, with batches of a size.

        Raises:
            IllegalSizeError: the Trainer's limits do not go with it.
        """
        self.resizer.set(size)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Total length of")
                reload(self.trainer)
        except (MisconfigurationException, ValueError) as error:
            if not isinstance(error, MisconfigurationException) and "val_check_interval" not in str(error):
                raise
            raise IllegalSizeError(str(error).strip().split(". ")[0]) from error
        loaders = self.trainer.fit_loop._combined_loader
        assert loaders is not None
        return list(loaders.flattened)


def room_of(trainer: pl.Trainer) -> Room:
    """What there is now."""
    device = trainer.strategy.root_device
    memory.release(device, broken=True)
    free = memory.available(device)
    # All have to come to the same decisions.
    shared = least(trainer, math.inf if free is None else float(free))
    return Room(memory.in_use(device), int(shared) if math.isfinite(shared) else None)


def copies(trainer: pl.Trainer) -> int:
    """Batches for each step over all processes: the size that `TableDataModule` has is that of all together."""
    together = isinstance(trainer.fit_loop._data_source.instance, TableDataModule)
    return 1 if together else trainer.world_size


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
