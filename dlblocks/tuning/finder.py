"""What finders have in common: they run when `fit` starts, on copies, and leave no trace."""

from __future__ import annotations

import signal
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import Progress

from dlblocks.errors import UserError
from dlblocks.terminal import tell
from dlblocks.tuning.batches import open_loaders
from dlblocks.tuning.restore import same_order, same_values, untouched
from dlblocks.tuning.trial import silent


class Choice(Protocol):
    """What a finder found."""

    @property
    def explanation(self) -> str:
        """One line that says why."""

    def save(self, folder: str | Path) -> None:
        """Write picture and table."""


class Finder(Callback):
    """Searches when `fit` starts, and trains with what it finds. A run that goes on from a checkpoint keeps
    what that was trained with.

    Args:
        folder: where picture and table go; None for nowhere.
        apply: train with it. If not, `fit` ends without a step.
    """

    def __init__(self, folder: str | Path | None, apply: bool) -> None:
        self.folder = folder
        self.apply = apply
        self.choice: Any = None
        self.interrupted = False
        # Of the Trainer, where the search runs in a `fit` of its own without them.
        self.others: list[Callback] = []

    @abstractmethod
    def search(self, trainer: pl.Trainer, module: pl.LightningModule) -> Choice:
        """Find it."""

    @abstractmethod
    def use(self, trainer: pl.Trainer, module: pl.LightningModule, choice: Any) -> None:
        """Let the run that begins have it."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.ckpt_path is not None:
            return
        try:
            with untouched(trainer, pl_module), open_loaders(trainer):
                self.choice = self._searched(trainer, pl_module)
        except KeyboardInterrupt:
            if self.apply:
                raise
            self.interrupted = True
        if not self.apply:
            trainer.limit_train_batches = trainer.limit_val_batches = 0
            return
        self.use(trainer, pl_module, self.choice)
        if trainer.is_global_zero:
            tell(self.choice.explanation)
            if self.folder is not None:
                self.choice.save(self.folder)

    def on_exception(
        self,
        trainer: pl.Trainer,  # noqa: ARG002
        pl_module: pl.LightningModule,  # noqa: ARG002
        exception: BaseException,
    ) -> None:
        self.interrupted |= isinstance(exception, KeyboardInterrupt)

    def callbacks_of(self, trainer: pl.Trainer) -> list[Callback]:
        """The callbacks that are to take part in the training."""
        return [*self.others, *trainer.callbacks]  # type: ignore[attr-defined]

    def _searched(self, trainer: pl.Trainer, module: pl.LightningModule) -> Choice:
        strategy = trainer.strategy
        # DeepSpeed's is a kind of DDP to Lightning, and divides the optimizer's state, the gradients or the weights.
        if not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)) or isinstance(
            strategy, DeepSpeedStrategy
        ):
            raise UserError(
                f"trainer.strategy={type(strategy).__name__}: splits the module, so that no copy of it"
                " can be tried. Find learning rate and batch size on one device, or with ddp."
            )
        return self.search(trainer, module)


def find(
    finder: Finder,
    trainer: pl.Trainer,
    module: pl.LightningModule,
    datamodule: pl.LightningDataModule | None,
    train_dataloaders: Any,
    val_dataloaders: Any,
) -> Any:
    """Let a finder search before `trainer.fit`, with nothing else of the Trainer's in the way.

    Raises:
        UserError: as the finder, or a launcher whose processes can't tell what they found.
        KeyboardInterrupt: at Ctrl-C, when everything is as it was.
    """
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise UserError(
            "trainer.strategy: processes that are spawned end with what they found; give the Trainer the finder"
            " as a callback, or use strategy=ddp."
        )
    if trainer.state.status == TrainerStatus.RUNNING:
        raise UserError(
            f"{type(finder).__name__}: this Trainer is in the middle of a run; give it the finder as a callback:"
            f" Trainer(callbacks=[{type(finder).__name__}()])."
        )
    # What is set up before this finder's turn, such as a schedule that counts batches, may draw from these.
    order = same_order(module, datamodule, train_dataloaders, val_dataloaders)
    with untouched(trainer, module), _detached(module, datamodule), same_values(module), order:
        finder.others = trainer.callbacks  # type: ignore[attr-defined]
        trainer.callbacks = [finder]  # type: ignore[attr-defined]
        trainer.loggers = silent(trainer.loggers)
        given = {"train_dataloaders": train_dataloaders, "val_dataloaders": val_dataloaders}
        with _interruptible(finder):
            trainer.fit(module, datamodule=datamodule, **{k: v for k, v in given.items() if v is not None})
    if finder.interrupted:
        raise KeyboardInterrupt
    return finder.choice


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on the terminal of the main process."""
    console = Console(stderr=True)
    if getattr(rank_zero_only, "rank", 0) or not console.is_terminal:
        yield lambda _: None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda steps: bar.advance(task, steps)


@contextmanager
def _interruptible(finder: Finder) -> Iterator[None]:
    """At Ctrl-C outside the search Lightning ends the process, and takes no second one; here it goes on."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        if not finder.interrupted:
            raise
        signal.signal(signal.SIGINT, before)


@contextmanager
def _detached(module: pl.LightningModule, datamodule: pl.LightningDataModule | None) -> Iterator[None]:
    """Module and data module belong afterwards to the Trainer they belonged to."""
    own, of_data = module._trainer, getattr(datamodule, "trainer", None)
    try:
        yield
    finally:
        module.trainer = own
        if datamodule is not None:
            datamodule.trainer = of_data
