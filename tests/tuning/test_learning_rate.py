"""`find_lr` and its callback on anybody's modules: what they find, and that nothing else changes."""

from __future__ import annotations

import copy
import gc
import inspect
import itertools
import json
import math
import random
import signal
import weakref
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from quiet_runs import FEW_BATCHES, QUIET, SMALL, run_script
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dlblocks
from dlblocks.errors import UserError
from dlblocks.recipe import LR_FINDER
from dlblocks.tuning import learning_rate
from dlblocks.tuning.learning_rate import METHODS, LearningRateFinder, find_lr
from dlblocks.tuning.race import COARSE, FINE, PULL

pytestmark = [*SMALL, FEW_BATCHES]


class Foreign(L.LightningModule):
    """A module that has never heard of dlblocks."""

    def __init__(self, lr: float = 1e-4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3)
        )
        self.lr = lr
        self.calls: list[str] = []
        self.breaks: BaseException | None = None

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:  # noqa: ARG002
        self.calls.append("train")
        if self.breaks is not None and len(self.calls) > 6:
            raise self.breaks
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self.calls.append("validation")
        self.log("val_loss", self.loss(batch))

    def loss(self, batch: Any) -> torch.Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def loader(n: int = 96, batch: int = 8, **more: Any) -> DataLoader[Any]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(n, 6, generator=draw)
    return DataLoader(TensorDataset(x, (x[:, :3] * 2).argmax(1)), batch_size=batch, **more)


def trainer(**more: Any) -> L.Trainer:
    return L.Trainer(**{"max_epochs": 8, **QUIET, **more})


def loss_after(lr: float) -> float:
    module = Foreign(lr)
    fitted = trainer()
    fitted.fit(module, loader(), loader())
    return float(fitted.callback_metrics["val_loss"])


def test_a_foreign_module_trains_well_at_what_is_found() -> None:
    choice = find_lr(trainer(), Foreign(), train_dataloaders=loader(), val_dataloaders=loader())
    assert choice.judged_by == "validation loss"
    grid = [loss_after(10 ** (-4 + i)) for i in range(5)]
    assert loss_after(choice.lr) <= 1.05 * min(grid)
    assert loss_after(choice.lr) < 0.5 * max(grid)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_picture_and_table(method: Any, tmp_path: Path) -> None:
    choice = find_lr(trainer(), Foreign(), train_dataloaders=loader(), method=method)
    assert 1e-5 < choice.lr < 10
    assert f"{choice.lr:.2g}" in choice.explanation
    choice.save(tmp_path)
    rows = (tmp_path / "lr_finder.csv").read_text().splitlines()
    assert len(rows) == 1 + len(choice.rows())
    assert rows[0].startswith("lr,")
    assert (tmp_path / "lr_finder.png").stat().st_size > 5000


def test_defaults_are_the_recipes() -> None:
    for target in (find_lr, LearningRateFinder):
        signature = inspect.signature(target).parameters
        assert {p.name: p.default for p in LR_FINDER} == {
            p.name: signature[p.name].default for p in LR_FINDER
        }
    assert LR_FINDER[0].choices == METHODS


# What must be as it was.


class State:
    """All that a trial could change."""

    def __init__(self, fitted: L.Trainer, module: L.LightningModule, train: DataLoader[Any]) -> None:
        self.weights = copy.deepcopy(module.state_dict())
        self.modes = [part.training for part in module.modules()]
        self.attached = module._trainer
        self.random = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
        self.generator = train.generator.get_state().tolist() if train.generator is not None else None
        self.trainer = (
            list(fitted.callbacks),  # type: ignore[attr-defined]
            list(fitted.loggers),
            fitted.limit_train_batches,
            fitted.limit_val_batches,
            fitted.should_stop,
            copy.copy(fitted.state),
            fitted.global_step,
            fitted.current_epoch,
        )
        self.signal = signal.getsignal(signal.SIGINT)

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, State)
        assert all(value.equal(other.weights[name]) for name, value in self.weights.items())
        mine, theirs = dict(vars(self)), dict(vars(other))
        mine.pop("weights"), theirs.pop("weights")
        assert mine == theirs
        return True


@pytest.mark.parametrize("method", ["race", "steepest"])
@pytest.mark.parametrize("ending", [None, RuntimeError("broken"), KeyboardInterrupt()], ids=repr)
def test_everything_is_as_it_was(method: Any, ending: BaseException | None, tmp_path: Path) -> None:
    module = Foreign()
    module.net[1].eval()  # a part that its owner has frozen
    module.breaks = ending
    train = loader(shuffle=True, generator=torch.Generator().manual_seed(3))
    fitted = trainer(callbacks=[Callback()], default_root_dir=tmp_path, limit_val_batches=3)
    before = State(fitted, module, train)
    if ending is None:
        find_lr(fitted, module, train_dataloaders=train, val_dataloaders=loader(), method=method)
    else:
        with pytest.raises(type(ending)):
            find_lr(fitted, module, train_dataloaders=train, val_dataloaders=loader(), method=method)
    assert before == State(fitted, module, train)
    assert module.calls == []
    assert list(tmp_path.iterdir()) == []


