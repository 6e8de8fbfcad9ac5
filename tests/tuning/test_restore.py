"""After a search, the run that follows is the one that would have been."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.profilers import SimpleProfiler
from quiet_runs import QUIET, SMALL
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

from dlblocks.errors import UserError
from dlblocks.tuning.batch_size import find_batch_size
from dlblocks.tuning.learning_rate import LearningRateFinder, find_lr
from dlblocks.tuning.restore import same_order

pytestmark = SMALL

# With Lightning's look at validation before the run.
LOOKED = {**QUIET, "num_sanity_val_steps": 2}
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


class InPlace(Ordered):
    """Its list, deque, array and tensor go on from where the last epoch left them."""

    def __init__(self) -> None:
        self.order, self.turn = list(range(N)), deque(range(N))
        self.array, self.tensor = np.arange(N), torch.arange(N)
        self.counts: dict[str, int] = {}

    def __iter__(self) -> Iterator[int]:
        random.Random(len(self.order)).shuffle(self.order)
        self.turn.rotate(1)
        self.array[:] = self.array[[*range(1, N), 0]]
        self.tensor.copy_(self.tensor.roll(3))
        self.counts["epoch"] = self.counts.get("epoch", 0) + 1
        draws = [(self.turn[i] * 7 + int(self.array[i]) * 5 + int(self.tensor[i])) % N for i in range(N)]
        keys = [self.order[draw] + self.counts["epoch"] * draw for draw in draws]
        return iter(sorted(range(N), key=keys.__getitem__))


class CountsBatches:
    """A batch sampler that is no Sampler; its first count is its class's."""

    epoch = 0

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng(self.epoch).permutation(N).tolist()
        self.epoch += 1
        yield from (order[i : i + 8] for i in range(0, N, 8))

    def __len__(self) -> int:
        return N // 8


class CountsReads(TensorDataset):
    reads = 0

    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        self.reads += 1
        return x + self.reads, y


class CountsEpochs(IterableDataset[Any]):
    def __init__(self) -> None:
        self.epoch = 0

    def __iter__(self) -> Iterator[Any]:
        self.epoch += 1
        data = table()
        return (data[i] for i in np.random.default_rng(self.epoch).permutation(N).tolist())


class Noisy(TensorDataset):
    def __getitem__(self, index: int) -> Any:
        x, y = super().__getitem__(index)
        return x + torch.randn(4), y


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
    return L.Trainer(max_epochs=2, reload_dataloaders_every_n_epochs=1, **LOOKED, **more)


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


COUNTING: dict[str, Callable[[], DataLoader[Any]]] = {
    "order in place": lambda: DataLoader(table(), 8, sampler=InPlace()),
    "batch sampler": lambda: DataLoader(table(), batch_sampler=CountsBatches()),  # type: ignore[arg-type]
    "reads": lambda: DataLoader(CountsReads(*table().tensors), 8),
    "epochs of a stream": lambda: DataLoader(CountsEpochs(), 8),
}


@pytest.mark.parametrize("place", COUNTING)
def test_what_counts_or_keeps_an_order_of_its_own(place: str) -> None:
    check_order(COUNTING[place], "rate")


def test_data_is_not_copied() -> None:
    data = table()
    data.large = torch.zeros(2**20 + 1)
    data.small = torch.zeros(3)
    with same_order(DataLoader(data, 8)):
        data.large += 1
        data.small += 1
        data.new = 1
    assert (data.large.sum(), data.small.sum()) == (2**20 + 1, 0)
    assert not hasattr(data, "new")


def test_workers_that_a_loader_keeps_are_those_of_the_run() -> None:
    """Those of the search would have drawn from their random states; others may have been started before."""

    def make() -> DataLoader[Any]:
        return DataLoader(Noisy(*table().tensors), 8, num_workers=1, persistent_workers=True)

    trained = []
    for finds in (False, True):
        for started in (False, True):
            finder, module, loader = LearningRateFinder(min_lr=1e-3, max_lr=1e-2), Recorder(), make()
            fitted = L.Trainer(max_epochs=2, callbacks=[finder] if finds else [], **LOOKED)
            torch.manual_seed(5)
            if started:
                iter(loader)
            fitted.fit(module, loader)
            trained.append(module.seen)
    for plain, found in (trained[::2], trained[1::2]):
        assert all(map(torch.equal, plain, found))


def test_a_generator_is_refused() -> None:
    batches = (batch for batch in list(DataLoader(table(), 8)))
    once = "train_dataloaders: a generator gives its batches only once"
    with pytest.raises(UserError, match=once):
        find_lr(trainer(), Recorder(), train_dataloaders=batches)
    with pytest.raises(UserError, match=once):
        trainer(callbacks=[LearningRateFinder()]).fit(Recorder(), batches)
    assert len(list(batches)) == 3


