"""Copies of a module run their own code, and leave the module alone."""

from __future__ import annotations

import functools
import gc
import threading
import weakref
from functools import partial
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from quiet_runs import QUIET, SMALL
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dlblocks.errors import UserError
from dlblocks.probing import copied
from dlblocks.tuning.learning_rate import find_lr
from dlblocks.tuning.trial import Trial

pytestmark = SMALL


class Plain(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:  # noqa: ARG002
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> torch.Tensor:  # noqa: ARG002
        return self.loss(batch)

    def loss(self, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Hooked(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, torch.Tensor] = {}
        self.net[0].register_forward_hook(lambda _module, _input, output: self.kept.update(h=output))

    def loss(self, batch: Any) -> torch.Tensor:
        return super().loss(batch) + 0 * self.kept["h"].sum()


class Lambda(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.run = lambda x: self.net(x)

    def loss(self, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(self.run(batch[0]), batch[1])


class Nested(Lambda):
    """A partial in a list, and a default."""

    def __init__(self) -> None:
        super().__init__()
        inner = self.run
        self.runs = [
            partial(lambda x, scale, net=self.net: scale * (inner(x) if x is None else net(x)), scale=1.0)
        ]
        self.run = lambda x: self.runs[0](x)


class Compiled(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.compute = torch.compile(super().loss, backend="eager")

    def loss(self, batch: Any) -> torch.Tensor:
        return self.compute(batch)


class Wrapped(Plain):
    def __init__(self) -> None:
        super().__init__()
        inner = self.training_step

        @functools.wraps(inner)
        def wrapped(*args: Any) -> torch.Tensor:
            return inner(*args)

        self.training_step = wrapped  # type: ignore[method-assign]


def whole() -> Any:
    return torch.compile(Plain(), backend="eager")


def in_place() -> Any:
    made = Plain()
    made.compile(backend="eager")
    return made


def loader() -> DataLoader[Any]:
    x = torch.randn(48, 6, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=8)


def found(module: Any) -> list[tuple[float, float]]:
    choice = find_lr(
        L.Trainer(max_epochs=1, **QUIET),
        module,
        train_dataloaders=loader(),
        val_dataloaders=loader(),
        steps=3,
    )
    return [(lap.rate, lap.loss) for lap in choice.laps]


@pytest.mark.parametrize("make", [Hooked, Lambda, Nested, Compiled, Wrapped, whole, in_place])
def test_functions_that_a_module_holds_are_those_of_the_copy(make: Any) -> None:
    module = make()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert found(module) == found(Plain())
    assert all(before[name].equal(value) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


class OutOfReach(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.runs = (lambda x: self.net(x),)

    def loss(self, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(self.runs[0](batch[0]), batch[1])


@pytest.mark.parametrize(("norm", "changed"), [(True, "net.1.num_batches_tracked"), (False, "net.0.weight")])
def test_a_step_on_the_module_itself_is_told(norm: bool, changed: str) -> None:
    module = OutOfReach()
    if not norm:
        module.net[1] = nn.Identity()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(
        UserError, match=rf"OutOfReach: a step of its copy used the module itself \({changed}"
    ):
        found(module)
    assert all(before[name].equal(value) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_function_that_holds_itself_or_nothing_yet() -> None:
    net: Any = nn.Linear(2, 2)

    def count(n: int) -> int:
        return 0 if n == 0 else 1 + count(n - 1)

    def later() -> Any:
        return unset

    net.count, net.later = count, later
    made = copied(net)
    assert made.count(3) == 3
    with pytest.raises(NameError):
        made.later()
    unset = 1
    assert net.later() == unset


def test_functions_of_a_copy_share_their_variables() -> None:
    net: Any = nn.Linear(2, 2)
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1

    net.call, net.calls = call, lambda: calls
    made = copied(net)
    made.call()
    assert (made.calls(), net.calls()) == (1, 0)


class LetsGo(Callback):
    alive = True

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        gc.disable()
        try:
            trial = Trial(trainer, pl_module)
            reference = weakref.ref(trial.module)
            del trial
            self.alive = reference() is not None
        finally:
            gc.enable()


@pytest.mark.parametrize("make", [whole, in_place])
def test_a_copy_of_a_compiled_module_is_freed(make: Any) -> None:
    callback = LetsGo()
    L.Trainer(max_steps=0, callbacks=[callback], **QUIET).fit(make(), loader(), loader())
    assert not callback.alive


# What can't be copied, or need not be.


class Locked(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.net[1].lock = threading.Lock()


class Iterates(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.extra = iter(loader())


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Locked, r"Locked.net.1.lock: can't be copied \(cannot pickle '_thread.lock' object\)"),
        (Iterates, r"Iterates.extra: can't be copied"),
    ],
)
def test_an_attribute_that_cannot_be_copied_is_named(kind: type[Plain], message: str) -> None:
    with pytest.raises(UserError, match=message):
        found(kind())


class Data(L.LightningDataModule):
    """Can't be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.lock, self.set = threading.Lock(), loader().dataset

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.set, batch_size=8)


class Refers(Plain):
    def __init__(self, data: Data) -> None:
        super().__init__()
        self.data = data

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        assert self.data.trainer is self.trainer
        return super().training_step(batch, batch_idx)


def test_trainer_and_data_are_not_copied() -> None:
    data = Data()
    assert find_lr(L.Trainer(max_epochs=1, **QUIET), Refers(data), data, steps=3).lr > 0


class HoldsLoader(Plain):
    def __init__(self, held: Any) -> None:
        super().__init__()
        self.held = held

    def on_train_start(self) -> None:
        assert self.held[0] is self.trainer.train_dataloader.dataset
        assert self.held[1] is self.trainer.val_dataloaders


def test_loaders_and_data_sets_are_not_copied() -> None:
    train, val = loader(), loader()
    choice = find_lr(
        L.Trainer(max_epochs=1, **QUIET),
        HoldsLoader((train.dataset, val)),
        train_dataloaders=train,
        val_dataloaders=val,
        steps=3,
    )
    assert choice.lr > 0