class InterruptedEarly(Foreign):
    def configure_optimizers(self) -> Any:
        raise KeyboardInterrupt


class InterruptedData(L.LightningDataModule):
    def setup(self, stage: str) -> None:  # noqa: ARG002
        raise KeyboardInterrupt

    def train_dataloader(self) -> DataLoader[Any]:
        return loader()


@pytest.mark.parametrize(
    ("module", "data"),
    [(InterruptedEarly(), None), (Foreign(), InterruptedData())],
    ids=["optimizer", "data"],
)
def test_ctrl_c_before_the_search_leaves_everything_as_it_was(module: Foreign, data: Any) -> None:
    train, fitted = loader(), trainer(callbacks=[Callback()])
    before = State(fitted, module, train)
    with pytest.raises(KeyboardInterrupt):
        find_lr(fitted, module, data, train_dataloaders=None if data else train)
    assert before == State(fitted, module, train)


class FindsInside(Callback):
    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        find_lr(trainer, pl_module, train_dataloaders=loader())


def test_in_the_middle_of_a_run_only_the_callback_finds() -> None:
    with pytest.raises(UserError, match=r"in the middle of a run.*callbacks=\[LearningRateFinder\(\)\]"):
        trainer(callbacks=[FindsInside()]).fit(Foreign(), loader(), loader())


def test_the_run_after_it_is_bit_identical() -> None:
    trained = []
    for finds in (False, True):
        module = Foreign(lr=0.05)
        train = loader(shuffle=True, generator=torch.Generator().manual_seed(3))
        fitted = trainer(max_epochs=3)
        torch.manual_seed(7)
        if finds:
            find_lr(fitted, module, train_dataloaders=train, val_dataloaders=loader())
        fitted.fit(module, train, loader())
        trained.append(module.state_dict())
    assert all(value.equal(trained[1][name]) for name, value in trained[0].items())


def test_after_training_it_still_finds() -> None:
    module, fitted = Foreign(lr=0.05), trainer(max_epochs=2)
    fitted.fit(module, loader(), loader())
    assert fitted.global_step > 0
    choice = find_lr(fitted, module, train_dataloaders=loader(), val_dataloaders=loader())
    assert all(lap.loss > 0 for lap in choice.laps if lap.rate == choice.lr)


def test_validation_that_is_disabled_is_not_run() -> None:
    seen: list[str] = []

    class Noted(Foreign):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            seen.append("validation")
            super().validation_step(batch, batch_idx)

    given = {"train_dataloaders": loader(), "val_dataloaders": loader()}
    choice = find_lr(trainer(limit_val_batches=0), Noted(), **given)
    assert seen == []
    assert choice.judged_by == "loss on training batches kept apart"
    find_lr(trainer(), Noted(), **given)
    assert seen


def test_a_module_that_calls_its_logger_finds_one_that_drops_it(tmp_path: Path) -> None:
    class Logs(Foreign):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            self.logger.log_metrics({"own": 1.0}, step=batch_idx)  # type: ignore[union-attr]
            return super().training_step(batch, batch_idx)

    given = {"train_dataloaders": loader(), "val_dataloaders": loader()}
    find_lr(trainer(logger=CSVLogger(tmp_path)), Logs(), **given)
    assert list(tmp_path.iterdir()) == []


