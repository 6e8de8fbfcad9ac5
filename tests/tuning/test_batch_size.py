"""`find_batch_size` and its callback on anybody's modules and data."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from quiet_runs import FEW_BATCHES, QUIET, SMALL, run_script
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, TensorDataset

import dlblocks
from dlblocks.errors import UserError
from dlblocks.tuning import batches, measuring, memory
from dlblocks.tuning.batch_choice import UPDATES
from dlblocks.tuning.batch_size import BatchSizeFinder, find_batch_size
from dlblocks.tuning.trial import Trial

pytestmark = [*SMALL, FEW_BATCHES]


class Foreign(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(6, 3)
        self.seen: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:  # noqa: ARG002
        self.seen.append(len(batch[0]))
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        total = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Data(L.LightningDataModule):
    """Of a foreign project. It reads `batch`, has a `batch_size` nobody reads, and shuffles with a generator."""

    def __init__(self, n: int = 300, drop_last: bool = False) -> None:
        super().__init__()
        self.n, self.drop_last = n, drop_last
        self.batch, self.batch_size = 7, 5
        self.generator = torch.Generator().manual_seed(3)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(
            table(self.n), self.batch, shuffle=True, generator=self.generator, drop_last=self.drop_last
        )

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(table(50), self.batch)


def table(n: int) -> TensorDataset:
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, x[:, :3].argmax(1))


def trainer(**more: Any) -> L.Trainer:
    return L.Trainer(**{"max_epochs": 2, **QUIET, **more})


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], float]], list[int]]:
    """Give every size a known number of instances a second; returns the sizes whose time was taken."""

    def set_speed(speed: Callable[[int], float]) -> list[int]:
        tried: list[int] = []

        def seconds(trial: Trial, train: Any, judged: Any) -> float:
            size = len(train[0][0])
            trial.step(train[:1])
            if judged:
                trial.validate(judged)
            if tried[-1:] != [size]:  # the first one runs twice
                tried.append(size)
            return size / speed(size)

        monkeypatch.setattr(measuring, "_seconds_a_step", seconds)
        return tried

    return set_speed


def saturating(size: int) -> float:
    """Fixed costs of a step and costs of an instance: 80 % of the greatest speed at size 40."""
    return 1000 * size / (size + 10)


# What is chosen.


def test_the_knee_is_chosen_not_the_fastest(known: Any) -> None:
    tried = known(saturating)
    choice = find_batch_size(trainer(), Foreign(), Data(20_000), attribute="batch")
    best = max(one.samples_per_second for one in choice.measured)
    assert choice.size == min(size for size in tried if saturating(size) >= 0.8 * best) == 64
    assert re.match(
        r"batch size 64 \(865 instances a second\): 87% of the speed of 1024;", choice.explanation
    )


def test_an_epoch_keeps_its_updates(known: Any) -> None:
    known(lambda size: float(size))
    choice = find_batch_size(trainer(), Foreign(), Data(300), attribute="batch")
    assert choice.size == 32
    assert math.ceil(300 / 32) == UPDATES
    assert "updates an epoch" in choice.explanation


@pytest.mark.parametrize(
    ("n", "limits", "size", "updates"),
    [
        (300, {"accumulate_grad_batches": 4}, 8, 10),
        (15, {}, 2, 8),
        (2000, {"limit_train_batches": 3}, 512, 3),
    ],
)
def test_updates_are_those_of_the_run(
    known: Any, n: int, limits: dict[str, Any], size: int, updates: int
) -> None:
    """With accumulation, and as many as a small set or a limit leaves."""
    known(lambda size: float(size))
    choice = find_batch_size(trainer(**limits), Steady(), Data(n), attribute="batch")
    fitted = trainer(max_epochs=1, **limits)
    data = Data(n)
    data.batch = choice.size
    fitted.fit(Steady(), data)
    chosen = next(one for one in choice.measured if one.size == choice.size)
    assert (choice.size, chosen.updates_per_epoch) == (size, updates)
    assert fitted.global_step == updates


def test_a_slow_moment_does_not_end_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def seconds(trial: Trial, train: Any, _: Any) -> float:
        tried.append(len(train[0][0]))
        trial.step(train[:1])
        return 100.0 if tried[-1] in (8, 16) and tried.count(tried[-1]) == 1 else 1.0

    monkeypatch.setattr(measuring, "_seconds_a_step", seconds)
    choice = find_batch_size(trainer(), Steady(), Data(10_000), attribute="batch", max_size=128)
    assert [one.size for one in choice.measured] == [2, 4, 8, 16, 32, 64, 128]
    assert choice.size == 128


def test_each_size_is_timed_over_several_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    take = Trial.step

    def counted(trial: Trial, batches: Any) -> float:
        steps[-1] += 1
        return take(trial, batches)

    begin = Trial.__init__

    def begun(trial: Trial, *given: Any, **named: Any) -> None:
        steps.append(0)
        begin(trial, *given, **named)

    monkeypatch.setattr(Trial, "step", counted)
    monkeypatch.setattr(Trial, "__init__", begun)
    monkeypatch.setattr(Trial, "gradient_lengths", lambda *_: (math.nan, math.nan))
    monkeypatch.setattr(measuring, "_SECONDS", 0)
    find_batch_size(trainer(), Steady(), Data(60), attribute="batch", sizes=[4, 8])
    assert steps[:3] == [6, 6, 6]  # the first one is not timed


def test_only_sizes_that_ran_are_returned(known: Any) -> None:
    tried = known(lambda size: float(size))
    choice = find_batch_size(trainer(), Foreign(), Data(100), attribute="batch")
    assert tried == [2, 4, 8, 16, 32, 64]
    assert choice.size in tried


@pytest.mark.parametrize(
    ("max_size", "sizes"), [(100, [2, 4, 8, 16, 32, 64]), (64, [2, 4, 8, 16, 32, 64]), (1, [1])]
)
def test_the_largest_size_is_respected(known: Any, max_size: int, sizes: list[int]) -> None:
    tried = known(lambda size: float(size))
    find_batch_size(trainer(), Foreign(), Data(10_000), attribute="batch", max_size=max_size)
    assert tried == sizes


def test_sizes_of_ones_own(known: Any) -> None:
    tried = known(saturating)
    choice = find_batch_size(trainer(), Foreign(), Data(10_000), attribute="batch", sizes=[48, 12, 96])
    assert tried == [12, 48, 96]
    assert choice.size == 48


def test_drop_last_leaves_a_batch(known: Any) -> None:
    tried = known(lambda size: float(size))
    find_batch_size(trainer(), Foreign(), Data(100, drop_last=True), attribute="batch")
    assert max(tried) == 64


def test_sizes_far_past_the_knee_are_left_out(known: Any) -> None:
    tried = known(lambda size: min(size, 8) * 100.0)
    find_batch_size(trainer(), Foreign(), Data(10_000), attribute="batch")
    assert max(tried) == 32


def test_an_effective_size_is_made_up_exactly(known: Any) -> None:
    tried = known(saturating)
    choice = find_batch_size(trainer(), Foreign(), Data(10_000), attribute="batch", effective=96)
    assert tried == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 96]
    assert choice.size * choice.accumulate == choice.effective == 96
    assert choice.size == 32
    assert "batches for each update" in choice.explanation


def test_sizes_and_an_effective_size(known: Any) -> None:
    tried = known(saturating)
    settings: dict[str, Any] = {"attribute": "batch", "sizes": [48, 8, 8, 20], "effective": 96}
    assert find_batch_size(trainer(), Foreign(), Data(10_000), **settings).accumulate == 2
    assert tried == [8, 48]


def test_loaders_given_to_fit_are_built_anew(known: Any) -> None:
    tried = known(saturating)
    loader, fixed = DataLoader(table(2000), batch_size=5, shuffle=True), DataLoader(table(20), batch_size=5)
    choice = find_batch_size(trainer(), Foreign(), train_dataloaders=loader, val_dataloaders=fixed)
    assert choice.size in tried
    assert loader.batch_size == 5


def test_picture_and_table(tmp_path: Path) -> None:
    data = dlblocks.TableDataModule("wine")
    data.setup()
    module = dlblocks.LitModule(task="multiclass", input_shape=data.input_shape, outputs=3)
    choice = find_batch_size(trainer(), module, data, class_counts=list(data.class_counts.values()))
    choice.save(tmp_path)
    assert (tmp_path / "batch_size_finder.png").stat().st_size > 5000
    rows = (tmp_path / "batch_size_finder.csv").read_text().splitlines()
    assert len(rows) == 1 + len(choice.measured)
    assert all(one.class_deviation for one in choice.measured)
    assert "class shares in a batch" in choice.explanation
    assert data.batch_size == 32


# Limits of the Trainer.


@pytest.mark.parametrize(
    ("limits", "sizes", "reason"),
    [
        ({"val_check_interval": 20}, [2, 4, 8], "val_check_interval"),
        ({"limit_train_batches": 0.1}, [2, 4, 8, 16], "limit_train_batches|0.1 of the `train_dataloader`"),
        ({"limit_val_batches": 0.25}, [2, 4, 8, 16], "0.25 of the `val_dataloader`"),
    ],
    ids=str,
)
def test_a_size_that_is_not_legal_ends_the_search(
    known: Any, limits: dict[str, Any], sizes: list[int], reason: str
) -> None:
    tried = known(lambda size: float(size))
    choice = find_batch_size(trainer(**limits), Foreign(), Data(200), attribute="batch")
    assert tried == [one.size for one in choice.measured] == sizes
    assert re.search(f"{2 * sizes[-1]} is not legal: .*({reason})", choice.explanation)


def test_the_size_at_first_need_not_be_legal(known: Any) -> None:
    known(lambda size: float(size))
    data = Data(60)
    data.batch = 60
    fitted = trainer(max_epochs=1, val_check_interval=10, callbacks=[BatchSizeFinder("batch")])
    module = Steady()
    fitted.fit(module, data)
    assert data.batch == 4
    assert len(module.seen) >= 15


def test_no_size_is_legal() -> None:
    with pytest.raises(UserError, match=r"no size to try: 1 is not legal: .*0.001 \* 60 < 1"):
        find_batch_size(trainer(limit_train_batches=0.001), Steady(), Data(60), attribute="batch")


def test_an_effective_size_above_an_epoch() -> None:
    with pytest.raises(UserError, match=r"effective_batch_size=61: must be at most 60"):
        find_batch_size(trainer(), Foreign(), Data(60), attribute="batch", effective=61)


def test_an_effective_size_within_a_limited_epoch(known: Any) -> None:
    """Of 4 batches, 64 instances can't be made up with less than 16 in each."""
    tried = known(lambda size: float(size))
    find_batch_size(trainer(limit_train_batches=4), Foreign(), Data(300), attribute="batch", effective=64)
    assert tried == [16, 32, 64]


