"""A trial's steps are the Trainer's."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dlblocks.errors import UserError
from dlblocks.tuning.batch_size import BatchSizeFinder
from dlblocks.tuning.batches import gather, of_update, open_loaders
from dlblocks.tuning.learning_rate import LearningRateFinder, find_lr
from dlblocks.tuning.restore import untouched
from dlblocks.tuning.trial import Trial

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
]

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "num_sanity_val_steps": 0,
}


class Foreign(L.LightningModule):
    """A module that has never heard of dlblocks: norm and dropout, two parameter groups, losses in mappings."""

    def __init__(self, optimizer: str = "adamw", dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(12, 3)
        )
        self.optimizer = optimizer
        self.learning_rate = 0.02

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:  # noqa: ARG002
        x, y = batch
        # In place, as some modules do; LBFGS sees a batch several times.
        x = x - 0.1 if self.optimizer == "lbfgs" else x.sub_(0.1)
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.log("train_loss", loss, prog_bar=True)
        return {"loss": loss}

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        x, y = batch
        self.log("val_loss", nn.functional.cross_entropy(self.net(x - 0.1), y))

    def configure_optimizers(self) -> Any:
        first, rest = list(self.net[0].parameters()), [*self.net[1].parameters(), *self.net[4].parameters()]
        groups = [{"params": first}, {"params": rest, "lr": self.learning_rate / 10}]
        if self.optimizer == "lbfgs":
            return torch.optim.LBFGS(self.parameters(), lr=self.learning_rate, max_iter=4)
        kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[self.optimizer]
        return kind(groups, lr=self.learning_rate)


def loader(n: int = 48, batch: int = 8, **more: Any) -> DataLoader[Any]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(n, 6, generator=draw)
    return DataLoader(TensorDataset(x, torch.randint(3, (n,), generator=draw)), batch_size=batch, **more)


class Tries(Callback):
    """Takes some steps in a trial when `fit` starts, and keeps the weights it came to."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.weights: dict[str, torch.Tensor] = {}
        self.losses: list[float] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with untouched(trainer, pl_module), open_loaders(trainer):
            accumulate = trainer.accumulate_grad_batches
            train = gather(trainer, self.steps * accumulate).train
            trial = Trial(trainer, pl_module)
            for step in range(self.steps):
                chosen = of_update(step, accumulate, trainer.num_training_batches)
                self.losses.append(trial.step([train[index] for index in chosen]))
            self.weights = {name: value.clone() for name, value in trial.module.state_dict().items()}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lbfgs"])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"precision": "bf16-mixed"},
        {"precision": "64-true"},
        {"gradient_clip_val": 0.05},
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        {"accumulate_grad_batches": 2},
        {"accumulate_grad_batches": 4},  # of 6 batches in an epoch, 2 are left for its last update
        {"accumulate_grad_batches": 9},
    ],
    ids=str,
)
def test_steps_are_the_trainers(optimizer: str, more: dict[str, Any]) -> None:
    if optimizer == "lbfgs" and "accumulate_grad_batches" in more:
        pytest.skip("the Trainer's closure sees one batch, so LBFGS can't accumulate there")
    steps = 4
    tries = Tries(steps)
    module = Foreign(optimizer)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trainer = L.Trainer(max_epochs=steps, max_steps=steps, callbacks=[tries], **QUIET, **more)
    trainer.fit(module, loader(), loader())
    trained = module.state_dict()
    assert any(not before[name].equal(value.to(before[name].dtype)) for name, value in trained.items())
    for name, value in trained.items():
        assert tries.weights[name].equal(value), name


