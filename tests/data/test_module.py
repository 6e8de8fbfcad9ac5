"""The data module: what it tells, what it refuses, and a run killed and resumed in mid-epoch."""

from __future__ import annotations

import copy
import re
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from dlblocks.data.loader import TensorLoader
from dlblocks.data.module import TableDataModule
from dlblocks.data.split import split
from dlblocks.data.table import Table
from dlblocks.errors import UnknownNameError, UserError
from dlblocks.registry import build


def ready(dataset: Any, batch_size: Any = 32, **about: Any) -> TableDataModule:
    data = TableDataModule(dataset, batch_size, **about)
    data.setup()
    return data


@pytest.mark.parametrize(
    ("name", "task", "shape", "outputs"),
    [
        ("digits", "multiclass", (1, 8, 8), 10),
        ("breast_cancer", "binary", (30,), 2),
        ("wine", "multiclass", (13,), 3),
        ("diabetes", "regression", (10,), 1),
        ("digit_pairs", "multilabel", (1, 12, 16), 10),
    ],
)
def test_tells_what_a_net_needs(name: str, task: str, shape: tuple[int, ...], outputs: int) -> None:
    data = ready(name)
    assert (data.task, data.input_shape, data.outputs) == (task, shape, outputs)
    table = build("dataset", name)
    assert data.n_train + data.n_val + data.n_test == len(table)
    assert data.classes == table.classes
    x, y = next(iter(data.train_dataloader()))
    assert (tuple(x.shape), len(y)) == ((32, *shape), 32)
    counts = table.y[split(table, 0).train]
    if task == "regression":
        assert data.class_counts == {}
    else:
        expected = counts.sum(0).tolist() if counts.ndim == 2 else counts.bincount().tolist()
        assert list(data.class_counts.values()) == expected


def test_loaders_serve_all_parts() -> None:
    data = ready("breast_cancer", 50)
    served = {
        "train": data.train_dataloader(),
        "val": data.val_dataloader(),
        "test": data.test_dataloader(),
    }
    for name, loader in served.items():
        y = torch.cat([y for _, y in loader])
        assert y.sum() == data.part(name)[1].sum()  # type: ignore[arg-type]
    assert len(served["train"]) == 7
    assert isinstance(predict := data.predict_dataloader(), TensorLoader)
    assert predict.x.equal(data.part("test")[0])


def test_scaled_by_the_training_part_only() -> None:
    table = build("dataset", "breast_cancer")
    rows = split(table, 3)
    x = table.x.clone()
    x[rows.val] = 1e5
    x[rows.test] = -1e5
    shifted = ready(Table(x, table.y, table.task, table.classes), seed=3)
    data = ready(table, seed=3)
    assert shifted.part("train")[0].equal(data.part("train")[0])
    torch.testing.assert_close(data.part("train")[0].mean(0), torch.zeros(30), atol=1e-5, rtol=0)
    assert data.part("val")[0].mean(0).abs().max() > 0.01