# Values do not matter.


class Steady(Foreign):
    """Has no schedule that counts batches, and a rate of its own."""

    def __init__(self, rate: float = 0.1, optimizer: Any = torch.optim.SGD) -> None:
        super().__init__()
        self.rate, self.optimizer = rate, optimizer

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters(), lr=self.rate)


class Strict(Steady):
    """Refuses what is not finite, as distributions do."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step((batch[0] * 10, batch[1]), batch_idx).square()
        if not loss.isfinite():
            raise ValueError("expected finite values")
        return loss


class Spoiler(torch.optim.SGD):
    """Leaves the finite whatever the rate."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.fill_(torch.nan)
        return loss


@pytest.mark.parametrize(
    ("rate", "optimizer"), [(1e6, torch.optim.SGD), (100.0, torch.optim.LBFGS), (0.1, Spoiler)], ids=str
)
def test_a_rate_that_diverges_does_not_matter(rate: float, optimizer: Any) -> None:
    module = Strict(rate, optimizer)
    with pytest.raises(ValueError, match="finite"):
        trainer(limit_val_batches=0).fit(Strict(rate, optimizer), Data(60))
    choice = find_batch_size(trainer(), module, Data(60), attribute="batch", sizes=[8])
    assert choice.size == 8
    assert choice.noise_scale is not None


