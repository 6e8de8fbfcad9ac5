"""The watch on a net in training."""

from __future__ import annotations

import csv
from pathlib import Path

import lightning as L
import pytest
import torch

import dlblocks

BAD = (
    "activation=sigmoid",
    "init=normal",
    "init.std=0.01",
    "model.depth=10",
    "optimizer=sgd",
    "diagnose=off",
)


def run(folder: Path, *overrides: str) -> list[dict[str, str]]:
    dlblocks.train(dlblocks.compose("callbacks=watch", "callbacks.progress_bar=null", *overrides), folder)
    assert (folder / "signal_watch.png").read_bytes().startswith(b"\x89PNG")
    with (folder / "signal_watch.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_net_that_vanishes_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run(tmp_path, *BAD, "trainer.max_epochs=5")
    told = capsys.readouterr().out
    assert told.count("the gradient vanishes between net.21 and net.1") == 1
    assert told.count("the loss is still where it began") == 1
    assert sorted({int(row["step"]) for row in rows}) == [0, 50, 100, 150]
    first = {row["layer"]: float(row["gradient"]) for row in rows if row["step"] == "0"}
    assert first["net.1"] < 1e-10 * first["net.21"]
    with (tmp_path / "metrics.csv").open() as file:
        assert "signal/gradient_ratio" in next(csv.reader(file))


def test_a_sound_net_is_left_in_peace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "trainer.max_epochs=4")
    assert "signal:" not in capsys.readouterr().out


def test_it_changes_no_weight(tmp_path: Path) -> None:
    losses = []
    for name in ("watch", "default"):
        recipe = dlblocks.compose(f"callbacks={name}", "callbacks.progress_bar=null", "trainer.max_epochs=2")
        losses.append(dlblocks.train(recipe, tmp_path / name).metrics["train/loss"])
    assert losses[0] == losses[1]


class Other(L.LightningModule):
    """A module of somebody else, whose relus die at the first step."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        torch.nn.init.constant_(self.net[0].bias, -1e3)

    def training_step(self, batch):
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_dead_units_of_somebody_elses_module(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(32, 4)), batch_size=8)
    watch = dlblocks.SignalWatch(every_n_steps=2, dirpath=str(tmp_path))
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    module = Other()
    L.Trainer(max_epochs=2, accelerator="cpu", callbacks=[watch], **quiet).fit(module, loader)
    assert "over 90% of the units before net.2 are dead" in capsys.readouterr().out
    assert {row["step"] for row in watch.rows} == {0, 2, 4, 6}
    assert not any(part._forward_pre_hooks for part in module.modules())
    assert (tmp_path / "signal_watch.csv").exists()


def test_a_step_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        dlblocks.SignalWatch(every_n_steps=0)