def test_target_scaler() -> None:
    data = ready("diabetes")
    y = data.part("train")[1]
    assert data.target_scaler is not None
    assert float(y.mean()) > 100  # served in its own unit
    scaled = data.target_scaler.apply(y)
    torch.testing.assert_close(scaled.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    assert data.target_mean == (pytest.approx(float(y.mean())),)
    assert data.target_std == (pytest.approx(float(y.std(correction=0))),)
    for other in (ready("diabetes", scale_target=False), ready("digits")):
        assert other.target_scaler is other.target_mean is other.target_std is None


def test_flat_changes_the_shape_only() -> None:
    flat, data = ready("digits", flat=True), ready("digits")
    assert flat.input_shape == (64,)
    assert flat.part("test")[0].equal(data.part("test")[0].flatten(1))


def test_setup_again_changes_nothing() -> None:
    data = ready("digits")
    x, _ = data.part("train")
    data.setup("fit")
    data.setup("test")
    assert data.part("train")[0] is x


def test_the_table_is_left_as_it_was() -> None:
    table = build("dataset", "diabetes")
    x = table.x.clone()
    ready(table)
    assert table.x.equal(x)


def test_full_batch_and_evaluation_batches() -> None:
    data = ready("digits", "full", eval_batch_size=100)
    assert data.train_batch_size == data.n_train == len(next(iter(data.train_dataloader()))[0])
    assert [len(y) for _, y in data.val_dataloader()] == [100, 100, 100, 60]
    assert len(ready("digits").val_dataloader()) == 1


def test_parts_left_out() -> None:
    data = ready("digits", val_fraction=0.0, test_fraction=0.0)
    assert (data.n_train, data.n_val, data.n_test) == (1797, 0, 0)
    assert data.val_dataloader() == data.test_dataloader() == data.predict_dataloader() == []


def test_batch_size_can_be_changed_later() -> None:
    data = ready("digits")
    data.batch_size = 64
    assert len(next(iter(data.train_dataloader()))[0]) == 64


def test_drop_last_is_for_training() -> None:
    data = ready("digits", 100, drop_last=True, eval_batch_size=100)
    assert (len(data.train_dataloader()), len(data.val_dataloader())) == (10, 4)


def test_parameters_of_a_data_set() -> None:
    assert ready({"name": "digit_pairs", "samples": 200, "seed": 4}).n_train == 120


@pytest.mark.parametrize("batch_size", [0, 343, "all", 1.5])
def test_batch_size_refused(batch_size: Any) -> None:
    message = rf"data.batch_size={batch_size}: must be a whole number from 1 to 341, .*, or full"
    with pytest.raises(UserError, match=message):
        ready("breast_cancer", batch_size)


def test_refused() -> None:
    with pytest.raises(UnknownNameError, match=r"data: unknown dataset 'digit'. Did you mean 'digits'"):
        TableDataModule("digit")
    with pytest.raises(UserError, match=r"data.sample: dataset 'digit_pairs' has no parameter 'sample'"):
        TableDataModule({"name": "digit_pairs", "sample": 5})
    with pytest.raises(UnknownNameError, match=r"data.scale: unknown scaling 'robust'"):
        TableDataModule("digits", scale="robust")
    with pytest.raises(UserError, match=r"data.eval_batch_size=0: must be at least 1"):
        TableDataModule("digits", eval_batch_size=0)
    table = build("dataset", "diabetes")
    table.x[3, 2] = torch.nan
    with pytest.raises(
        UserError, match=re.escape("data=diabetes: 1 values of x are NaN or infinite, in bmi (1)")
    ):
        ready(table)


def test_moves_to_the_trainers_device_once() -> None:
    data = ready("digits")

    class Strategy:
        root_device = torch.device("meta")

    class Trainer:
        strategy = Strategy()

    data.trainer = Trainer()  # type: ignore[assignment]
    loader = data.train_dataloader()
    assert loader.x.device.type == loader.y.device.type == "meta"
    assert data.part("train")[0] is loader.x


class Net(pl.LightningModule):
    """A small classifier that draws no random numbers in training."""

    def __init__(self, die_at: int | None = None) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.layer = nn.Linear(64, 10)
        with torch.no_grad():
            self.layer.weight.copy_(torch.randn(10, 64, generator=draw) / 8)
            self.layer.bias.zero_()
        self.die_at = die_at
        self.seen: list[tuple[int, float]] = []

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        if self.global_step == self.die_at:
            raise KeyError("killed")
        x, y = batch
        self.seen.append((self.global_step, float(x.sum())))
        return nn.functional.cross_entropy(self.layer(x), y)

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        self.layer(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def trainer_of(folder: Path, every: int, **about: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=3,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[ModelCheckpoint(folder, "{step}", every_n_train_steps=every, save_top_k=-1)],
        **about,
    )


def fit(folder: Path, every: int, net: Net, ckpt_path: Path | None = None, **about: Any) -> Net:
    data = TableDataModule("digits", 100, flat=True, seed=5)
    trainer_of(folder, every, **about).fit(net, data, ckpt_path=ckpt_path)
    return net


def resume(folder: Path, step: int, every: int, **about: Any) -> Net:
    """Go on from a step. Lightning warns unless the folder is the same as before and empty."""
    saved = folder.with_name("saved")
    if not saved.exists():
        folder.rename(saved)
    shutil.rmtree(folder, ignore_errors=True)
    return fit(folder, every, Net(), saved / f"step={step}.ckpt", **about)


@pytest.mark.parametrize("limits", [{}, {"limit_train_batches": 7}], ids=["whole", "cut_short"])
def test_resumed_anywhere_gives_the_same_weights(tmp_path: Path, limits: dict[str, Any]) -> None:
    """11 steps in each of 3 epochs, or 7 of them: a checkpoint after each step, and a resumed run from
    steps at the start, in the middle and at the end of an epoch."""
    whole = fit(tmp_path / "run", 1, Net(), **limits)
    steps = limits.get("limit_train_batches", 11)
    assert len(whole.seen) == 3 * steps
    assert len({total for _, total in whole.seen}) == 3 * steps
    for step in (1, steps - 1, steps, steps + 1, steps + 4, 2 * steps):
        resumed = resume(tmp_path / "run", step, 1, **limits)
        assert resumed.seen == whole.seen[step:], step
        assert resumed.layer.weight.equal(whole.layer.weight), step


def test_killed_and_resumed_gives_the_same_weights(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", 100, Net())
    with pytest.raises(KeyError, match="killed"):
        fit(tmp_path / "killed", 4, Net(die_at=18))
    # Steps 17 and 18 were trained after the last checkpoint and lost with the process.
    resumed = resume(tmp_path / "killed", 16, 4)
    assert resumed.seen == whole.seen[16:]
    assert resumed.layer.weight.equal(whole.layer.weight)
    assert resumed.layer.bias.equal(whole.layer.bias)


def test_overfit_batches_sees_the_same_batches_each_epoch(tmp_path: Path) -> None:
    seen = fit(tmp_path, 100, Net(), overfit_batches=2).seen
    assert [total for _, total in seen[:2]] == [total for _, total in seen[2:4]]


def test_net_order_is_free_of_the_model(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = fit(tmp_path / "a", 100, Net()).seen
    torch.manual_seed(2)
    torch.rand(17)
    assert fit(tmp_path / "b", 100, copy.deepcopy(Net())).seen == first


def test_arrays_train() -> None:
    draw = np.random.default_rng(0)
    data = ready(Table.from_arrays(draw.normal(size=(60, 3)), draw.normal(size=(60, 2))))
    assert (data.task, data.outputs, data.n_val) == ("regression", 2, 12)
