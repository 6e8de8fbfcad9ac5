"""`find_batch_size` and its callback on anybody's modules and data."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dlblocks
from dlblocks.errors import UserError
from dlblocks.tuning import batch_size, memory
from dlblocks.tuning.batch_size import UPDATES, BatchSizeFinder, find_batch_size
from dlblocks.tuning.trial import Trial

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
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
            tried.append(size)
            return size / speed(size)

        monkeypatch.setattr(batch_size, "_seconds_a_step", seconds)
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
    assert f"batch size {choice.size}: 8" in choice.explanation


def test_an_epoch_keeps_its_updates(known: Any) -> None:
    known(lambda size: float(size))
    choice = find_batch_size(trainer(), Foreign(), Data(300), attribute="batch")
    assert choice.size == 32
    assert math.ceil(300 / 32) == UPDATES
    assert "updates an epoch" in choice.explanation


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


# Memory.


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


def test_one_instance_where_two_do_not_fit(known: Any) -> None:
    known(lambda size: float(size))
    assert find_batch_size(trainer(), Greedy(1), Data(), attribute="batch").size == 1


def test_no_size_fits(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no size fits into the memory \(tried: 1, 2\)"):
        find_batch_size(trainer(default_root_dir=tmp_path), Greedy(0), Data(), attribute="batch")
    assert list(tmp_path.iterdir()) == []


def test_a_margin_is_kept_and_growth_blindlyn(known: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system may end a process that takes too much without any error."""
    tried = known(lambda size: float(size))
    monkeypatch.setattr(memory, "available", lambda _: 1000 * 2**20)
    monkeypatch.setattr(memory, "in_use", lambda _: 0)
    monkeypatch.setattr(memory, "peak", lambda _: tried[-1] * 10 * 2**20)
    choice = find_batch_size(trainer(), Foreign(), Data(10_000), attribute="batch")
    assert max(tried) == 64  # 128 would take 1280 MB
    assert choice.size == 64


def test_other_errors_come_through() -> None:
    class Broken(Foreign):
        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:  # noqa: ARG002
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        find_batch_size(trainer(), Broken(), Data(), attribute="batch")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS")
def test_a_real_limit_of_memory() -> None:
    """Each instance takes 8 MB of activations, and the process may take 1 GB more."""
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
        self.scale = nn.Parameter(torch.ones(2**20))
        self.out = nn.Linear(4, 3)
    def forward(self, x):
        return self.out(x) + (x[:, :1] * self.scale).sigmoid().mean(1, keepdim=True)
data = TableDataModule(Table.from_arrays(torch.randn(5000, 4), torch.arange(5000) % 3, "multiclass"), eval_batch_size=1)
data.setup()
module = LitModule(task="multiclass", input_shape=(4,), outputs=3, model=Wide())
trainer = L.Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False)
find_batch_size(trainer, module, data, max_size=2)
resource.setrlimit(resource.RLIMIT_AS, (memory._status("VmSize") + 2**30, resource.RLIM_INFINITY))
import dlblocks.tuning.batch_size as b
taken = b._seconds_a_step
b._seconds_a_step = lambda trial, train, judged: taken(trial, train, judged) and 1 / len(train[0][0]) ** 2
if BLINDLY:
    b._may_fit = lambda *_: True
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
        assert all(taken <= 2**30 for _, fits, taken in measured if fits)
        assert [fits for _, fits, _ in measured].count(False) == (blindly == "True")  # it truly ran out


# What can't be set.


def test_an_attribute_without_effect_is_told() -> None:
    with pytest.raises(UserError, match=r"batch_size=2: has no effect, .* have 7 instances"):
        find_batch_size(trainer(), Foreign(), Data())


def test_a_missing_attribute_is_told() -> None:
    with pytest.raises(UserError, match="Data: has no attribute 'size'"):
        find_batch_size(trainer(), Foreign(), Data(), attribute="size")


def test_a_loader_that_cannot_be_built_anew() -> None:
    loader = DataLoader(table(10), batch_sampler=[[0, 1], [2, 3]])
    with pytest.raises(UserError, match="can't be built anew"):
        find_batch_size(trainer(), Foreign(), train_dataloaders=loader)


@pytest.mark.parametrize("settings", [{"max_size": 0}, {"effective": 0}, {"sizes": [0, 2]}])
def test_wrong_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="must be at least 1"):
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

        monkeypatch.setattr(batch_size, "_seconds_a_step", breaks)
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
import dlblocks.tuning.batch_size as b
from dlblocks.tuning.batch_size import find_batch_size

trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=1, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
data = TableDataModule("digits")
data.setup()
module = LitModule(task="multiclass", input_shape=data.input_shape, outputs=10)
taken = b._seconds_a_step
def seconds(trial, train, judged):
    if trainer.global_rank == 1 and len(train[0][0]) > 50:
        raise MemoryError  # on one of them only
    taken(trial, train, judged)
    return 1e-3 * (1 + trainer.global_rank)  # so that the largest is the fastest
b._seconds_a_step = seconds
choice = find_batch_size(trainer, module, data)
rows = [(one.size, one.fits, round(one.samples_per_second, 3)) for one in choice.measured]
Path(f"choice-{trainer.global_rank}").write_text(json.dumps([choice.size, choice.accumulate, rows]))
"""


def test_two_processes_agree_though_one_runs_out(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(DDP)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"choice-{rank}").read_text()) for rank in (0, 1))
    assert first == second
    size, _, rows = first
    # 64 of both together is 32 of each; 128 did not fit the second.
    assert size == 64
    assert [fits for _, fits, _ in rows] == [True] * 6 + [False]
    # Both wait for the slower one.
    assert [speed for *_, speed in rows[:-1]] == [2 ** (i + 1) / 2e-3 for i in range(6)]