def test_lbfgs_looks_as_often_at_a_batch_as_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []

    class Counted(torch.optim.LBFGS):
        def step(self, closure: Any) -> Any:
            looks.append(0)

            def counted() -> Any:
                looks[-1] += 1
                return closure()

            return super().step(counted)

    monkeypatch.setattr(measuring, "_SECONDS", 0)
    find_batch_size(trainer(), Steady(0.1, Counted), Data(60), attribute="batch", sizes=[8])
    assert set(looks) == {20}  # max_iter


# Batches of any shape.


class Shaped(Steady):
    """Gets instances and classes back out of whatever its data make of them."""

    def __init__(self, unpack: Callable[[Any], tuple[torch.Tensor, torch.Tensor]]) -> None:
        super().__init__()
        self.unpack = unpack

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(self.unpack(batch), batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.training_step(batch, batch_idx)


class Stream(IterableDataset[Any]):
    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Any:
        return iter(table(self.n))


class Batching(IterableDataset[Any]):
    """Makes batches itself, of a size that its loader does not know."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self) -> Any:
        x, y = table(300).tensors
        return zip(x.T.split(self.size, 1), y.split(self.size), strict=True)


def rows(batch: list[Any]) -> tuple[Any, Any]:
    x, y = zip(*batch, strict=True)
    return x, y


def time_first(batch: list[Any]) -> tuple[Any, Any]:
    x, y = rows(batch)
    return torch.stack(x).T.contiguous(), torch.stack(y)


def scalar_first(batch: list[Any]) -> dict[str, Any]:
    x, y = rows(batch)
    return {"scale": torch.tensor(1.0), "x": torch.stack(x), "y": torch.stack(y)}


SHAPES: dict[str, tuple[Callable[[int], DataLoader[Any]], Callable[[Any], Any]]] = {
    "stream": (lambda size: DataLoader(Stream(300), size), lambda batch: batch),
    "detection": (
        lambda size: DataLoader(table(300), size, collate_fn=rows),
        lambda batch: (torch.stack(batch[0]), torch.stack(batch[1])),
    ),
    "stream_detection": (
        lambda size: DataLoader(Stream(300), size, collate_fn=rows),
        lambda batch: (torch.stack(batch[0]), torch.stack(batch[1])),
    ),
    "time_first": (
        lambda size: DataLoader(table(300), size, collate_fn=time_first),
        lambda batch: (batch[0].T, batch[1]),
    ),
    "scalar_first": (
        lambda size: DataLoader(table(300), size, collate_fn=scalar_first),
        lambda batch: (batch["x"], batch["y"]),
    ),
    "batch_sampler": (
        lambda size: DataLoader(table(300), batch_sampler=BatchSampler(range(300), size, False)),
        lambda batch: batch,
    ),
    "own_batches": (
        lambda size: DataLoader(Batching(size), batch_size=None),
        lambda batch: (batch[0].T, batch[1]),
    ),
}


class ShapedData(Data):
    def __init__(self, make: Callable[[int], DataLoader[Any]]) -> None:
        super().__init__()
        self.make = make

    def train_dataloader(self) -> DataLoader[Any]:
        return self.make(self.batch)

    def val_dataloader(self) -> Any:
        return []


@pytest.mark.parametrize("shape", SHAPES)
def test_batches_of_any_shape(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, unpack = SHAPES[shape]
    got: list[int] = []

    def seconds(trial: Trial, train: Any, _: Any) -> float:
        if got[-1:] != [size := len(unpack(train[0])[1])]:  # the first one runs twice
            got.append(size)
        assert {len(unpack(batch)[1]) for batch in train} == {size}
        return trial.step(train[:1]) and 1.0

    monkeypatch.setattr(measuring, "_seconds_a_step", seconds)
    choice = find_batch_size(trainer(), Shaped(unpack), ShapedData(make), attribute="batch", max_size=128)
    assert got == [one.size for one in choice.measured] == [2, 4, 8, 16, 32, 64, 128]
    assert choice.size == 32  # 10 updates an epoch, also where it has no length


def test_a_stream_given_to_fit(known: Any) -> None:
    tried = known(lambda size: float(size))
    choice = find_batch_size(trainer(), Steady(), train_dataloaders=DataLoader(Stream(300), 5))
    assert tried == [2, 4, 8, 16, 32, 64, 128, 256]
    assert choice.size == 32
    assert choice.measured[0].updates_per_epoch is None


def test_few_batches_of_a_stream_need_not_be_all(known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many are held as fit into the memory set aside for them."""
    known(lambda size: float(size))
    monkeypatch.setattr(batches, "LIMIT", 3 * 32 * 32)
    choice = find_batch_size(trainer(), Steady(), train_dataloaders=DataLoader(Stream(3000), 5), max_size=256)
    assert choice.size == 256
    assert {one.updates_per_epoch for one in choice.measured} == {None}


@pytest.mark.parametrize("shape", ["detection", "time_first", "own_batches"])
def test_no_effect_on_batches_of_any_shape(shape: str) -> None:
    make, unpack = SHAPES[shape]
    with pytest.raises(UserError, match=r"batch_size=2: has no effect, .*(have 7 instances|stay the same)"):
        find_batch_size(trainer(), Shaped(unpack), ShapedData(make))


def test_a_set_of_one_instance(known: Any) -> None:
    known(lambda size: float(size))
    assert find_batch_size(trainer(), Steady(), Data(1), attribute="batch").size == 1


def test_a_set_smaller_than_the_sizes() -> None:
    with pytest.raises(UserError, match="no size to try, given the instances"):
        find_batch_size(trainer(), Steady(), Data(5), attribute="batch", sizes=[8, 16])


# Loaders that were given to `fit`.


class Fives(DataLoader[Any]):
    def __iter__(self) -> Any:
        for x, y in super().__iter__():
            yield torch.full_like(x, 5.0), y


def test_a_loader_keeps_its_class(known: Any) -> None:
    known(lambda size: float(size))
    seen: list[torch.Tensor] = []

    class Seeing(Steady):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            seen.append(batch[0])
            return super().training_step(batch, batch_idx)

    trainer(max_epochs=1, callbacks=[BatchSizeFinder()]).fit(Seeing(), Fives(table(300), batch_size=5))
    assert all((x == 5).all() for x in seen)
    assert len(seen[-2]) == 32


def test_a_batch_sampler_keeps_its_sampler(known: Any) -> None:
    """And whether it drops the last batch."""
    known(lambda size: float(size))
    weights = [1.0] * 40 + [0.0] * 360
    sampler = BatchSampler(torch.utils.data.WeightedRandomSampler(weights, 330), 8, drop_last=True)
    data = TensorDataset(torch.arange(400.0)[:, None].expand(400, 6), torch.zeros(400, dtype=torch.long))
    drawn: list[float] = []

    class Drawing(Steady):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            drawn.extend(batch[0][:, 0].tolist())
            return super().training_step(batch, batch_idx)

    fitted = trainer(max_epochs=1, callbacks=[BatchSizeFinder()])
    fitted.fit(Drawing(), DataLoader(data, batch_sampler=sampler))
    assert fitted.global_step == 10
    assert len(drawn) >= 320
    assert max(drawn) < 40


def test_the_size_comes_before_the_rate() -> None:
    fitted = trainer(callbacks=[dlblocks.LearningRateFinder(), BatchSizeFinder("batch")])
    with pytest.raises(UserError, match="has to come before the LearningRateFinder"):
        fitted.fit(Steady(), Data())


# Steps that want some instances.


class Normalised(Steady):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3))