class Several(Foreign):
    """Logs a part of its loss first, which is lowest where nothing is learned."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self.log("val_shift_loss", sum(p.square().sum() for p in self.net.parameters()))
        self.log("val_loss", self.loss(batch))


def test_of_several_losses_the_validation_loss_judges_or_what_is_monitored() -> None:
    given = {"train_dataloaders": loader(), "val_dataloaders": loader()}
    choice = find_lr(trainer(), Several(), **given)
    assert (choice.judged_by, choice.lr) == ("validation loss", find_lr(trainer(), Foreign(), **given).lr)
    checkpoint = ModelCheckpoint(monitor="val_shift_loss", dirpath="unused")
    watched = find_lr(trainer(callbacks=[checkpoint], enable_checkpointing=True), Several(), **given)
    assert watched.judged_by == "val_shift_loss"
    assert watched.explanation.startswith(f"learning rate {watched.lr:g}: val_shift_loss ")
    assert find_lr(trainer(), Several(), monitor="val_shift_loss", **given).laps == watched.laps
    finder = LearningRateFinder(monitor="val_shift_loss")
    trainer(max_epochs=8, limit_train_batches=12, callbacks=[finder]).fit(Several(), loader(), loader())
    assert finder.choice.laps == watched.laps


def test_a_monitor_is_checked_before_training() -> None:
    stepped: list[int] = []

    class Counts(Foreign):
        def on_before_optimizer_step(self, optimizer: Any) -> None:  # noqa: ARG002
            stepped.append(1)

    with pytest.raises(UserError, match="monitor='val_los' is not what validation logs, which is val_loss"):
        find_lr(trainer(), Counts(), train_dataloaders=loader(), val_dataloaders=loader(), monitor="val_los")
    assert stepped == []


# Hard cases.


class Negative(Foreign):
    """A loss that is negative all along, as a log-likelihood may be."""

    def loss(self, batch: Any) -> torch.Tensor:
        return super().loss(batch) - 100


class OneNaN(Foreign):
    """A loss that is NaN as soon as the weights are large."""

    def loss(self, batch: Any) -> torch.Tensor:
        large = self.net[0].weight.abs().max() > 3
        return super().loss(batch) * (math.nan if large else 1.0)


class AllNaN(Foreign):
    def loss(self, batch: Any) -> torch.Tensor:
        return super().loss(batch) * math.nan


class Refuses(OneNaN):
    """Raises at a loss that is not finite, in training and in validation."""

    def loss(self, batch: Any) -> torch.Tensor:
        loss = super().loss(batch)
        if not loss.isfinite():
            raise ValueError("NaN loss")
        return loss


class Asserts(OneNaN):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        assert loss.isfinite()
        return loss


class Skips(OneNaN):
    """Leaves a batch out whose loss is not finite, as Lightning allows."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss if loss.isfinite() else None


class Scales(Foreign):
    """A scale that is 0 or infinite for large weights, of which a distribution raises a ValueError."""

    def loss(self, batch: Any) -> torch.Tensor:
        x, _ = batch
        location, scale, _ = self.net(x).T
        return -torch.distributions.Normal(location, scale.exp()).log_prob(x[:, 0]).mean()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", [Negative, OneNaN, Refuses, Asserts, Skips, Scales])
def test_losses_of_any_sign_and_with_nan(kind: type[Foreign], method: Any) -> None:
    given = {"train_dataloaders": loader(), "val_dataloaders": loader()}
    assert 1e-5 < find_lr(trainer(), kind(), method=method, **given).lr <= 1


def test_what_raises_at_too_high_a_rate_is_judged_as_what_is_nan_there() -> None:
    given = {"train_dataloaders": loader(), "val_dataloaders": loader()}
    nan, *others = (find_lr(trainer(), kind(), **given).laps for kind in (OneNaN, Refuses, Asserts, Skips))
    for laps in others:
        assert [str(lap) for lap in laps] == [str(lap) for lap in nan]


class LeavesOut(Foreign):
    """Leaves out every fourth batch, whatever the rate."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) if batch_idx % 4 else None


@pytest.mark.parametrize("method", METHODS)
def test_batches_without_a_loss_are_left_out(method: Any) -> None:
    given = {"train_dataloaders": loader(), "val_dataloaders": loader()}
    choice = find_lr(trainer(), LeavesOut(), method=method, **given)
    assert 1e-4 < choice.lr <= 1
    assert all(math.isfinite(lap.loss) for lap in choice.laps)


class TwoViews(Foreign):
    """Trains on batches of another form than those of validation, which gives no loss."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:  # noqa: ARG002
        (one, other), y = batch
        return self.loss((one, y)) + self.loss((other, y))

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        x, y = batch
        self.log("val_accuracy", (self.net(x).argmax(1) == y).float().mean())


def two_views(rows: list[Any]) -> Any:
    x, y = (torch.stack(column) for column in zip(*rows, strict=True))
    return (x, x + 0.1), y


def test_where_validation_gives_no_loss_training_batches_are_kept_apart() -> None:
    given = {"train_dataloaders": loader(collate_fn=two_views)}
    choice = find_lr(trainer(), TwoViews(), **given, val_dataloaders=loader())
    assert choice.judged_by == "loss on training batches kept apart"
    assert choice.laps == find_lr(trainer(limit_val_batches=0), TwoViews(), **given).laps
    with pytest.raises(
        UserError, match="monitor='val_loss' is not what validation logs, which is val_accuracy"
    ):
        find_lr(trainer(), TwoViews(), **given, val_dataloaders=loader(), monitor="val_loss")


@pytest.mark.parametrize("method", ["race", "valley"])
def test_no_copy_of_the_module_is_left(method: Any) -> None:
    """Not even where trials failed, and before any garbage is collected."""
    copies: weakref.WeakSet[Any] = weakref.WeakSet()
    tried: list[int] = []

    class Watched(Refuses):
        def on_fit_start(self) -> None:
            copies.add(self)
            tried.append(1)

    module = Watched()
    given = {"train_dataloaders": loader(), "val_dataloaders": loader()}
    gc.disable()
    try:
        find_lr(trainer(), module, method=method, **given)
        assert [copied for copied in copies if copied is not module] == []
    finally:
        gc.enable()
    assert len(tried) > 3


