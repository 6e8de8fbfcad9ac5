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
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from quiet_runs import QUIET, SMALL, run_script
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from dlblocks.errors import UserError
from dlblocks.tuning.batch_size import BatchSizeFinder
from dlblocks.tuning.batches import gather, of_update, open_loaders
from dlblocks.tuning.learning_rate import LearningRateFinder, find_lr
from dlblocks.tuning.restore import untouched
from dlblocks.tuning.trial import Trial

pytestmark = SMALL


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
        self.losses: list[float | None] = []

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


class LeavesOut(Foreign):
    """Returns no loss for some batches."""

    def __init__(self, optimizer: str = "adamw", left_out: tuple[int, ...] = ()) -> None:
        super().__init__(optimizer)
        self.left_out = left_out

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        made = super().training_step(batch, batch_idx)
        return None if batch_idx in self.left_out else made


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("left_out", [(0,), (3,), (2, 3)])
def test_a_batch_without_a_loss_is_left_out(left_out: tuple[int, ...], accumulate: int) -> None:
    steps = 6 // accumulate
    tries, module = Tries(steps), LeavesOut(left_out=left_out)
    L.Trainer(max_epochs=1, accumulate_grad_batches=accumulate, callbacks=[tries], **QUIET).fit(
        module, loader(), loader()
    )
    for name, value in module.state_dict().items():
        assert tries.weights[name].equal(value), name
    without = [
        step for step in range(steps) if {*range(step * accumulate, (step + 1) * accumulate)} <= {*left_out}
    ]
    assert [step for step, loss in enumerate(tries.losses) if loss is None] == without


class ReturnsNothing(Foreign):
    def training_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        return None


@pytest.mark.parametrize("method", ["race", "valley"])
def test_a_module_that_never_returns_a_loss_is_told(method: Any) -> None:
    with pytest.raises(UserError, match=r"ReturnsNothing.training_step: returned no loss"):
        find_lr(L.Trainer(max_epochs=1, **QUIET), ReturnsNothing(), train_dataloaders=loader(), method=method)


@pytest.mark.parametrize("kind", [TwoOptimizers, ReturnsNothing])
def test_what_cannot_be_tried_is_told_by_both_finders(kind: type[Foreign]) -> None:
    told = []
    for finder in (LearningRateFinder(), BatchSizeFinder(sizes=[8])):
        with pytest.raises(UserError) as error:
            L.Trainer(max_epochs=1, callbacks=[finder], **QUIET).fit(kind(), loader())
        told.append(str(error.value))
    assert told[0] == told[1]
    assert ("learning rate" in told[0]) == ("batch size" in told[0])


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


class Counting(Foreign):
    """Notes how far the run is."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: list[tuple[str, int, int]] = []

    def count(self, what: str) -> None:
        self.counted.append((what, self.global_step, self.current_epoch))

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        self.count("step")
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self.count("end")


class KeepsCounts(Callback):
    counted: list[Any]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with untouched(trainer, pl_module), open_loaders(trainer):
            trial, train = Trial(trainer, pl_module), gather(trainer, 12).train
            for first in (0, 2, 4):
                trial.step(train[first : first + 2])
                trial.step(train[first + 6 : first + 8] if first == 4 else train[first : first + 2])
            self.counted = list(trial.module.counted)  # type: ignore[arg-type]
            assert (trainer.global_step, trainer.current_epoch) == (0, 0)


def test_a_trial_knows_how_far_its_run_is() -> None:
    keeps, module = KeepsCounts(), Counting()
    fitted = L.Trainer(max_epochs=2, accumulate_grad_batches=2, callbacks=[keeps], **QUIET)
    fitted.fit(module, loader(), loader())
    assert keeps.counted == module.counted
    assert (module.counted[0], module.counted[-1]) == (("step", 0, 0), ("end", 6, 1))


class ReadsMetrics(Foreign):
    """Keeps what it finds in the Trainer's metrics."""

    def __init__(self) -> None:
        super().__init__()
        self.accuracy = MulticlassAccuracy(3)
        self.read: list[Any] = []

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        self.accuracy.update(self.net(batch[0] - 0.1), batch[1])
        self.log("val_accuracy", self.accuracy)

    def on_validation_epoch_end(self) -> None:
        for metrics in (self.trainer.callback_metrics, self.trainer.logged_metrics):
            self.read.append({name: round(float(metrics[name]), 4) for name in ("val_loss", "val_accuracy")})
        self.read.append(round(float(self.trainer.callback_metrics["train_loss"]), 4))