def test_no_last_batch_of_one_is_left_to_a_batch_norm(known: Any) -> None:
    known(lambda size: float(size))
    choice = find_batch_size(trainer(), Normalised(), Data(641), attribute="batch", sizes=[16, 32, 50])
    assert [one.size for one in choice.measured] == [50]
    with pytest.raises(UserError, match="16 is not legal: it leaves a last batch of one instance"):
        find_batch_size(trainer(), Normalised(), Data(641), attribute="batch", sizes=[16])


def test_sizes_that_are_too_small_for_a_step_are_left_out(known: Any) -> None:
    known(saturating)
    choice = find_batch_size(trainer(), Normalised(), Data(960), attribute="batch", effective=96)
    assert [one.size for one in choice.measured] == [2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 96]

    class Wants(Steady):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            torch.topk(batch[0][:, 0], 5)
            return super().training_step(batch, batch_idx)

    assert find_batch_size(trainer(), Wants(), Data(960), attribute="batch").measured[0].size == 8


class Tokens(L.LightningDataModule):
    """Batches of sequences with so many tokens in all."""

    def __init__(self) -> None:
        super().__init__()
        self.max_tokens = 100

    def train_dataloader(self) -> DataLoader[Any]:
        taken, groups = 0, [list[int]()]
        for index in range(400):
            length = 10 + index % 20
            if groups[-1] and taken + length > self.max_tokens:
                groups.append([])
                taken = 0
            groups[-1].append(index)
            taken += length
        return DataLoader(table(400), batch_sampler=groups)


