"""The watch on a net in training."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

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
    assert told.count("for 3 epochs the loss has been at chance, 2.3, which a constant output") == 1
    assert sorted({int(row["step"]) for row in rows}) == [0, 50, 100, 150]
    first = {row["layer"]: float(row["gradient"]) for row in rows if row["step"] == "0"}
    assert first["net.1"] < 1e-10 * first["net.21"]
    with (tmp_path / "metrics.csv").open() as file:
        assert "signal/gradient_ratio" in next(csv.reader(file))


def test_the_findings_of_an_epoch_are_one_panel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid())
    net.add_module("[red]", nn.Linear(8, 1))
    nn.init.constant_(net[0].bias, 1e3)
    fit(net, X, tmp_path, epochs=2)
    lines = capsys.readouterr().out.splitlines()
    (title,) = (line for line in lines if "signal: epoch 0" in line)
    top = lines.index(title)
    assert title.startswith("╭")
    assert "over 90% of the units before net.[red] are dead or saturated." in lines[top + 1]
    assert "the gradient vanishes between net.[red] and net.0." in lines[top + 2]
    assert lines[top + 3].startswith("╰")
    assert not any("signal: epoch 1" in line for line in lines)  # each is told once


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
    """A module of somebody else."""

    def __init__(self, net: nn.Module, lr: float = 0.1) -> None:
        super().__init__()
        self.net, self.lr = net, lr

    def training_step(self, batch):
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


def dying() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    nn.init.constant_(net[0].bias, -1e3)
    return net


QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def fit(
    net: nn.Module, x: torch.Tensor, folder: Path, batch_size: int = 16, epochs: int = 1, lr: float = 0.1
) -> tuple[Other, dlblocks.SignalWatch, L.Trainer]:
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=batch_size)
    watch = dlblocks.SignalWatch(every_n_steps=2, dirpath=str(folder))
    module = Other(net, lr)
    trainer = L.Trainer(max_epochs=epochs, callbacks=[watch], **QUIET)
    trainer.fit(module, loader)
    return module, watch, trainer


def column(watch: dlblocks.SignalWatch, name: str) -> dict[str, float]:
    """Of the first look."""
    return {row["layer"]: row[name] for row in watch.rows if row["step"] == 0}


X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))


def fit_ours(
    folder: Path,
    loss: Any = "cross_entropy",
    dead: bool = True,
    lr: float = 1.0,
    batch_size: int = 16,
    **settings: Any,
) -> list[str]:
    """What is found of a net of ours that begins far above chance, and may learn nothing but its last bias."""
    y = (X[:, 0] > 0).long()
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        net[0].bias.fill_(-1e3 if dead else 0.0)
        net[2].bias.copy_(torch.tensor([5.0, -5.0]))
    module = dlblocks.LitModule(
        task="binary",
        head="softmax",
        input_shape=(4,),
        outputs=2,
        model=net,
        loss=loss,
        optimizer={"name": "sgd", "lr": lr},
    )
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, y), batch_size=batch_size)
    watch = dlblocks.SignalWatch(every_n_steps=2, dirpath=str(folder))
    L.Trainer(max_epochs=10, callbacks=[watch], log_every_n_steps=1, **QUIET, **settings).fit(
        module, loader, loader
    )
    return [finding.message for finding in watch.findings if "loss" in finding.message]


@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 2}])
def test_a_plateau_at_chance_is_one_though_the_loss_has_fallen(
    settings: dict[str, int], tmp_path: Path
) -> None:
    (told,) = fit_ours(tmp_path, **settings)
    share = float((X[:, 0] > 0).float().mean())
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    assert f"for 3 epochs the loss has been at chance, {entropy:.3g}, which a constant output" in told


def test_a_net_that_learns_is_not_at_chance(tmp_path: Path) -> None:
    assert fit_ours(tmp_path, dead=False) == []


def test_a_loss_that_comes_down_from_above_is_not_at_chance(tmp_path: Path) -> None:
    assert fit_ours(tmp_path, lr=0.05) == []


def test_where_chance_is_not_known_the_first_epoch_is_compared_with(tmp_path: Path) -> None:
    assert (
        fit_ours(tmp_path, loss={"name": "cross_entropy", "reduction": "sum"}, lr=0.03, batch_size=64) == []
    )
    _, watch, _ = fit(nn.Linear(4, 1), X, tmp_path, epochs=5, lr=0.0)
    assert [finding.message for finding in watch.findings] == [
        "after 3 epochs the loss is still where it began: the net has not started to train."
    ]


def test_dead_units_of_somebody_elses_module(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, watch, trainer = fit(dying(), X, tmp_path, epochs=2)
    assert "over 90% of the units before net.2 are dead" in capsys.readouterr().out
    assert {row["step"] for row in watch.rows} == {0, 2, 4, 6}
    assert trainer.callback_metrics["signal/dead"] == 1
    assert not any(part._forward_pre_hooks for part in module.modules())
    assert (tmp_path / "signal_watch.csv").exists()


class Hyper(nn.Module):
    """Weights of one layer made of a vector by another."""

    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.ones(3))
        self.make, self.last = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(x * self.make(self.z))


class Token(nn.Module):
    """A learned token, which a layer takes as it is or once for each instance."""

    def __init__(self, copies: bool) -> None:
        super().__init__()
        self.token, self.copies = nn.Parameter(torch.ones(1, 3)), copies
        self.first, self.make, self.last = nn.Linear(4, 4), nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        token = self.token.expand(len(x), 3) if self.copies else self.token
        return self.last(self.first(x) + self.make(token))


class Sparse(nn.Linear):
    """A layer called with sparse inputs."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return super().__call__(x.to_sparse())


