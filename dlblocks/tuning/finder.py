"""What finders have in common: they run when `fit` starts, on copies, and leave no trace."""

from __future__ import annotations

import signal
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Protocol

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.compile import _maybe_unwrap_optimized
from lightning.pytorch.utilities.exceptions import _TunerExitException
from lightning.pytorch.utilities.model_helpers import is_overridden
from rich.console import Console
from rich.progress import Progress

from dlblocks.errors import UserError, first_line
from dlblocks.terminal import tell
from dlblocks.tuning.attributes import same_attributes
from dlblocks.tuning.batches import open_loaders, refuse_one_shot
from dlblocks.tuning.bystanders import bystanders, silent
from dlblocks.tuning.restore import same_order, same_values, untouched


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
        if folder is not None and not isinstance(folder, (str, Path)):
            raise UserError(f"folder={folder!r}: must be a path, or None for no picture and table.")
        self.folder = folder
        self.apply = apply
        self.choice: Any = None
        self.interrupted = False
        # Whether the search runs in a `fit` of its own, and the callbacks of the Trainer, which are then not there.
        self.alone, self.others = False, list[Callback]()
        self._limits: tuple[Any, Any] | None = None

    @abstractmethod
    def search(self, trainer: pl.Trainer, module: pl.LightningModule) -> Choice:
        """Find it."""

    @abstractmethod
    def use(self, trainer: pl.Trainer, module: pl.LightningModule, choice: Any) -> None:
        """Let the run that begins have it."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.ckpt_path is not None:
            return
        if self.folder is not None:
            _check_folder(Path(self.folder))
        try:
            with untouched(trainer, pl_module), open_loaders(trainer):
                self.choice = self._searched(trainer, pl_module)
        except KeyboardInterrupt:
            if not self.alone:
                raise
            self.interrupted = True
        if self.alone:
            # Ends `fit` before the module's own hooks begin a run.
            raise _TunerExitException
        if self.apply:
            self.use(trainer, pl_module, self.choice)
        else:
            self._limits = trainer.limit_train_batches, trainer.limit_val_batches
            trainer.limit_train_batches = trainer.limit_val_batches = 0
        if trainer.is_global_zero:
            tell(self.choice.explanation)
            if self.folder is not None:
                self.choice.save(self.folder)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        self._give_back_limits(trainer)

    def on_exception(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        exception: BaseException,
    ) -> None:
        self.interrupted |= isinstance(exception, KeyboardInterrupt)
        self._give_back_limits(trainer)

    def _give_back_limits(self, trainer: pl.Trainer) -> None:
        if self._limits is not None:
            trainer.limit_train_batches, trainer.limit_val_batches = self._limits
            self._limits = None

    def callbacks_of(self, trainer: pl.Trainer) -> list[Callback]:
        """The callbacks that are to take part in the training."""
        return self.others if self.alone else trainer.callbacks  # type: ignore[attr-defined]

    def _searched(self, trainer: pl.Trainer, module: pl.LightningModule) -> Choice:
        _check_strategy(trainer)
        for name in ("limit_train_batches", "max_epochs", "max_steps"):
            if getattr(trainer, name) == 0:
                raise UserError(f"trainer.{name}=0: a run without a step leaves nothing to search for.")
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
        UserError: as the finder; an argument that is none of what it must be, no training data, several optimizers, or a
            launcher whose processes can't tell what they found.
        KeyboardInterrupt: at Ctrl-C, when everything is as it was.
    """
    _check_arguments(trainer, module, datamodule, train_dataloaders, val_dataloaders)
    module = _maybe_unwrap_optimized(module)
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
    _check_strategy(trainer)
    given = {
        "datamodule": datamodule,
        "train_dataloaders": train_dataloaders,
        "val_dataloaders": val_dataloaders,
    }
    # What is set up before this finder's turn, such as a schedule that counts batches, may draw from these.
    order = same_order(module, *given.values())
    of_data = same_attributes(*(() if datamodule is None else (datamodule,)))
    with untouched(trainer, module, whole=True), of_data, same_values(module), order:
        finder.alone, finder.others = True, trainer.callbacks  # type: ignore[attr-defined]
        trainer.callbacks = [finder, *bystanders(finder.others)]  # type: ignore[attr-defined]
        trainer.loggers = silent(trainer.loggers)
        with _interruptible(finder), _one_optimizer(module):
            trainer.fit(module, **{name: value for name, value in given.items() if value is not None})
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
def _one_optimizer(module: pl.LightningModule) -> Iterator[None]:
    """Lightning refuses several, before the search begins."""
    try:
        yield
    except RuntimeError as error:
        if "multiple optimizers" not in str(error):
            raise
        raise UserError(
            f"{type(module).__name__}.configure_optimizers: gives several optimizers; a search takes a module with one."
        ) from error


def _check_arguments(trainer: Any, module: Any, datamodule: Any, train: Any, val: Any) -> None:
    if not isinstance(trainer, pl.Trainer):
        raise UserError(
            f"trainer: must be a Trainer of lightning.pytorch, and is a {_kind(trainer)}. The order is trainer, module,"
            " data module."
        )
    if not isinstance(getattr(module, "_orig_mod", module), pl.LightningModule):  # torch.compile wraps it
        raise UserError(f"module: must be a LightningModule of lightning.pytorch, and is a {_kind(module)}.")
    if datamodule is not None and not isinstance(datamodule, pl.LightningDataModule):
        raise UserError(
            f"datamodule: must be a LightningDataModule of lightning.pytorch, and is a {_kind(datamodule)}. Give loaders"
            " as train_dataloaders=... and val_dataloaders=..."
        )
    if datamodule is not None and (train is not None or val is not None):
        raise UserError(
            "datamodule, train_dataloaders, val_dataloaders: give the data module or loaders, not both."
        )
    refuse_one_shot(train, "train_dataloaders")
    refuse_one_shot(val, "val_dataloaders")
    source = getattr(module, "_orig_mod", module) if datamodule is None else datamodule
    if train is None and not is_overridden("train_dataloader", source):
        raise UserError(
            f"train_dataloaders: there is no training data. Give a loader or a data module; {_kind(source)} has no"
            " train_dataloader."
        )


def _kind(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _check_strategy(trainer: pl.Trainer) -> None:
    strategy = trainer.strategy
    # DeepSpeed's is a kind of DDP to Lightning, and divides the optimizer's state, the gradients or the weights.
    if not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)) or isinstance(
        strategy, DeepSpeedStrategy
    ):
        raise UserError(
            f"trainer.strategy={type(strategy).__name__}: splits the module, so that no copy of it"
            " can be tried. Find learning rate and batch size on one device, or with ddp."
        )


def _check_folder(folder: Path) -> None:
    """Make the folder, and see that a file can be written there, before a search that may take long."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"folder={folder}: picture and table can't be written there ({first_line(error)}). Name a folder that can be"
            " written to."
        ) from error