def test_a_size_may_be_a_number_of_tokens(known: Any) -> None:
    known(lambda size: float(size))
    settings: dict[str, Any] = {"attribute": "max_tokens", "sizes": [2, 256, 512, 1024]}
    choice = find_batch_size(trainer(), Steady(), Tokens(), **settings)
    assert [one.size for one in choice.measured] == [2, 256, 512, 1024]


# Memory.


class OnlyTrains(Foreign):
    """Validation gives no loss, and its batches are not for training steps."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        assert self.trainer.training
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        assert self.trainer.validating


def test_no_training_step_is_taken_on_validation_batches() -> None:
    given = {"train_dataloaders": DataLoader(table(64), 8), "val_dataloaders": DataLoader(table(64), 8)}
    assert find_batch_size(trainer(), OnlyTrains(), **given, sizes=[8]).size == 8


class Greedy(Foreign):
    """Runs out of memory above a size, in training or in validation."""

    def __init__(self, most: int, where: str = "training") -> None:
        super().__init__()
        self.most, self.where = most, where

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.training == (self.where == "training") and len(batch[0]) > self.most:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"
            )
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("where", ["training", "validation"])
def test_what_does_not_fit_is_not_chosen(known: Any, where: str) -> None:
    known(lambda size: float(size))
    choice = find_batch_size(trainer(), Greedy(20, where), Data(10_000), attribute="batch")
    assert choice.size == 16
    assert [one.size for one in choice.measured if not one.fits] == [32]


class Hungry(Callback):
    """Needs memory of its own for each batch, changes it, and counts."""

    batches = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self.batches += 1
        batch[0].mul_(0)
        if len(batch[0]) > 8:
            raise MemoryError


class Watching(Callback):
    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:  # noqa: ARG002
        if len(batch[0]) > 4:
            raise MemoryError


def test_callbacks_that_are_named_take_part(known: Any) -> None:
    known(lambda size: float(size))
    hungry, watching = Hungry(), Watching()
    fitted = trainer(callbacks=[hungry, watching])
    found = [
        find_batch_size(fitted, Foreign(), Data(10_000), attribute="batch", callbacks=named)
        for named in ([hungry], [hungry, watching])
    ]
    assert [choice.size for choice in found] == [8, 4]
    assert [one.size for one in found[0].measured if not one.fits] == [16]
    assert "took no part" not in found[0].explanation
    assert hungry.batches == 0  # copies did


def test_callbacks_that_are_not_named_are_told_of(known: Any) -> None:
    """They may write files, so that none is run unasked."""
    known(lambda size: float(size))
    hungry = Hungry()
    choice = find_batch_size(trainer(callbacks=[hungry]), Foreign(), Data(), attribute="batch")
    assert choice.size == 32
    assert "callbacks that took no part: Hungry." in choice.explanation
    finder = BatchSizeFinder("batch")
    with pytest.raises(MemoryError):
        trainer(max_epochs=1, callbacks=[finder, Hungry()]).fit(Foreign(), Data())
    assert "callbacks that took no part: Hungry." in finder.choice.explanation


def test_one_instance_where_two_do_not_fit(known: Any) -> None:
    known(lambda size: float(size))
    assert find_batch_size(trainer(), Greedy(1), Data(), attribute="batch").size == 1


def test_no_size_fits(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no size fits into the memory \(tried: 1, 2\)"):
        find_batch_size(trainer(default_root_dir=tmp_path), Greedy(0), Data(), attribute="batch")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("peak", "fits", "stopped"),
    [
        (lambda size: 10 * size, [2, 4, 8, 16, 32, 64], "128 was not tried: .* 1,280 MiB, .* is 800 MiB"),
        # Had the growth gone on as before, 64 would take 420 MiB.
        (lambda size: 900 if size == 64 else 100 + 5 * size, [2, 4, 8, 16, 32], "64 does not fit"),
        # Weights, gradients and the optimizer's state do not grow.
        (lambda size: 700 + size / 2, [2, 4, 8, 16, 32, 64, 128], "256 was not tried: .* 828 MiB"),
    ],
)
def test_a_margin_is_kept_and_growth_foreseen(
    known: Any, monkeypatch: pytest.MonkeyPatch, peak: Callable[[int], float], fits: list[int], stopped: str
) -> None:
    """A system may end a process that takes too much without any error."""
    tried = known(lambda size: float(size))
    monkeypatch.setattr(memory, "available", lambda _: 1000 * 2**20)
    monkeypatch.setattr(memory, "in_use", lambda _: 0)
    monkeypatch.setattr(memory, "peak", lambda _: int(peak(tried[-1]) * 2**20))
    monkeypatch.setattr(Trial, "bytes_of_any_size", lambda _: min(700, peak(2)) * 2**20)
    choice = find_batch_size(trainer(), Foreign(), Data(10_000), attribute="batch")
    assert [one.size for one in choice.measured if one.fits] == fits
    assert choice.size == fits[-1]
    assert choice.memory_limit == 800 * 2**20
    assert re.search(stopped, choice.explanation)


def test_bytes_of_any_size() -> None:
    """Weights, gradients and two moments, and a count of steps for each tensor."""
    measured: list[Trial] = []
    step = Trial.step

    class Adam(Foreign):
        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trial, "step", lambda trial, batches: (measured.append(trial), step(trial, batches))[1])
        find_batch_size(trainer(), Adam(), Data(), attribute="batch", sizes=[4])
    assert measured[0].bytes_of_any_size() == 4 * (6 * 3 + 3) * 4 + 2 * 4


def test_no_noise_scale_where_its_gradients_do_not_fit(known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    known(saturating)

    def runs_out(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(Trial, "gradient_lengths", runs_out)
    choice = find_batch_size(trainer(), Foreign(), Data(), attribute="batch")
    assert choice.size == 32
    assert choice.noise_scale is None


def test_other_errors_come_through() -> None:
    class Broken(Foreign):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:  # noqa: ARG002
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        find_batch_size(trainer(), Broken(), Data(), attribute="batch")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS")
def test_a_real_limit_of_memory() -> None:
    """Each instance takes 4 MB of activations, and the process may take 512 MB more."""
    code = """