@pytest.mark.parametrize(
    ("net", "seen"),
    [(Hyper(), ["net.last"]), (nn.Sequential(Sparse(4, 4), nn.Linear(4, 1)), ["net.1"])],
    ids=["vector", "sparse"],
)
def test_a_call_without_instances_is_left_out(net: nn.Module, seen: list[str], tmp_path: Path) -> None:
    _, watch, _ = fit(net, X, tmp_path)
    assert list(column(watch, "gradient")) == seen


def test_dead_units_need_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, watch, trainer = fit(dying(), X, tmp_path, batch_size=1)
    assert "dead" not in capsys.readouterr().out
    for name in ("dead", "between_inputs"):
        assert all(math.isnan(row[name]) for row in watch.rows)
        assert f"signal/{name}" not in trainer.callback_metrics
    assert "signal/gradient_ratio" in trainer.callback_metrics
    with (tmp_path / "signal_watch.csv").open() as file:
        assert {row["dead"] for row in csv.DictReader(file)} == {"nan"}
    assert (tmp_path / "signal_watch.png").exists()


@pytest.mark.parametrize("copies", [False, True])
def test_a_learned_token_is_not_dead(
    copies: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, watch, trainer = fit(Token(copies), X, tmp_path)
    assert "dead" not in capsys.readouterr().out
    assert math.isnan(column(watch, "dead")["net.make"])
    assert math.isnan(column(watch, "between_inputs")["net.make"])
    assert column(watch, "dead")["net.last"] == 0
    assert trainer.callback_metrics["signal/dead"] == 0
    assert trainer.callback_metrics["signal/between_inputs"] > 0


class Places(nn.Module):
    """Signals of which every second unit is dead, at several places of each instance."""

    def __init__(self, picture: bool) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.last = nn.Conv2d(4, 1, 1) if picture else nn.Linear(4, 1)
        self.picture = picture

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made = self.first(x) * torch.tensor([0.0, 1.0, 0.0, 1.0])
        places = made[:, None] + torch.arange(20.0)[:, None] * (made != 0)[:, None]
        return self.last(places.transpose(1, 2).unflatten(2, (4, 5)) if self.picture else places)


@pytest.mark.parametrize("picture", [False, True])
def test_rows_are_instances_and_places(picture: bool, tmp_path: Path) -> None:
    _, watch, _ = fit(Places(picture), X[:2], tmp_path, batch_size=1)
    assert column(watch, "dead")["net.last"] == 0.5
    assert math.isnan(column(watch, "dead")["net.first"])


def test_instances_of_a_recurrent_layer(tmp_path: Path) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lstm(x.expand(5, *x.shape))[0]  # all steps alike, instances not

    module, watch, _ = fit(Recurrent(), X[:16], tmp_path)
    assert column(watch, "between_inputs")["net.lstm"] > 0.1
    lstm = module.net.lstm
    both = torch.stack([lstm.weight_ih_l0.grad.norm(), lstm.weight_hh_l0.grad.norm()]).norm()
    assert column(watch, "gradient")["net.lstm"] == pytest.approx(float(both))


def test_the_gradient_of_weights_that_are_kept_elsewhere(tmp_path: Path) -> None:
    net = nn.Sequential(weight_norm(nn.Linear(4, 4)), nn.Linear(4, 1))
    module, watch, _ = fit(net, X[:16], tmp_path)
    kept = module.net[0].parametrizations.weight
    both = torch.stack([kept.original0.grad.norm(), kept.original1.grad.norm()]).norm()
    assert column(watch, "gradient")["net.0"] == pytest.approx(float(both))
    assert both > 0


def test_a_frozen_layer_has_no_gradient(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1))
    net[0].requires_grad_(False)
    _, watch, trainer = fit(net, X, tmp_path)
    found = column(watch, "gradient")
    assert math.isnan(found["net.0"])
    assert "vanishes" not in capsys.readouterr().out
    last = [row["gradient"] for row in watch.rows if row["step"] == 2]
    assert trainer.callback_metrics["signal/gradient_ratio"] == pytest.approx(last[1] / last[2])


def test_a_step_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        dlblocks.SignalWatch(every_n_steps=0)
