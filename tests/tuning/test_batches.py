"""Batches of trials are those that the Trainer would give to the module's steps."""

from __future__ import annotations

import threading
from collections import UserDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import CombinedLoader
from quiet_runs import QUIET, SMALL
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from dlblocks.tuning.batches import _bytes, gather, open_loaders
from dlblocks.tuning.learning_rate import find_lr
from dlblocks.tuning.restore import untouched
from dlblocks.tuning.trial import Trial

pytestmark = SMALL


def table(n: int = 48) -> TensorDataset:
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, x[:, :3].argmax(1))


def loader(collate: Any = None, n: int = 48) -> DataLoader[Any]:
    return DataLoader(table(n), batch_size=8, collate_fn=collate)


class Takes(L.LightningModule):
    """Notes the forms of the batches that its steps take."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(6, 3)
        self.forms: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:  # noqa: ARG002
        self.forms.append(("train", form(batch)))
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> torch.Tensor:  # noqa: ARG002
        self.forms.append(("val", dataloader_idx, form(batch)))
        return self.loss(batch)

    def loss(self, batch: Any) -> torch.Tensor:
        if isinstance(batch, dict):
            return self.loss([one for one in batch.values() if one is not None])
        if isinstance(batch[0], torch.Tensor):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        return torch.stack([self.loss(one) for one in batch if one is not None]).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def form(batch: Any) -> Any:
    if isinstance(batch, dict):
        return {name: form(one) for name, one in batch.items()}
    return [form(one) for one in batch] if isinstance(batch, (list, tuple)) else type(batch).__name__


class Once(Callback):
    """All batches of an epoch and of a validation, in a trial."""

    forms: list[Any]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        with untouched(trainer, pl_module), open_loaders(trainer):
            batches = gather(trainer, 6)
            trial = Trial(trainer, pl_module)
            for batch in batches.train:
                trial.step([batch])
            trial.validate(batches.judged)
            self.forms = trial.module.forms  # type: ignore[assignment]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from table()


@pytest.mark.parametrize(
    "val",
    [
        lambda: DataLoader(Stream(), batch_size=8),
        lambda: [loader(), loader()],
        lambda: {"a": loader(), "b": loader()},
        lambda: CombinedLoader([loader(), loader()], "max_size_cycle"),
        lambda: CombinedLoader({"a": loader(), "b": loader(n=16)}, "max_size"),
        lambda: CombinedLoader([loader(), loader()], "sequential"),
    ],
    ids=["no length", "list", "dict", "cycle", "max", "sequential"],
)
def test_validation_batches_of_every_form(val: Callable[[], Any]) -> None:
    once, module = Once(), Takes()
    L.Trainer(max_epochs=1, callbacks=[once], **QUIET).fit(module, loader(), val())
    assert once.forms[-1][0] == "val"
    # Of several loaders one after the other, the first one judges.
    assert once.forms == [one for one in module.forms if one[0] == "train" or one[1] == 0]


@pytest.mark.parametrize("mode", ["min_size", "max_size", "max_size_cycle"])
def test_training_batches_of_combined_loaders(mode: Any) -> None:
    once, module = Once(), Takes()
    train = CombinedLoader({"a": loader(), "b": loader(n=16)}, mode)
    L.Trainer(max_epochs=1, callbacks=[once], **QUIET).fit(module, train, loader())
    epoch = [one for one in module.forms if one[0] == "train"]
    assert [one for one in once.forms if one[0] == "train"] == (6 // len(epoch)) * epoch


# Batches that are objects.


@dataclass
class Data:
    x: torch.Tensor
    y: torch.Tensor


class Encoding(UserDict):  # type: ignore[type-arg]
    pass


class Mapped(dict):  # type: ignore[type-arg]
    pass


class Slotted:
    __slots__ = ("x", "y")

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y


class InPlace(Takes):
    """Changes attributes and tensors of its batches, and takes things out of them."""

    def loss(self, batch: Any) -> torch.Tensor:
        if isinstance(batch, (Data, Slotted)):
            batch.x = batch.x.mul_(0.5) * 2
            x, y = batch.x, batch.y
        elif isinstance(batch, (dict, UserDict)):
            x, y = batch.pop("x").mul_(0.5) * 2, batch["y"]
        else:
            x, y = batch[0].mul_(0.5) * 2, batch[1]
        return nn.functional.cross_entropy(self.net(x), y)


def collated(make: Callable[[torch.Tensor, torch.Tensor], Any]) -> Callable[[Any], Any]:
    return lambda rows: make(*map(torch.stack, zip(*rows, strict=True)))


FORMS: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "tuple": lambda x, y: (x, y),
    "dataclass": Data,
    "user dict": lambda x, y: Encoding(x=x, y=y),
    "dict": lambda x, y: Mapped(x=x, y=y),
    "slots": Slotted,
}


def test_trials_do_not_see_what_others_did_to_a_batch() -> None:
    found = {}
    for name, make in FORMS.items():
        collate = collated(make)
        choice = find_lr(
            L.Trainer(max_epochs=1, **QUIET),
            InPlace(),
            train_dataloaders=loader(collate),
            val_dataloaders=loader(collate),
            steps=3,
        )
        found[name] = choice.laps
    assert all(laps == found["tuple"] for laps in found.values())


def test_all_tensors_of_a_batch_are_counted() -> None:
    x, y = torch.zeros(8, 4), torch.zeros(8)
    sizes = [_bytes(make(x, y)) for make in FORMS.values()]
    assert sizes == [8 * 4 * 4 + 8 * 4] * len(FORMS)
    itself = Mapped(x=x)
    itself["again"] = [itself, "words"]
    assert _bytes(itself) == x.nbytes


class Locked:
    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.lock, self.pair = threading.Lock(), (x, y)


class Unlocks(Takes):
    def loss(self, batch: Any) -> torch.Tensor:
        with batch.lock:
            return super().loss(batch.pair)


def test_a_batch_that_cannot_be_copied_is_used_as_it_is() -> None:
    collate = collated(Locked)
    choice = find_lr(L.Trainer(max_epochs=1, **QUIET), Unlocks(), train_dataloaders=loader(collate), steps=3)
    assert choice.lr > 0


# What batches are made for.


class Staged(Takes):
    """Notes the Trainer's stage, and the mode of the module."""

    stages: set[Any] = set()  # noqa: RUF012

    def note(self, what: str) -> None:
        trainer = self.trainer
        Staged.stages.add((what, trainer.training, trainer.validating, self.training))

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ARG002
        self.note("before")
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ARG002
        self.note("after")
        return batch

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:  # noqa: ARG002
        self.note("train")
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> torch.Tensor:  # type: ignore[override]  # noqa: ARG002
        self.note("val")
        return self.loss(batch)

    def on_validation_epoch_end(self) -> None:
        self.note("end")