import json, resource, warnings, torch, lightning as L
from torch import nn
from dlblocks import LitModule, TableDataModule, find_batch_size
from dlblocks.data.table import Table
from dlblocks.tuning import memory
warnings.simplefilter("ignore")
class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2**19))
        self.out = nn.Linear(4, 3)
    def forward(self, x):
        return self.out(x) + (x[:, :1] * self.scale).sigmoid().mean(1, keepdim=True)
data = TableDataModule(Table.from_arrays(torch.randn(5000, 4), torch.arange(5000) % 3, "multiclass"), eval_batch_size=1)
data.setup()
module = LitModule(task="multiclass", input_shape=(4,), outputs=3, model=Wide())
trainer = L.Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False)
find_batch_size(trainer, module, data, max_size=2)
resource.setrlimit(resource.RLIMIT_AS, (memory._status("VmSize") + 2**29, resource.RLIM_INFINITY))
import dlblocks.tuning.batch_size as b, dlblocks.tuning.measuring as m
m._STEPS, m._SECONDS, m._GRADIENTS = 1, 0, 2
taken = m._seconds_a_step
m._seconds_a_step = lambda trial, train, judged: taken(trial, train, judged) and 1 / len(train[0][0]) ** 2
if BLINDLY:
    b._forecast = lambda *_: 0