class Mistaken(Foreign):
    """Fails at one batch, whatever the rate."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if batch_idx == 7:
            raise ValueError("a label that is none")
        return super().training_step(batch, batch_idx)


class MistakenInValidation(Foreign):
    def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        raise RuntimeError("shapes do not match")


class OutOfMemory(OneNaN):
    def loss(self, batch: Any) -> torch.Tensor:
        if not super().loss(batch).isfinite():
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return super().loss(batch)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Mistaken, "a label that is none"),
        (MistakenInValidation, "shapes do not match"),
        (OutOfMemory, "can't allocate memory"),
    ],
)
def test_a_mistake_is_not_taken_for_a_rate_that_is_too_high(kind: type[Foreign], message: str) -> None:
    for method in METHODS if kind is Mistaken else METHODS[:1]:
        with pytest.raises((ValueError, RuntimeError), match=message):
            find_lr(trainer(), kind(), train_dataloaders=loader(), val_dataloaders=loader(), method=method)


def test_where_every_rate_fails_the_failure_is_told() -> None:
    with pytest.raises(UserError, match=r"not finite at any rate from 100 to 1000\. .*ValueError: NaN loss"):
        find_lr(trainer(), Refuses(), train_dataloaders=loader(), min_lr=100.0, max_lr=1000.0)


def test_a_negative_loss_gives_the_same_race_as_the_loss_itself() -> None:
    given = {"train_dataloaders": loader(), "val_dataloaders": loader()}
    assert find_lr(trainer(), Negative(), **given).lr == find_lr(trainer(), Foreign(), **given).lr


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_is_never_finite_is_one_clear_error(method: Any) -> None:
    with pytest.raises(UserError, match=r"optimizer.lr=auto: the loss is not finite"):
        find_lr(trainer(), AllNaN(), train_dataloaders=loader(), method=method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batches", [1, 2, 3])
def test_a_handful_of_batches(batches: int, method: Any) -> None:
    choice = find_lr(trainer(), Foreign(), train_dataloaders=loader(8 * batches), method=method)
    assert 1e-6 < choice.lr < 10


@pytest.mark.parametrize(
    ("run", "longest", "rates"),
    [
        (5, 5, {FINE}),
        (40, 40, {FINE}),
        (41, 41, {COARSE}),
        (79, 79, {COARSE}),
        (80, 40, {2, 3}),
        (-1, 40, {2, 3}),
    ],
)
def test_a_short_run_is_raced_whole_and_a_long_one_in_part(run: int, longest: int, rates: set[int]) -> None:
    choice = find_lr(trainer(max_epochs=-1, max_steps=run), Foreign(), train_dataloaders=loader(batch=16))
    judged = [lap.steps for lap in choice.laps if lap.judged]
    assert max(lap.steps for lap in choice.laps) == longest
    assert judged.count(min(16, longest) if longest == run else longest) in rates
    assert {lap.steps for lap in choice.laps if not lap.judged} == {0, 4, min(12, longest)}


def test_a_step_of_the_race_sees_some_instances() -> None:
    """The losses of single ones would tell little of a rate."""
    choice = find_lr(trainer(max_epochs=10), Foreign(), train_dataloaders=loader(batch=4))
    assert {lap.steps for lap in choice.laps if not lap.judged} == {0, 4 * 4, 12 * 4}
    assert {lap.steps for lap in choice.laps if lap.judged} == {0, 16 * 4, 60 * 4}  # the run's steps


def test_a_race_to_the_end_of_the_run_knows_what_the_run_comes_to() -> None:
    def module(lr: float = 1e-4) -> Foreign:
        made = Foreign(lr)
        made.net[3].p = 0.0  # masks are drawn by another seed
        return made

    loaders = {"train_dataloaders": loader(batch=16), "val_dataloaders": loader(64)}
    choice = find_lr(trainer(max_epochs=8), module(), **loaders)
    last = [lap for lap in choice.laps if lap.steps == 48]
    won = next(lap for lap in last if lap.rate == choice.lr)
    lowest = min(lap.loss for lap in last)
    assert won.loss - lowest <= PULL * (choice.laps[0].loss - lowest)
    fitted = trainer(max_epochs=8)
    fitted.fit(module(choice.lr), **loaders)
    assert float(fitted.callback_metrics["val_loss"]) == pytest.approx(won.loss, rel=1e-5)


@pytest.mark.filterwarnings("ignore:Total length of")
def test_no_batch_at_all() -> None:
    with pytest.raises(UserError, match="gives no batch"):
        find_lr(trainer(), Foreign(), train_dataloaders=loader(4, 8, drop_last=True))


@pytest.mark.parametrize("epochs", [4, 20])
def test_replayed_runners_give_the_same_race(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nets too large to be kept between the parts start again, and come to the same losses."""
    given = {"train_dataloaders": loader(), "val_dataloaders": loader()}
    kept = find_lr(trainer(max_epochs=epochs), Foreign(), **given)
    monkeypatch.setattr(learning_rate, "_KEPT_BYTES", 0)
    assert find_lr(trainer(max_epochs=epochs), Foreign(), **given).laps == kept.laps


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "rase"}, r"lr_finder.method: .*'rase'.*race"),
        ({"min_lr": 0.1, "max_lr": 0.01}, "0 < min_lr < max_lr"),
        ({"method": ["race"]}, r"lr_finder.method: unknown method \['race'\]"),
        ({"min_lr": 0.0}, "0 < min_lr < max_lr"),
        ({"min_lr": "1e-5"}, "lr_finder.min_lr='1e-5': must be a number"),
        ({"max_lr": None}, "lr_finder.max_lr=None: must be a number"),
        ({"steps": "5"}, "lr_finder.steps='5': must be a whole number"),
        ({"steps": 2.5}, "lr_finder.steps=2.5: must be a whole number"),
        ({"steps": True}, "lr_finder.steps=True: must be a whole number"),
        (
            {"steps": 7, "method": "valley"},
            "lr_finder.steps=7: has no effect, since method=valley has 100 steps",
        ),
        ({"monitor": 3}, "monitor=3 must be the name"),
        ({"steps": 0}, "lr_finder.steps=0: must be a whole number, at least 1"),
        ({"min_lr": 0.04, "max_lr": 0.09}, "needs two rates"),
        ({"monitor": "val_loss"}, "monitor='val_loss' has no effect, since there is no validation"),
        (
            {"monitor": "val_loss", "method": "valley"},
            "monitor='val_loss' has no effect, since method=valley",
        ),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_lr(trainer(), Foreign(), train_dataloaders=loader(), **settings)


