"""After a search, the run that follows is the one that would have been."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    TensorDataset,
    default_collate,
)

from dlblocks.tuning.batch_size import find_batch_size
from dlblocks.tuning.learning_rate import find_lr

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
}
N = 24


class Recorder(L.LightningModule):
    """Keeps the batches it trains on; copies of it may end a search."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        self.register_buffer("shift", torch.full((4,), 1 / 3))
        self.seen: list[torch.Tensor] = []
        self.ending: BaseException | None = None

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:  # noqa: ARG002
        if self.ending is not None and len(self.seen) == 1:
            raise self.ending
        self.seen.append(batch[0].clone())
        return nn.functional.cross_entropy(self.net(batch[0] + self.shift), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def table() -> TensorDataset:
    x = torch.randn(N, 4, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, torch.arange(N) % 3)


GENERATORS: dict[str, tuple[Callable[[], Any], Callable[[Any], float]]] = {
    "torch": (lambda: torch.Generator().manual_seed(3), lambda g: float(torch.rand(1, generator=g))),
    "numpy": (lambda: np.random.default_rng(3), lambda g: g.random()),
    "numpy_old": (lambda: np.random.RandomState(3), lambda g: g.rand()),
    "python": (lambda: random.Random(3), lambda g: g.random()),
}


class Ordered(Sampler[int]):
    def __init__(self, draw: Callable[[], float]) -> None:
        self.draw = draw

    def __iter__(self) -> Iterator[int]:
        keys = [self.draw() for _ in range(N)]
        return iter(sorted(range(N), key=keys.__getitem__))

    def __len__(self) -> int:
        return N


class Epochs(Ordered):
    """Has no generator: the order follows from the epochs it has counted."""

    def __init__(self) -> None:
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        self.epoch += 1
        return iter(np.random.default_rng(self.epoch).permutation(N).tolist())


class Batched(BatchSampler):
    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__(range(N), 8, False)
        self.draw = draw

    def __iter__(self) -> Iterator[list[int]]:
        keys = [self.draw() for _ in range(N)]
        order = sorted(range(N), key=keys.__getitem__)
        yield from (order[i : i + 8] for i in range(0, N, 8))


class Augmented(Dataset[Any]):
    def __init__(self, draw: Callable[[], float]) -> None:
        self.table, self.draw = table(), draw

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        x, y = self.table[index]
        return x + self.draw(), y


class Stream(IterableDataset[Any]):
    def __init__(self, draw: Callable[[], float]) -> None:
        self.draw = draw

    def __iter__(self) -> Iterator[Any]:
        return ((x + self.draw(), y) for x, y in table())


class Collate:
    def __init__(self, draw: Callable[[], float]) -> None:
        self.draw = draw

    def __call__(self, rows: list[Any]) -> Any:
        x, y = default_collate(rows)
        return x + self.draw(), y


class Data(L.LightningDataModule):
    """Makes its loader anew each time, with a generator of its own."""

    def __init__(self, generator: Any) -> None:
        super().__init__()
        self.generator, self.batch_size = generator, 8

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(table(), self.batch_size, sampler=self.generator.permutation(N).tolist())


def closure(draw: Callable[[], float]) -> Callable[[list[Any]], Any]:
    return lambda rows: [default_collate(rows)[0] + draw(), default_collate(rows)[1]]


LOADERS: dict[str, Callable[[Callable[[], float]], DataLoader[Any]]] = {
    "sampler": lambda draw: DataLoader(table(), 8, sampler=Ordered(draw)),
    "batch_sampler": lambda draw: DataLoader(table(), batch_sampler=Batched(draw)),
    "dataset": lambda draw: DataLoader(Augmented(draw), 8),
    "subset": lambda draw: DataLoader(ConcatDataset([Subset(Augmented(draw), range(N))]), 8),
    "stream": lambda draw: DataLoader(Stream(draw), 8),
    "collate_fn": lambda draw: DataLoader(table(), 8, collate_fn=Collate(draw)),
    "bound_method": lambda _: DataLoader(table(), 8, sampler=Ordered(np.random.default_rng(3).random)),
    "closure": lambda draw: DataLoader(table(), 8, collate_fn=closure(draw)),
}


def trainer(**more: Any) -> L.Trainer:
    return L.Trainer(max_epochs=2, reload_dataloaders_every_n_epochs=1, **QUIET, **more)


def search(module: L.LightningModule, data: Any, what: str) -> None:
    where = {"datamodule": data} if isinstance(data, Data) else {"train_dataloaders": data}
    if what == "size":
        find_batch_size(trainer(), module, **where, sizes=[2, 4])
    else:
        find_lr(trainer(), module, **where, min_lr=1e-3, max_lr=1e-2)


def run(make: Callable[[], Any], searched: Callable[[Recorder, Any], None]) -> Recorder:
    """A run on newly made data, after a search in them."""
    module, data = Recorder(), make()
    torch.manual_seed(5)
    searched(module, data)
    trainer().fit(module, data)
    return module


def check_order(make: Callable[[], Any], *whats: str) -> None:
    plain = run(make, lambda *_: None)
    assert len(plain.seen) == 6
    assert not plain.seen[0].equal(plain.seen[3])  # each epoch has its own

    def broken(ending: BaseException, what: str) -> Callable[[Recorder, Any], None]:
        def searched(module: Recorder, data: Any) -> None:
            module.ending = ending
            with pytest.raises(type(ending)):
                search(module, data, what)
            module.ending = None

        return searched

    for what in whats:
        for searched in (
            partial(search, what=what),
            broken(RuntimeError("broken"), what),
            broken(KeyboardInterrupt(), what),
        ):
            after = run(make, searched)
            assert all(map(torch.equal, after.seen, plain.seen))
            assert len(after.seen) == len(plain.seen)
            for name, value in plain.state_dict().items():
                assert after.state_dict()[name].equal(value), name


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("place", ["sampler", "dataset"])
def test_generators_of_every_kind(kind: str, place: str) -> None:
    make, drawn = GENERATORS[kind]
    check_order(lambda: LOADERS[place](partial(drawn, make())), "size")


@pytest.mark.parametrize("place", [place for place in LOADERS if place not in ("sampler", "dataset")])
def test_generators_in_every_place(place: str) -> None:
    make, drawn = GENERATORS["numpy"]
    check_order(lambda: LOADERS[place](partial(drawn, make())), "rate")


def test_the_generator_of_a_data_module() -> None:
    check_order(lambda: Data(np.random.default_rng(3)), "size", "rate")


def test_a_sampler_that_counts_its_epochs() -> None:
    check_order(lambda: DataLoader(table(), 8, sampler=Epochs()), "size")


def test_the_global_generator() -> None:
    check_order(lambda: DataLoader(table(), 8, sampler=RandomSampler(range(N))), "size")


@pytest.mark.parametrize("ending", [None, RuntimeError("broken"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_a_converted_module_comes_back(precision: Any, ending: BaseException | None) -> None:
    module = Recorder()
    module.ending = ending
    (module.net[0](torch.ones(1, 4)).sum()).backward()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    gradient = module.net[0].weight.grad.clone()
    fitted = trainer(precision=precision)
    if ending is None:
        find_batch_size(fitted, module, train_dataloaders=DataLoader(table(), 8), sizes=[2])
    else:
        with pytest.raises(type(ending)):
            find_batch_size(fitted, module, train_dataloaders=DataLoader(table(), 8), sizes=[2])
    assert module.dtype == torch.float32
    assert module.net[0].weight.grad.equal(gradient)
    for name, value in module.state_dict().items():
        assert value.dtype == before[name].dtype
        assert value.equal(before[name]), name