choice = find_batch_size(trainer, module, data)
print(json.dumps([[one.size, one.fits, one.memory] for one in choice.measured] + [choice.size]))
"""
    for blindly in ("False", "True"):
        done = subprocess.run(
            [sys.executable, "-c", code.replace("BLINDLY", blindly)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        *measured, size = json.loads(done.stdout.splitlines()[-1])
        assert 8 <= size <= 64
        assert size == max(one for one, fits, _ in measured if fits)
        assert all(taken <= 2**29 for _, fits, taken in measured if fits)
        assert [fits for _, fits, _ in measured].count(False) == (blindly == "True")  # it truly ran out


# What can't be set.


def test_an_attribute_without_effect_is_told() -> None:
    with pytest.raises(UserError, match=r"batch_size=2: has no effect, .* have 7 instances"):
        find_batch_size(trainer(), Foreign(), Data())


def test_a_missing_attribute_is_told() -> None:
    with pytest.raises(UserError, match="Data: has no attribute 'size'"):
        find_batch_size(trainer(), Foreign(), Data(), attribute="size")


def test_an_attribute_that_can_only_be_read_is_told() -> None:
    class Fixed(Data):
        @property
        def size(self) -> int:
            return 5

    with pytest.raises(UserError, match=r"Fixed.size: can't be set"):
        find_batch_size(trainer(), Foreign(), Fixed(), attribute="size")


def test_a_loader_that_cannot_be_built_anew() -> None:
    loader = DataLoader(table(10), batch_sampler=[[0, 1], [2, 3]])
    with pytest.raises(UserError, match="can't be built anew"):
        find_batch_size(trainer(), Foreign(), train_dataloaders=loader)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_size": 0},
        {"effective": 0},
        {"sizes": [0, 2]},
        {"sizes": []},
        {"max_size": "64"},
        {"sizes": [4.5]},
        {"class_counts": [-1, 5]},
    ],
)
def test_wrong_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"must be (at least [01]|a whole number)|sizes=\[\] must hold"):
        find_batch_size(trainer(), Foreign(), Data(), attribute="batch", **settings)


# What must be as it was.


@pytest.mark.parametrize("ending", [None, RuntimeError("broken"), KeyboardInterrupt()], ids=repr)
def test_everything_is_as_it_was(
    ending: BaseException | None, known: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    known(saturating)
    module, data, fitted = Foreign(), Data(), trainer(callbacks=[Callback()])
    weights = module.net.weight.detach().clone()
    generator, random = data.generator.get_state(), torch.get_rng_state()
    callbacks, state = list(fitted.callbacks), (fitted.limit_train_batches, fitted.accumulate_grad_batches)  # type: ignore[attr-defined]
    if ending is None:
        find_batch_size(fitted, module, data, attribute="batch")
    else:

        def breaks(*_: Any) -> float:
            torch.rand(3)
            raise ending

        monkeypatch.setattr(measuring, "_seconds_a_step", breaks)
        with pytest.raises(type(ending)):
            find_batch_size(fitted, module, data, attribute="batch")
    assert (data.batch, data.batch_size) == (7, 5)
    assert module.net.weight.equal(weights)
    assert module.seen == []
    assert torch.get_rng_state().equal(random)
    assert data.generator.get_state().equal(generator)
    assert (list(fitted.callbacks), (fitted.limit_train_batches, fitted.accumulate_grad_batches)) == (
        callbacks,
        state,
    )  # type: ignore[attr-defined]


def test_the_callback_trains_with_the_size(known: Any, tmp_path: Path) -> None:
    known(lambda size: float(size))
    finder, module = BatchSizeFinder("batch", folder=tmp_path), Foreign()
    fitted = trainer(max_epochs=1, callbacks=[finder], limit_val_batches=0)
    fitted.fit(module, Data(300))
    assert finder.choice.size == 32
    assert module.seen == [32] * 9 + [12]
    assert fitted.lr_scheduler_configs[0].scheduler.total_steps == 10
    assert (tmp_path / "batch_size_finder.csv").exists()


def test_the_callback_accumulates_to_an_effective_size(known: Any) -> None:
    known(saturating)
    finder, module = BatchSizeFinder("batch", sizes=None, effective=60, max_size=20), Foreign()
    fitted = trainer(max_epochs=1, callbacks=[finder], limit_val_batches=0)
    fitted.fit(module, Data(300))
    assert fitted.accumulate_grad_batches == 60 // finder.choice.size
    assert fitted.global_step == 5


# Several processes.

DDP = """
import json, sys, torch, lightning as L
from pathlib import Path
from dlblocks import LitModule, TableDataModule, find_batch_size
import dlblocks.tuning.measuring as m
from dlblocks.tuning.batch_size import find_batch_size

trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
data = TableDataModule("digits")
data.setup()
module = LitModule(task="multiclass", input_shape=data.input_shape, outputs=10)
taken = m._seconds_a_step
def seconds(trial, train, judged):
    if trainer.global_rank == 1 and len(train[0][0]) > 50:
        raise MemoryError  # on one of them only
    taken(trial, train, judged)
    return 1e-3 * (1 + trainer.global_rank)  # so that the largest is the fastest
m._seconds_a_step = seconds
choice = find_batch_size(trainer, module, data)
rows = [(one.size, one.fits, round(one.samples_per_second, 3)) for one in choice.measured]
Path(f"choice-{trainer.global_rank}").write_text(json.dumps([choice.size, choice.accumulate, rows, choice.noise_scale]))
"""


def test_two_processes_agree_though_one_runs_out(tmp_path: Path) -> None:
    run_script(tmp_path, DDP)
    first, second = (json.loads((tmp_path / f"choice-{rank}").read_text()) for rank in (0, 1))
    assert first == second
    size, _, rows, scale = first
    assert scale is not None
    # 64 of both together is 32 of each; 128 did not fit the second.
    assert size == 64
    assert [fits for _, fits, _ in rows] == [True] * 6 + [False]
    # Both wait for the slower one.
    assert [speed for *_, speed in rows[:-1]] == [2 ** (i + 1) / 2e-3 for i in range(6)]


FOREIGN_DDP = """
import json, lightning as L, torch
from pathlib import Path
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from dlblocks import BatchSizeFinder

class Data(L.LightningDataModule):
    batch_size = 4
    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.randn(400, 6)), self.batch_size, shuffle=True)

class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 1)
        self.updates = []
        self.instances = 0
    def training_step(self, batch, batch_idx):
        self.instances += len(batch[0])
        return self.net(batch[0]).square().mean()
    def on_before_optimizer_step(self, optimizer):
        self.updates.append(self.instances)
        self.instances = 0
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

finder, module = BatchSizeFinder(effective=40, sizes=[4, 5, 7]), Module()
trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, logger=False, callbacks=[finder],
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
trainer.fit(module, Data())
choice = finder.choice
Path(f"choice-{trainer.global_rank}").write_text(json.dumps(
    [choice.size, choice.accumulate, choice.processes, choice.effective, sorted({*module.updates})]))
"""


def test_an_effective_size_over_processes_that_have_batches_of_their_own(tmp_path: Path) -> None:
    run_script(tmp_path, FOREIGN_DDP)
    first, second = (json.loads((tmp_path / f"choice-{rank}").read_text()) for rank in (0, 1))
    assert first == second
    size, accumulate, processes, effective, updates = first
    assert size in (4, 5)
    assert (size * accumulate, processes, effective, updates) == (20, 2, 40, [20])


@pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned `None`")
def test_a_module_without_an_optimizer_gets_a_size() -> None:
    class Fixed(Foreign):
        def configure_optimizers(self) -> Any:
            return None

    assert find_batch_size(trainer(), Fixed(), Data(300), attribute="batch").size >= 2