WRONG: dict[str, tuple[Any, str]] = {
    "swapped": (
        (Foreign, trainer, None, {}),
        r"^trainer: must be a Trainer .*Foreign. The order is trainer, module",
    ),
    "no module": (
        (trainer, lambda: nn.Linear(6, 3), None, {}),
        "^module: must be a LightningModule .*Linear",
    ),
    "loader": (
        (trainer, Foreign, loader, {}),
        "^datamodule: must be .*DataLoader. Give loaders as train_dataloaders=",
    ),
    "both": (
        (trainer, Foreign, InterruptedData, {"train_dataloaders": loader()}),
        "^datamodule, train_dataloaders, val_dataloaders: give the data module or loaders, not both",
    ),
    "no data": (
        (trainer, Foreign, None, {}),
        "^train_dataloaders: there is no training data.*Foreign has no",
    ),
    "validation alone": (
        (trainer, Foreign, None, {"val_dataloaders": loader()}),
        "^train_dataloaders: there is no",
    ),
    "empty data module": (
        (trainer, Foreign, L.LightningDataModule, {}),
        "^train_dataloaders: there is no training data.*LightningDataModule has no",
    ),
}


@pytest.mark.parametrize(
    ("search", "name"),
    [*((find_lr, name) for name in WRONG), *((dlblocks.find_batch_size, name) for name in WRONG)],
)
def test_wrong_arguments(search: Any, name: str) -> None:
    (fitted, module, data, loaders), message = WRONG[name]
    with pytest.raises(UserError, match=message):
        search(fitted(), module(), data and data(), **loaders)


@pytest.mark.filterwarnings("ignore:.*is set to 0")
@pytest.mark.parametrize("limit", ["limit_train_batches", "max_epochs", "max_steps"])
def test_a_run_without_a_step(limit: str) -> None:
    with pytest.raises(UserError, match=f"trainer.{limit}=0: a run without a step"):
        find_lr(trainer(**{limit: 0}), Foreign(), train_dataloaders=loader())


def test_several_optimizers() -> None:
    class Two(Foreign):
        def configure_optimizers(self) -> Any:
            return [super(Two, self).configure_optimizers() for _ in range(2)]

    with pytest.raises(UserError, match=r"Two\.configure_optimizers: gives several optimizers"):
        find_lr(trainer(), Two(), train_dataloaders=loader())