class Reads(Callback):
    read: list[Any]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with untouched(trainer, pl_module), open_loaders(trainer):
            batches, trial = gather(trainer, 1), Trial(trainer, pl_module)
            trial.step(batches.train[:1])
            trial.validate(batches.judged)
            self.read = list(trial.module.read)  # type: ignore[arg-type]
        assert not trainer.callback_metrics
        assert not trainer.logged_metrics


def test_a_module_finds_what_it_logged() -> None:
    reads, module = Reads(), ReadsMetrics()
    L.Trainer(max_steps=1, callbacks=[reads], **QUIET).fit(module, loader(8), loader())
    assert len(module.read) == 3
    assert reads.read == module.read


class Asks(Foreign):
    """Asks the Trainer for its folders and callbacks."""

    def ask(self) -> None:
        trainer = self.trainer
        assert Path(trainer.log_dir).name == "version_3"
        assert isinstance(self.logger, CSVLogger)
        assert Path(self.logger.save_dir) == Path(self.logger.root_dir).parent
        assert (self.logger.name, self.logger.version) == ("runs", 3)
        assert Path(trainer.checkpoint_callback.dirpath).name == "checkpoints"
        assert trainer.early_stopping_callback.wait_count == 0
        assert trainer.early_stopping_callback.state_dict()["patience"] == 3
        assert trainer.progress_bar_callback.is_enabled

    def on_train_start(self) -> None:
        self.ask()

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        self.ask()
        return super().training_step(batch, batch_idx)


class Counted(Callback):
    calls = deleted = 0

    def on_before_backward(self, *_: Any) -> None:
        Counted.calls += 1

    def __del__(self) -> None:
        Counted.deleted += 1


def test_callbacks_and_loggers_may_be_asked_and_take_no_part(tmp_path: Path) -> None:
    counted, finder = Counted(), LearningRateFinder(steps=3)
    Counted.calls = Counted.deleted = 0
    quiet = {
        **QUIET,
        "logger": CSVLogger(tmp_path, "runs", 3),
        "enable_checkpointing": True,
        "enable_progress_bar": True,
        "log_every_n_steps": 1,
    }
    given: dict[str, Any] = {"callbacks": [EarlyStopping("val_loss"), counted], "max_epochs": 1}
    find_lr(L.Trainer(**quiet | given), Asks(), train_dataloaders=loader(), val_dataloaders=loader(), steps=3)
    assert Counted.calls == 0
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    given["callbacks"].append(finder)
    L.Trainer(**quiet | given).fit(Asks(), loader(), loader())
    gc.collect()
    assert (Counted.calls, Counted.deleted) == (6, 0)  # of the run itself
    assert finder.choice.lr > 0


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


# Several processes.

UNUSED = """
import torch, lightning as L
from pathlib import Path
from lightning.pytorch.callbacks import Callback, EarlyStopping
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from dlblocks.tuning.batches import gather, open_loaders
from dlblocks.tuning.restore import untouched
from dlblocks.tuning.trial import Trial

class Branches(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.neither = (nn.Linear(6, 3) for _ in range(3))

    def training_step(self, batch, batch_idx):
        branch = self.first if (self.trainer.global_rank + batch_idx // 2) % 2 == 0 else self.second
        if batch_idx == 0:
            branch = self.second  # on all processes
        return nn.functional.cross_entropy(branch(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, weight_decay=0.1, momentum=0.9)

class Tries(Callback):
    def on_fit_start(self, trainer, pl_module):
        with untouched(trainer, pl_module), open_loaders(trainer):
            trial = Trial(trainer, pl_module)
            for batch in gather(trainer, 6).of_training:
                trial.step([batch])
            self.weights = trial.module.state_dict()

if __name__ == "__main__":
    x = torch.randn(96, 6, generator=torch.Generator().manual_seed(1))
    tries, module = Tries(), Branches()
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy="ddp_find_unused_parameters_true", max_epochs=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        callbacks=[tries],
    )
    trainer.fit(module, DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=8))
    for name, value in module.state_dict().items():
        torch.testing.assert_close(tries.weights[name], value)
    Path(f"same-{trainer.global_rank}").touch()
"""


def test_processes_that_use_other_parameters_share_their_gradients(tmp_path: Path) -> None:
    run_script(tmp_path, UNUSED)
    assert {path.name for path in tmp_path.glob("same-*")} == {"same-0", "same-1"}