@pytest.mark.parametrize("settings", [{"steps": 4}, {"method": "valley"}], ids=["race", "valley"])
def test_a_rate_is_found_for_the_updates_of_the_run(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 6 batches in an epoch, 2 are left for every second update."""
    taken: dict[int, set[tuple[int, int]]] = {}
    step = Trial.step

    def noted(trial: Trial, batches: Any) -> float:
        taken.setdefault(trial.seed, set()).add((trial.steps % 2, len(batches)))
        return step(trial, batches)

    monkeypatch.setattr(Trial, "step", noted)
    found = L.Trainer(max_epochs=3, accumulate_grad_batches=4, **QUIET)
    find_lr(found, Foreign(), train_dataloaders=loader(), val_dataloaders=loader(), **settings)
    # Repeats of a range test begin at other updates.
    assert taken[0] == {(0, 4), (1, 2)}
    assert all(updates in ({(0, 4), (1, 2)}, {(0, 2), (1, 4)}) for updates in taken.values())


def test_a_module_without_the_trial_trains_the_same() -> None:
    plain, tried = Foreign(dropout=0.5), Foreign(dropout=0.5)
    for module, callbacks in ((plain, []), (tried, [Tries(3)])):
        torch.manual_seed(5)
        shuffled = loader(shuffle=True, generator=torch.Generator().manual_seed(2))
        L.Trainer(max_epochs=3, callbacks=callbacks, **QUIET).fit(module, shuffled, loader())
    for name, value in plain.state_dict().items():
        assert tried.state_dict()[name].equal(value), name


@pytest.mark.parametrize("kind", [DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy])
@pytest.mark.parametrize("finder", [LearningRateFinder, BatchSizeFinder])
def test_a_strategy_that_splits_the_module_is_refused(kind: type, finder: type) -> None:
    """No copy of a part can be tried. DeepSpeed is not installed, and the others need an accelerator."""
    trainer: Any = SimpleNamespace(strategy=kind.__new__(kind))
    with pytest.raises(UserError, match=rf"trainer.strategy={kind.__name__}: splits the module"):
        finder()._searched(trainer, Foreign())


class TwoOptimizers(Foreign):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (self.net[0], self.net[4])]


def test_optimising_by_hand_is_refused() -> None:
    with pytest.raises(UserError, match=r"TwoOptimizers: optimises by hand"):
        L.Trainer(max_epochs=1, callbacks=[Tries(1)], **QUIET).fit(TwoOptimizers(), loader())


class Silent(Foreign):
    def training_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        return None


def test_a_step_without_a_loss_is_told() -> None:
    with pytest.raises(UserError, match=r"Silent.training_step: returned no loss"):
        L.Trainer(max_epochs=1, callbacks=[Tries(1)], **QUIET).fit(Silent(), loader())


# What is let go.


class Scheduled(Foreign):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.learning_rate)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


class LetsGo(Callback):
    """Keeps weak references to what a trial held, and says which of it is still there."""

    alive: tuple[str, ...] = ("not tried",)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with untouched(trainer, pl_module), open_loaders(trainer):
            batches = gather(trainer, 1)
            gc.disable()
            try:
                trial = Trial(trainer, pl_module)
                trial.step(batches.train[:1])
                trial.validate(batches.judged)
                trial.gradient_lengths(batches.train[:1])
                trial.training_loss(batches.judged)
                held = {
                    "module": trial.module,
                    "weight": trial.module.net[0].weight,
                    "optimizer": trial.optimizer,
                }
                references = {name: weakref.ref(value) for name, value in held.items()}
                del trial, held
                self.alive = tuple(name for name, reference in references.items() if reference() is not None)
            finally:
                gc.enable()


@pytest.mark.parametrize("kind", [Foreign, Scheduled])
def test_a_trial_is_freed_when_it_is_let_go(kind: type[Foreign]) -> None:
    callback = LetsGo()
    L.Trainer(max_epochs=1, callbacks=[callback], **QUIET).fit(kind(), loader(), loader())
    assert callback.alive == ()


# Whatever a module may do in Lightning.


class Hooked(Foreign):
    """Notes the hooks that are called, and needs what they set."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []

    def on_fit_start(self) -> None:
        self.called.append("on_fit_start")
        self.weight = torch.ones(3)

    def on_train_start(self) -> None:
        self.called.append("on_train_start")

    def on_train_epoch_start(self) -> None:
        self.called.append("on_train_epoch_start")
        self.outs: list[torch.Tensor] = []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.called.append(f"on_train_batch_start {batch_idx} {len(batch)}")

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.called.append(f"training_step {batch_idx}")
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1], weight=self.weight)
        self.outs.append(loss.detach())
        return loss

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.called.append(f"on_before_zero_grad {type(optimizer).__name__}")

    def on_before_backward(self, loss: torch.Tensor) -> None:  # noqa: ARG002
        self.called.append("on_before_backward")

    def on_after_backward(self) -> None:
        self.called.append("on_after_backward")

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.called.append(f"on_before_optimizer_step {type(optimizer).__name__}")

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self.called.append(f"on_train_batch_end {batch_idx} {sorted(outputs)}")

    def on_validation_start(self) -> None:
        self.called.append("on_validation_start")

    def on_validation_epoch_start(self) -> None:
        self.called.append("on_validation_epoch_start")

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:  # noqa: ARG002
        self.called.append(f"on_validation_batch_start {batch_idx}")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.called.append(f"validation_step {batch_idx} {self.training}")
        super().validation_step(batch, batch_idx)

    def on_validation_batch_end(
        self,
        outputs: Any,
        batch: Any,  # noqa: ARG002
        batch_idx: int,
        dataloader_idx: int = 0,  # noqa: ARG002
    ) -> None:
        self.called.append(f"on_validation_batch_end {batch_idx} {outputs}")

    def on_validation_epoch_end(self) -> None:
        self.called.append("on_validation_epoch_end")

    def on_validation_end(self) -> None:
        self.called.append("on_validation_end")