def test_a_folder_is_checked_before_the_search(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    module = Foreign()
    with pytest.raises(UserError, match=r"folder=.*file: picture and table can't be written there"):
        trainer(callbacks=[LearningRateFinder(folder=tmp_path / "file")]).fit(module, loader())
    with pytest.raises(UserError, match="folder=3: must be a path"):
        LearningRateFinder(folder=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_that_no_rate_lowers_is_told(method: Any) -> None:
    class Constant(Foreign):
        def loss(self, batch: Any) -> torch.Tensor:
            return super().loss(batch) * 0 + 2

    choice = find_lr(trainer(), Constant(), train_dataloaders=loader(), method=method)
    assert choice.explanation.endswith(" None is better than the untrained net (2).")


def test_the_edge_of_the_range_is_told() -> None:
    choice = find_lr(trainer(), Foreign(), train_dataloaders=loader(), min_lr=1e-6, max_lr=1e-5)
    assert "widen lr_finder.max_lr" in choice.explanation
    # So low rates only move the statistics of batch norm.
    assert f"None is better than the untrained net ({choice.laps[0].loss:.4g})" in choice.explanation


def test_less_than_four_times_apart_over_seeds() -> None:
    """On data large enough for the validation loss to tell rates apart; Lightning's vary 4000 times."""
    rates = []
    for seed in range(6):
        data = dlblocks.TableDataModule("digits", seed=seed)
        data.setup()
        module = dlblocks.LitModule(task="multiclass", input_shape=data.input_shape, outputs=10, seed=seed)
        rates.append(find_lr(trainer(), module, data).lr)
    assert max(rates) / min(rates) < 4


@pytest.mark.parametrize("validates", [False, True])
@pytest.mark.parametrize(("instances", "runs"), [(96, 3), (400, 2), (900, 1)])
def test_a_range_test_is_repeated_where_the_data_is_small(instances: int, runs: int, validates: bool) -> None:
    given = {"train_dataloaders": loader(instances), "val_dataloaders": loader() if validates else None}
    choice = find_lr(trainer(), Foreign(), method="valley", **given)
    assert f"valley of a range test of {runs} x " in choice.explanation


def test_a_loss_that_ends_the_range_test_is_not_in_its_curve() -> None:
    class Explodes(Foreign):
        """Its loss is a million from the first step on whose rate is above 0.001."""

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.exploded = optimizer.param_groups[0]["lr"] > 1e-3

        def loss(self, batch: Any) -> torch.Tensor:
            return super().loss(batch) + 1e6 * getattr(self, "exploded", False)

    choice = find_lr(trainer(), Explodes(), train_dataloaders=loader(), method="steepest")
    assert choice.curve is not None
    assert 0.9e-3 < choice.curve.rates[-1] < 1.2e-3
    assert max(choice.curve.smooth) < 5


@pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned `None`")
def test_a_module_without_an_optimizer_is_told() -> None:
    class Fixed(Foreign):
        def configure_optimizers(self) -> Any:
            return None

    with pytest.raises(UserError, match=r"Fixed.configure_optimizers: gives 0 optimizers"):
        find_lr(trainer(), Fixed(), train_dataloaders=loader())


# The callback.


class Grouped(Foreign):
    def __init__(self, schedule: str = "none") -> None:
        super().__init__(lr=0.1)
        self.schedule = schedule

    def configure_optimizers(self) -> Any:
        layers = [
            {"params": self.net[0].parameters(), "lr": self.lr / 10},
            {"params": self.net[4].parameters()},
        ]
        optimizer = torch.optim.SGD(layers[::-1], lr=self.lr)
        if self.schedule == "lambda":
            scheduler: Any = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        elif self.schedule == "one_cycle":
            scheduler = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, [self.lr, self.lr / 10], total_steps=96
            )
        else:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Rates(Callback):
    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.seen.append([group["lr"] for group in trainer.optimizers[0].param_groups])


@pytest.mark.parametrize("schedule", ["none", "lambda", "one_cycle"])
def test_the_callback_trains_with_the_rate_and_keeps_ratios(schedule: str, tmp_path: Path) -> None:
    finder, rates, module = LearningRateFinder(folder=tmp_path), Rates(), Grouped(schedule)
    trainer(callbacks=[finder, rates]).fit(module, loader(), loader())
    assert finder.choice is not None
    assert module.lr == finder.choice.lr
    assert [first / second for first, second in rates.seen] == pytest.approx([10.0] * len(rates.seen))
    firsts = [first for first, _ in rates.seen]
    assert max(firsts) == pytest.approx(finder.choice.lr, rel=1e-3)
    if schedule != "one_cycle":
        assert firsts == pytest.approx([finder.choice.lr] * len(firsts))
    assert (tmp_path / "lr_finder.png").exists()


@pytest.mark.parametrize("breaks", [None, RuntimeError("broken")], ids=repr)
def test_a_callback_that_does_not_apply_tells_and_leaves_the_trainer_its_limits(
    breaks: BaseException | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Breaks(Callback):
        def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
            if breaks is not None:
                raise breaks

    finder, module = LearningRateFinder(folder=tmp_path / "new", apply=False), Foreign()
    fitted = trainer(callbacks=[finder, Breaks()], limit_train_batches=6, limit_val_batches=3)
    if breaks is None:
        fitted.fit(module, loader(), loader())
    else:
        with pytest.raises(RuntimeError):
            fitted.fit(module, loader(), loader())
    assert (fitted.global_step, module.lr) == (0, 1e-4)
    assert (fitted.limit_train_batches, fitted.limit_val_batches) == (6, 3)
    assert capsys.readouterr().out.count(finder.choice.explanation) == 1
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"lr_finder.csv", "lr_finder.png"}


def test_a_run_that_goes_on_is_raced_for_the_updates_that_are_left() -> None:
    finder, module = LearningRateFinder(), Foreign()
    fitted = trainer(callbacks=[finder], max_epochs=2)
    fitted.fit(module, loader(), loader())
    fitted.fit_loop.max_epochs = 3
    fitted.fit(module, loader(), loader())
    assert max(lap.steps for lap in finder.choice.laps) == 12


@pytest.mark.parametrize("place", ["alone", "callback"])
def test_accumulation_that_a_callback_schedules(place: str) -> None:
    given = {"train_dataloaders": loader(), "val_dataloaders": loader()}
    expected = find_lr(trainer(accumulate_grad_batches=3), Foreign(), **given)
    finder, schedule = LearningRateFinder(), GradientAccumulationScheduler({0: 3, 2: 6})
    fitted = trainer(callbacks=[schedule] if place == "alone" else [finder, schedule])
    if place == "alone":
        assert find_lr(fitted, Foreign(), **given).laps == expected.laps
        assert fitted.accumulate_grad_batches == 1
    else:
        fitted.fit(Foreign(), **given)
        assert finder.choice.laps == expected.laps


class ReadOnly(Foreign):
    @property
    def learning_rate(self) -> float:
        return float(self.trainer.optimizers[0].param_groups[0]["lr"])


def test_a_property_that_reads_the_rate_is_left_alone() -> None:
    finder, module = LearningRateFinder(), ReadOnly()
    trainer(max_epochs=1, callbacks=[finder]).fit(module, loader(), loader())
    assert module.learning_rate == finder.choice.lr


class Layer(L.LightningModule):
    """A logistic regression."""

    def __init__(self) -> None:
        super().__init__()
        self.lr = nn.Linear(6, 3)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:  # noqa: ARG002
        return nn.functional.cross_entropy(self.lr(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class InABuffer(Foreign):
    def __init__(self) -> None:
        super().__init__()
        del self.lr
        self.register_buffer("lr", torch.tensor(0.01))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=0.01)


class Method(Foreign):
    def learning_rate(self) -> float:
        return 0.01


@pytest.mark.parametrize(("kind", "name"), [(Layer, "lr"), (InABuffer, "lr"), (Method, "learning_rate")])
def test_what_has_the_name_of_a_rate_and_is_none_stays(kind: Any, name: str) -> None:
    module = kind()
    before = getattr(module, name)
    trainer(max_epochs=1, callbacks=[LearningRateFinder()]).fit(module, loader())
    assert getattr(module, name) == before


@pytest.mark.parametrize("given", [None, "auto", 0.0])
def test_a_place_for_the_rate_gets_it(given: Any) -> None:
    class Placed(Foreign):
        def __init__(self, learning_rate: Any) -> None:  # noqa: ARG002
            super().__init__()
            self.save_hyperparameters()

    finder, module = LearningRateFinder(), Placed(given)
    trainer(max_epochs=1, callbacks=[finder]).fit(module, loader(), loader())
    assert module.hparams["learning_rate"] == finder.choice.lr


def test_a_module_that_builds_its_first_group_with_a_part_of_its_rate_can_be_built_anew() -> None:
    class Parted(Foreign):
        def __init__(self, lr: float = 0.05) -> None:
            super().__init__(lr)
            self.save_hyperparameters()

        def configure_optimizers(self) -> Any:
            first = {"params": self.net[0].parameters(), "lr": self.lr / 10}
            return torch.optim.SGD([first, {"params": self.net[4].parameters()}], lr=self.lr)

    finder, module = LearningRateFinder(), Parted()
    fitted = trainer(max_epochs=1, callbacks=[finder])
    fitted.fit(module, loader(), loader())
    trained = [group["lr"] for group in fitted.optimizers[0].param_groups]
    again = Parted(**module.hparams).configure_optimizers()
    assert trained[0] == finder.choice.lr
    assert module.lr == pytest.approx(10 * finder.choice.lr)
    assert [group["lr"] for group in again.param_groups] == pytest.approx(trained)


def test_the_scheduler_of_another_library_keeps_the_found_rate_or_is_refused_before_the_search() -> None:
    class Own(torch.optim.lr_scheduler.LRScheduler):
        def __init__(self, optimizer: Any, max_lr: Any) -> None:
            self.max_lr = max_lr
            super().__init__(optimizer)

        def get_lr(self) -> Any:
            return [(self.max_lr if isinstance(self.max_lr, float) else self.max_lr()) for _ in self.base_lrs]

    class Scheduled(Foreign):
        rate: Any = 0.2

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.2)
            return [optimizer], [{"scheduler": Own(optimizer, self.rate), "interval": "step"}]

    finder, rates = LearningRateFinder(), Rates()
    trainer(max_epochs=1, callbacks=[finder, rates]).fit(Scheduled(), loader(), loader())
    assert rates.seen == [[finder.choice.lr]] * 12
    hidden = Scheduled()
    hidden.rate = lambda: 0.2
    with pytest.raises(UserError, match="Own: keeps learning rates of its own"):
        trainer(max_epochs=1, callbacks=[LearningRateFinder()]).fit(hidden, loader(), loader())
    assert hidden.calls == []


class FromZero(Foreign):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.0)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step < 6 else 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def test_an_optimizer_built_with_a_rate_of_zero_gets_the_rate() -> None:
    finder, rates = LearningRateFinder(), Rates()
    trainer(max_epochs=1, callbacks=[finder, rates]).fit(FromZero(), loader(), loader())
    rate = finder.choice.lr
    assert [seen for (seen,) in rates.seen] == pytest.approx([rate] * 6 + [rate / 2] * 6)