def test_the_stage_is_that_of_the_step() -> None:
    module = Staged()
    module.net.eval()
    stages = []
    for run in (
        lambda **to: L.Trainer(max_epochs=1, **QUIET).fit(Staged(), **to),
        lambda **to: find_lr(L.Trainer(max_epochs=1, **QUIET), module, steps=3, **to),
    ):
        Staged.stages = set()
        run(train_dataloaders=loader(), val_dataloaders=loader())
        stages.append(Staged.stages)
    assert stages[0] == stages[1]
    assert {("val", False, True, False), ("after", True, False, True)} < stages[0]
    assert (module.training, module.net.training) == (True, False)


@pytest.mark.parametrize(("size", "count"), [(1, 256), (16, 16), (32, 8), (100, 8)])
def test_some_hundred_instances_judge(size: int, count: int) -> None:
    found: list[int] = []

    class Gathers(Callback):
        def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            with untouched(trainer, pl_module), open_loaders(trainer):
                found.append(len(gather(trainer, 1).judged))

    x = torch.zeros(1000, 6)
    validation = DataLoader(TensorDataset(x, x[:, 0].long()), batch_size=size)
    L.Trainer(max_epochs=1, callbacks=[Gathers()], **QUIET).fit(Takes(), loader(), validation)
    assert found == [count]