class Compares(Callback):
    """A trial of two steps and a validation, beside what the Trainer then does."""

    def __init__(self) -> None:
        self.in_trial: list[str] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with untouched(trainer, pl_module), open_loaders(trainer):
            batches = gather(trainer, trainer.accumulate_grad_batches * 2)
            half = trainer.accumulate_grad_batches
            trial = Trial(trainer, pl_module)
            trial.step(batches.train[:half])
            trial.step(batches.train[half:])
            trial.validate(batches.judged)
            self.in_trial = list(trial.module.called)  # type: ignore[arg-type]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_modules_own_hooks_are_called_in_the_trainers_order(accumulate: int) -> None:
    compares, module = Compares(), Hooked()
    fitted = L.Trainer(
        max_epochs=1, accumulate_grad_batches=accumulate, callbacks=[compares], limit_val_batches=2, **QUIET
    )
    fitted.fit(module, loader(16 * accumulate), loader(16))
    assert "on_validation_end" in module.called
    assert compares.in_trial == module.called


class NoIndex(Foreign):
    def training_step(self, batch: Any) -> torch.Tensor:  # type: ignore[override]
        return super().training_step(batch, 0)["loss"]

    def validation_step(self, batch: Any) -> None:  # type: ignore[override]
        super().validation_step(batch, 0)


class OfSeveral(Foreign):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:  # type: ignore[override]
        assert dataloader_idx == 0
        super().validation_step(batch, batch_idx)


class Validates(Callback):
    """Validates in a trial after one step."""

    loss: float | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with untouched(trainer, pl_module), open_loaders(trainer):
            batches = gather(trainer, 1)
            trial = Trial(trainer, pl_module)
            trial.step(batches.train)
            self.loss = trial.validate(batches.judged)


@pytest.mark.parametrize("kind", [NoIndex, OfSeveral, Foreign])
def test_every_signature_of_a_step(kind: type[Foreign]) -> None:
    validates = Validates()
    loaders = [loader(), loader()] if kind is OfSeveral else loader()
    L.Trainer(max_epochs=1, max_steps=1, callbacks=[validates], **QUIET).fit(kind(), loader(), loaders)
    assert validates.loss is not None
    assert 0 < validates.loss < 10


class TakesIterator(Foreign):
    def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
        return super().training_step(next(dataloader_iter)[0], 0)


@pytest.mark.filterwarnings("ignore:.*`dataloader_iter`")
def test_an_iterator_of_batches_is_refused() -> None:
    with pytest.raises(UserError, match=r"TakesIterator.training_step: takes a dataloader_iter"):
        L.Trainer(max_epochs=1, callbacks=[Tries(1)], **QUIET).fit(TakesIterator(), loader())


class FrozenNorm(Foreign):
    def on_train_start(self) -> None:
        self.net[1].eval()


class KeepsModes(Callback):
    modes: tuple[bool, ...] = ()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with untouched(trainer, pl_module), open_loaders(trainer):
            batches = gather(trainer, 1)
            trial = Trial(trainer, pl_module)
            trial.validate(batches.judged)
            trial.training_loss(batches.judged)
            self.modes = (trial.module.training, trial.module.net[1].training)


def test_validation_leaves_a_frozen_part_frozen() -> None:
    keeps, module = KeepsModes(), FrozenNorm()
    L.Trainer(max_epochs=1, callbacks=[keeps], **QUIET).fit(module, loader(), loader())
    assert keeps.modes == (True, False)


class Logs(Foreign):
    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        made = super().training_step(batch, batch_idx)
        self.logger.log_metrics({"own": float(made["loss"].detach())}, step=self.global_step)  # type: ignore[union-attr]
        return made


class Counts(CSVLogger):
    calls = 0

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        self.calls += "own" in metrics


def test_nothing_comes_to_the_loggers(tmp_path: Path) -> None:
    counts, tries = Counts(tmp_path), Tries(2)
    fitted = L.Trainer(max_epochs=1, log_every_n_steps=1, callbacks=[tries], **{**QUIET, "logger": counts})
    fitted.fit(Logs(), loader(), loader())
    assert len(tries.losses) == 2
    assert counts.calls == 6  # of the run itself
    assert fitted.loggers == [counts]