# The module.


class Hooked(Recorder):
    """Its hooks change all that a module has."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.batches, self.extra = 0, None
        self.tied = self.net[0].weight

    def setup(self, stage: str) -> None:  # noqa: ARG002
        nn.init.normal_(self.net[0].weight)
        self.net[1].weight = nn.Parameter(torch.zeros(3))
        self.extra = self.extra or nn.Linear(1, 1)
        self.register_buffer("late", torch.ones(1))
        nn.utils.parametrizations.weight_norm(self.net[0])

    def on_fit_start(self) -> None:
        nn.init.zeros_(self.net[1].bias)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ARG002
        self.batches += 1
        self.mean += batch[0].mean(0)
        return batch[0] - self.mean * 1e-3 * self.batches, batch[1]

    def teardown(self, stage: str) -> None:  # noqa: ARG002
        nn.init.ones_(self.net[1].bias)


@pytest.mark.parametrize("ending", [None, RuntimeError("broken"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_what_hooks_do_to_the_module_is_undone(precision: Any, ending: BaseException | None) -> None:
    module, plain = Hooked(), Hooked()
    module.ending = ending
    names, parameters = set(vars(module)), dict(module.named_parameters())
    found = trainer(precision=precision)
    if ending is None:
        find_lr(found, module, train_dataloaders=DataLoader(table(), 8), min_lr=1e-3, max_lr=1e-2)
    else:
        with pytest.raises(type(ending)):
            find_lr(found, module, train_dataloaders=DataLoader(table(), 8), min_lr=1e-3, max_lr=1e-2)
    assert type(module.net[0]) is nn.Linear
    assert {name: id(p) for name, p in module.named_parameters()} == {n: id(p) for n, p in parameters.items()}
    assert (set(vars(module)), module.batches, module.extra) == (names, 0, None)
    assert module.state_dict().keys() == plain.state_dict().keys()
    assert all(value.equal(plain.state_dict()[name]) for name, value in module.state_dict().items())


def test_the_run_after_a_search_in_it_sees_the_first_batches_as_the_first() -> None:
    trained = []
    for callbacks in ([], [LearningRateFinder(min_lr=1e-3, max_lr=1e-2)]):
        module = Hooked()
        torch.manual_seed(3)
        L.Trainer(max_epochs=2, callbacks=callbacks, **LOOKED).fit(module, DataLoader(table(), 8))
        trained.append(module.seen)
    assert all(map(torch.equal, *trained))


def test_a_data_module_that_counts_its_batches() -> None:
    class Counts(Data):
        batches = 0

        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ARG002
            self.batches += 1
            return batch

    data = Counts(np.random.default_rng(3))
    find_lr(trainer(), Recorder(), data, min_lr=1e-3, max_lr=1e-2)
    assert data.batches == 0


def test_a_lazy_layer_stays_what_it_has_become() -> None:
    class Lazy(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.LazyLinear(3))

        def setup(self, stage: str) -> None:  # noqa: ARG002
            self.net(torch.ones(1, 4))

    module = Lazy()
    find_lr(trainer(), module, train_dataloaders=DataLoader(table(), 8), min_lr=1e-3, max_lr=1e-2)
    trainer().fit(module, DataLoader(table(), 8))
    assert type(module.net[0]) is nn.Linear


# The Trainer.


def test_a_trainer_that_has_trained_keeps_what_it_knows(tmp_path: Path) -> None:
    class Logs(Recorder):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            self.log("loss", loss)
            self.log("val_loss", loss)
            return loss

    def known(fitted: L.Trainer) -> list[Any]:
        return [
            dict(fitted.callback_metrics),
            dict(fitted.logged_metrics),
            fitted.train_dataloader,
            fitted.val_dataloaders,
            fitted.num_training_batches,
            fitted.num_val_batches,
            fitted.val_check_batch,  # type: ignore[attr-defined]
            fitted.accumulate_grad_batches,
            fitted.profiler,  # type: ignore[attr-defined]
        ]

    module = Logs()
    module.validation_step = module.training_step  # type: ignore[method-assign]
    profiler = SimpleProfiler(dirpath=tmp_path, filename="seen")
    fitted = L.Trainer(max_epochs=1, profiler=profiler, **LOOKED)
    given = {"train_dataloaders": DataLoader(table(), 8), "val_dataloaders": DataLoader(table(), 4)}
    fresh = known(fitted)
    find_lr(fitted, module, **given, min_lr=1e-3, max_lr=1e-2)
    assert known(fitted) == fresh
    assert list(tmp_path.iterdir()) == []
    fitted.fit(module, **given)
    after = known(fitted)
    assert after[0]
    find_lr(fitted, module, **given, min_lr=1e-3, max_lr=1e-2)
    assert known(fitted) == after


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