def test_the_callback_leaves_a_resumed_run_its_rate(tmp_path: Path) -> None:
    module, fitted = Foreign(lr=0.07), trainer(max_epochs=1)
    fitted.fit(module, loader(), loader())
    fitted.save_checkpoint(tmp_path / "a.ckpt")
    finder, rates = LearningRateFinder(), Rates()
    trainer(max_epochs=2, callbacks=[finder, rates]).fit(
        Foreign(lr=0.07), loader(), loader(), ckpt_path=tmp_path / "a.ckpt"
    )
    assert finder.choice is None
    assert rates.seen[0] == [0.07]


def test_a_lit_module_with_the_callback_keeps_the_rate_in_its_checkpoint(tmp_path: Path) -> None:
    data = dlblocks.TableDataModule("wine")
    data.setup()
    module = dlblocks.LitModule(task="multiclass", input_shape=data.input_shape, outputs=3)
    finder = LearningRateFinder()
    fitted = trainer(max_epochs=1, callbacks=[finder])
    fitted.fit(module, data)
    fitted.save_checkpoint(tmp_path / "a.ckpt")
    assert finder.choice is not None
    assert dlblocks.LitModule.load_from_checkpoint(tmp_path / "a.ckpt").lr == finder.choice.lr


def test_a_partial_optimizer_hides_no_rate() -> None:
    import functools

    data = dlblocks.TableDataModule("wine")
    data.setup()
    partial: Any = functools.partial(torch.optim.Adam, lr=1e-3)
    module = dlblocks.LitModule(task="multiclass", input_shape=data.input_shape, outputs=3, optimizer=partial)
    assert find_lr(trainer(), module, data).lr > 1e-4


