"""Verdicts on known cases, suggestions that hold, and runs that are warned or refused."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from sklearn.datasets import load_digits
from torch import Tensor, nn

import dlblocks
from dlblocks.diagnosis.report import Diagnosis
from dlblocks.diagnosis.trial import STARTED, Trial
from dlblocks.errors import UserError

SGD = {"name": "sgd", "momentum": 0.9}


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:512]
    return torch.tensor(x / 16 - 0.3, dtype=torch.float32)[order] * 2.5, torch.tensor(y)[order]


def net(activation: str, init: object, depth: int, **params: object) -> nn.Module:
    built = dlblocks.model("mlp", (64,), 10, activation, depth=depth, width=64, **params)
    return dlblocks.initialize(built, init, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("activation", "init", "depth", "optimizer"),
    [
        ("relu", "he_normal", 2, "adamw"),
        ("relu", "he_normal", 10, SGD),
        ("selu", "lecun_normal", 20, SGD),
        ("linear", "orthogonal", 20, SGD),
        ("tanh", "glorot_uniform", 5, "adam"),
    ],
)
def test_what_is_known_to_train(digits, activation: str, init: str, depth: int, optimizer: object) -> None:
    found = dlblocks.diagnose(net(activation, init, depth), digits, optimizer=optimizer)
    assert found.verdict.outcome == "trains", found.lines()
    assert found.sound
    assert not found.suggestions
    found.check()


@pytest.mark.parametrize(
    ("activation", "init", "depth", "optimizer", "told"),
    [
        ("relu", "zeros", 2, SGD, "all units of 0 do the same"),
        ("tanh", "zeros", 3, "adam", "all units of 0 do the same"),
        ("sigmoid", {"name": "normal", "std": 0.01}, 10, "adamw", "the gradient that reaches 0 is about"),
        ("sigmoid", "glorot_uniform", 30, SGD, "vanishes"),
        ("relu", {"name": "normal", "std": 0.01}, 10, SGD, "dies out"),
    ],
)
def test_what_is_known_not_to_start(
    digits, activation: str, init: object, depth: int, optimizer: object, told: str
) -> None:
    found = dlblocks.diagnose(net(activation, init, depth), digits, optimizer=optimizer)
    assert found.verdict.outcome == "will not start"
    assert told in found.verdict.reason
    assert found.verdict.layer is not None
    assert "init=auto" in found.suggestions
    with pytest.raises(UserError, match=r"diagnose=strict: This network will not start.*init=auto"):
        found.check()


def test_what_explodes(digits) -> None:
    found = dlblocks.diagnose(net("relu", {"name": "normal", "std": 1.0}, 30), digits, optimizer=SGD)
    assert found.verdict.outcome == "will diverge"
    assert "init=he_normal" in found.suggestions


def test_adam_starts_where_gradient_descent_can_not(digits) -> None:
    faint = net("tanh", {"name": "variance_scaling", "scale": 0.2}, 10)
    assert dlblocks.diagnose(faint, digits, optimizer="adam", suggest=False).verdict.outcome == "trains"
    slow = dlblocks.diagnose(faint, digits, optimizer=SGD)
    assert slow.verdict.outcome != "trains"


@pytest.mark.parametrize(
    ("skills", "outcome"),
    [
        ((0.5,), "trains"),
        ((0.05,), "will not start"),
        ((0.25, 0.3, 0.24), "trains"),
        ((0.15, 0.1, 0.12), "slow"),
        ((0.25, 0.1, 0.24, 0.0, 0.23), "trains"),
        ((0.25, 0.0, 0.09, 0.3, 0.1), "slow"),
    ],
)
def test_near_the_border_other_orders_are_tried(
    digits, monkeypatch: pytest.MonkeyPatch, skills: tuple[float, ...], outcome: str
) -> None:
    def scripted(*parts: object, order: int, **_: object) -> Trial:
        skill = skills[order]
        return Trial(parts[5], "started" if skill >= STARTED else "nothing", skill, 200, order)

    monkeypatch.setattr("dlblocks.diagnosis.diagnose.run_trial", scripted)
    unclear = net("sigmoid", "glorot_uniform", 2)
    found = dlblocks.diagnose(unclear, digits, optimizer=SGD, lr=0.01, suggest=False)
    assert found.verdict.outcome == outcome
    assert tuple(trial.skill for trial in found.trials) == skills


def test_the_learning_rate_counts(digits) -> None:
    built = net("relu", "he_normal", 3)
    assert dlblocks.diagnose(built, digits, optimizer=SGD, lr=0.05).verdict.outcome == "trains"
    wild = dlblocks.diagnose(built, digits, optimizer=SGD, lr=100.0)
    assert wild.verdict.outcome in ("will diverge", "will not start")
    assert (
        any(change.startswith("optimizer.lr=") for change in wild.suggestions)
        or "optimizer=adamw" in wild.suggestions
    )
    assert dlblocks.diagnose(built, digits, optimizer=SGD, lr=1e-9).verdict.outcome == "will not start"


def test_each_suggestion_holds(digits) -> None:
    built = net("tanh", "zeros", 5)
    found = dlblocks.diagnose(built, digits, optimizer="adam")
    assert found.suggestions
    for change in found.suggestions:
        key, _, value = change.partition("=")
        assert key == "init"
        cured = dlblocks.initialize(copy.deepcopy(built), value, batch=digits[0])
        assert dlblocks.diagnose(cured, digits, optimizer="adam").verdict.outcome == "trains"


def test_the_model_and_random_state_stay(digits) -> None:
    built = net("sigmoid", "glorot_uniform", 20, norm="none")
    built.eval()
    kept, state = copy.deepcopy(built.state_dict()), torch.get_rng_state()
    dlblocks.diagnose(built, digits, optimizer="sam", lr=0.1)
    assert all(torch.equal(kept[name], value) for name, value in built.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(part.training for part in built.modules())
    assert all(parameter.grad is None for parameter in built.parameters())


def test_inputs_alone_show_the_signal(digits) -> None:
    found = dlblocks.diagnose(net("relu", "he_normal", 3), digits[0])
    assert found.verdict.outcome in ("trains", "unclear")
    assert not found.trials


def test_regression_is_judged_by_its_loss() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(400, 8, generator=draw)
    y = x @ torch.randn(8, 1, generator=draw)
    deep = dlblocks.model("mlp", (8,), 1, "tanh", depth=8, width=32)
    dlblocks.initialize(deep, {"name": "normal", "std": 0.01}, generator=draw)
    assert dlblocks.diagnose(deep, (x, y), optimizer=SGD).verdict.outcome == "will not start"
    dlblocks.initialize(deep, "auto", batch=x, generator=draw)
    assert dlblocks.diagnose(deep, (x, y), optimizer="adam").verdict.outcome == "trains"


def test_panel_json_and_picture(digits, tmp_path: Path) -> None:
    found = dlblocks.diagnose(net("sigmoid", {"name": "normal", "std": 0.01}, 20), digits, optimizer=SGD)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(found.panel())
    text = console.export_text()
    assert "will not start" in text
    assert "..." in text
    found.save(tmp_path)
    saved = json.loads((tmp_path / "diagnosis.json").read_text())
    assert saved["verdict"]["outcome"] == "will not start"
    assert len(saved["signal"]["layers"]) == 21
    assert (tmp_path / "signal.png").read_bytes().startswith(b"\x89PNG")


BAD = ("activation=sigmoid", "init=normal", "init.std=0.01", "model.depth=10")
QUICK = ("trainer.max_epochs=1", "callbacks=none", "logger=csv")


def test_a_run_is_warned_refused_or_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = dlblocks.train(dlblocks.compose(*BAD, *QUICK), tmp_path / "warned")
    assert result.diagnosis == "will not start"
    assert (tmp_path / "warned" / "diagnosis.json").exists()
    assert (tmp_path / "warned" / "signal.png").exists()
    assert "init=auto" in capsys.readouterr().out
    with pytest.raises(UserError, match="diagnose=strict: This network will not start"):
        dlblocks.train(dlblocks.compose(*BAD, *QUICK, "diagnose=strict"), tmp_path / "strict")
    assert (tmp_path / "strict" / "diagnosis.json").exists()
    off = dlblocks.train(dlblocks.compose(*BAD, *QUICK, "diagnose=off"), tmp_path / "off")
    assert off.diagnosis == ""
    assert not (tmp_path / "off" / "diagnosis.json").exists()


def test_the_default_run_is_sound_and_says_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = dlblocks.train(dlblocks.compose(*QUICK, "diagnose=strict"), tmp_path)
    assert result.diagnosis == "trains"
    assert "diagnosis:" not in capsys.readouterr().out


def test_auto_trains_what_would_not_start(tmp_path: Path) -> None:
    recipe = dlblocks.compose(
        *BAD[:1], "init=auto", "model.depth=10", "trainer.max_epochs=8", "callbacks=none"
    )
    assert dlblocks.train(recipe, tmp_path).metrics["test/accuracy"] > 0.7


def test_diagnosis_off_and_on_train_the_same(tmp_path: Path) -> None:
    losses = [
        dlblocks.train(dlblocks.compose(*QUICK, f"diagnose={mode}"), tmp_path / mode).metrics["train/loss"]
        for mode in ("off", "warn")
    ]
    assert losses[0] == losses[1]


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(UserError, match="diagnose=stric: must be one of warn, strict, off"):
        dlblocks.train(dlblocks.compose("diagnose=stric"))


def test_a_report_is_public() -> None:
    assert dlblocks.Diagnosis is Diagnosis


def test_what_theory_expects_is_beside_what_is_measured(digits, tmp_path: Path) -> None:
    found = dlblocks.diagnose(net("tanh", "glorot_uniform", 5), digits, trials=False)
    assert found.theory is not None
    assert found.theory.modelled
    expected = [layer.variance for layer in found.theory.layers]
    measured = [layer.output**2 for layer in found.signal.layers]
    assert measured == pytest.approx(expected, rel=0.3)
    console = Console(file=io.StringIO(), width=100)
    console.print(found.panel())
    assert "Mean-field theory: with depth the variance goes to q* = 0, where" in " ".join(
        console.file.getvalue().replace("│", " ").split()
    )
    found.save(tmp_path)
    assert json.loads((tmp_path / "diagnosis.json").read_text())["theory"]["chi"] == pytest.approx(
        found.theory.chi
    )


def test_what_theory_does_not_model_is_said(digits) -> None:
    found = dlblocks.diagnose(net("tanh", "zeros", 2), digits, trials=False)
    console = Console(file=io.StringIO(), width=200)
    console.print(found.panel())
    assert (
        "Mean-field theory does not model this net: 0 (Linear): all its weights are 0."
        in console.file.getvalue()
    )