# Several processes.

DDP = """
import json, sys, torch, lightning as L
from pathlib import Path
from dlblocks import LearningRateFinder, LitModule, TableDataModule, find_lr
from dlblocks.data.table import Table

devices, how = int(sys.argv[1]), sys.argv[2]
if __name__ == "__main__":
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(160, 5, generator=draw)
    data = TableDataModule(Table.from_arrays(x, (x[:, 0] > 0).long() + (x[:, 1] > 0), "multiclass"), batch_size=16)
    data.setup()
    module = LitModule(task="multiclass", input_shape=(5,), outputs=3, optimizer={"name": "sgd", "momentum": 0.9})
    finder = LearningRateFinder()
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, strategy="auto" if devices == 1 else how, max_epochs=8, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[] if how == "ddp" else [finder],
    )
    if how != "ddp":
        trainer.fit(module, data)
    else:
        choice = find_lr(trainer, module, data)
        laps = [(lap.rate, lap.steps, lap.loss) for lap in choice.laps]
        Path(f"laps-{trainer.world_size}-{trainer.global_rank}").write_text(json.dumps(laps))
"""


def test_two_processes_agree_and_find_what_one_finds(tmp_path: Path) -> None:
    for devices in ("1", "2"):
        run_script(tmp_path, DDP, devices, "ddp")
    one, first, second = (
        json.loads((tmp_path / f"laps-{name}").read_text()) for name in ("1-0", "2-0", "2-1")
    )
    assert first == second
    assert [lap[:2] for lap in first] == [lap[:2] for lap in one]
    # What rounds differently drifts apart where the rate is too high to train.
    trained = [lap[2] <= one[0][2] for lap in one]
    assert sum(trained) > 12
    ours, theirs = ([lap[2] for lap in itertools.compress(laps, trained)] for laps in (first, one))
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_spawned_processes_could_not_tell() -> None:
    with pytest.raises(UserError, match="give the Trainer the finder as a callback"):
        find_lr(trainer(devices=2, strategy="ddp_spawn"), Foreign(), train_dataloaders=loader())


@pytest.mark.parametrize("how", ["ddp_spawn", "ddp_fork"])
def test_processes_of_a_launcher_find_and_train(tmp_path: Path, how: str) -> None:
    lines = run_script(tmp_path, DDP, "2", how).splitlines()
    assert sum(line.startswith("learning rate") for line in lines) == 1
