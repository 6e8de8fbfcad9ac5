"""`optimizer.lr=auto` and `data.batch_size=auto` in whole runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

import dlblocks
from dlblocks.assembly import build_data, build_module
from dlblocks.errors import UserError
from dlblocks.finding import set_batch_size
from dlblocks.recipe import check
from dlblocks.recomputing import CheckpointActivations, blocks
from dlblocks.registry import REGISTRY
from dlblocks.tuning import measuring

QUIET = ("callbacks.progress_bar=null", "callbacks.model_summary=null")


def run(folder: Path, *overrides: str) -> dlblocks.Result:
    return dlblocks.train(dlblocks.compose(*QUIET, *overrides), folder)


def test_the_rate_is_found_kept_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(tmp_path, "optimizer=sgd", "optimizer.lr=auto", "trainer.max_epochs=8")
    rate = result.chosen["optimizer.lr"]
    assert json.loads((tmp_path / "result.json").read_text())["chosen"] == {"optimizer.lr": rate}
    assert capsys.readouterr().out.count(f"learning rate {rate:g}: validation loss") == 1
    assert (tmp_path / "lr_finder.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "lr_finder.csv").open() as file:
        assert {row["lr"] for row in csv.DictReader(file)} >= {"1e-05", str(rate), "10.0"}
    # Plain sgd at its default rate comes to 0.93.
    assert result.metrics["test/accuracy"] > 0.94
    module = dlblocks.LitModule.load_from_checkpoint(str(result.best_checkpoint))
    assert module.lr == rate
    with (tmp_path / "metrics.csv").open() as file:
        rates = {row["lr-SGD/pg1"] for row in csv.DictReader(file) if row.get("lr-SGD/pg1")}
    assert rates <= {str(rate)}


def test_the_run_is_that_of_the_rate_given(tmp_path: Path) -> None:
    found = run(
        tmp_path / "found", "data=wine", "optimizer.lr=auto", "model.dropout=0.3", "trainer.max_epochs=4"
    )
    rate = found.chosen["optimizer.lr"]
    run(tmp_path / "given", "data=wine", f"optimizer.lr={rate}", "model.dropout=0.3", "trainer.max_epochs=4")
    states = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("found", "given")
    ]
    assert all(value.equal(states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("method", ["valley", "steepest", "minimum"])
def test_other_methods(tmp_path: Path, method: str) -> None:
    result = run(tmp_path, "optimizer.lr=auto", f"lr_finder.method={method}", "trainer.max_epochs=1")
    assert 1e-5 < result.chosen["optimizer.lr"] < 1


def test_a_range_test_has_no_steps_to_set() -> None:
    auto = ("optimizer.lr=auto", "lr_finder.method=valley")
    check(dlblocks.compose(*auto, "lr_finder.steps=40"))
    with pytest.raises(UserError, match=r"^lr_finder.steps=7: has no effect with lr_finder.method=valley"):
        check(dlblocks.compose(*auto, "lr_finder.steps=7"))


@pytest.mark.parametrize(("regime", "epochs"), [("gd", 20), ("sgd", 5)])
def test_regimes(tmp_path: Path, regime: str, epochs: int) -> None:
    result = run(
        tmp_path,
        "data=wine",
        "optimizer=sgd",
        "optimizer.lr=auto",
        f"regime={regime}",
        f"trainer.max_epochs={epochs}",
    )
    assert result.metrics["val/accuracy"] > 0.92


@pytest.mark.parametrize("scheduler", ["one_cycle", "warmup_cosine", "reduce_on_plateau"])
def test_the_rate_is_the_schedules_base(tmp_path: Path, scheduler: str) -> None:
    result = run(
        tmp_path, "data=wine", f"scheduler={scheduler}", "optimizer=sgd", "optimizer.lr=auto", "trainer.max_epochs=10",
        "callbacks.lr_monitor.logging_interval=step",
    )  # fmt: skip
    with (tmp_path / "metrics.csv").open() as file:
        rates = [float(row["lr-SGD"]) for row in csv.DictReader(file) if row.get("lr-SGD")]
    assert max(rates) == pytest.approx(result.chosen["optimizer.lr"], rel=0.05)


@pytest.mark.parametrize(
    "optimizer",
    [
        "lbfgs", "muon", "sam", "schedule_free_adamw", "schedule_free_radam", "lookahead", "momo",
        "splus", "acprop", "d_adapt_sgd", "d_adapt_lion",
    ],
)  # fmt: skip
def test_optimizers_of_every_kind(tmp_path: Path, optimizer: str) -> None:
    if optimizer not in REGISTRY.names("optimizer"):
        pytest.fail(f"{optimizer} is no optimizer any more")
    result = run(tmp_path, "data=wine", f"optimizer={optimizer}", "optimizer.lr=auto", "trainer.max_epochs=4")
    assert result.metrics["val/accuracy"] > 0.6


def test_a_run_that_goes_on_keeps_its_rate(tmp_path: Path) -> None:
    first = run(tmp_path / "a", "data=wine", "optimizer.lr=auto", "trainer.max_epochs=2")
    last = tmp_path / "a" / "checkpoints" / "last.ckpt"
    second = run(
        tmp_path / "b", "data=wine", "optimizer.lr=auto", "trainer.max_epochs=3", f"ckpt_path={last}"
    )
    assert second.chosen == {}
    kept = torch.load(tmp_path / "b" / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["hyper_parameters"]["optimizer"]["lr"] == first.chosen["optimizer.lr"]
    assert kept["optimizer_states"][0]["param_groups"][0]["lr"] == first.chosen["optimizer.lr"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.lr=0.5"], r"optimizer.lr=0.5: .*keeps its rate, 0.01. Set optimizer.lr=auto, which"),
        (
            ["optimizer.lr=0.01", "optimizer.lr_reference_batch_size=16", "data.batch_size=64"],
            r"optimizer.lr=0.04 \(by optimizer.lr_reference_batch_size=16\): .*keeps its rate, 0.01",
        ),
    ],
    ids=["given", "rescaled"],
)
def test_a_rate_that_the_checkpoint_would_replace_is_refused(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    of_both = ("data=wine", "optimizer=sgd", "callbacks.lr_monitor=null")
    run(tmp_path / "a", *of_both, "optimizer.lr=0.01", "data.batch_size=16", "trainer.max_epochs=1")
    last = tmp_path / "a" / "checkpoints" / "last.ckpt"
    with pytest.raises(UserError, match=message):
        run(tmp_path / "b", *of_both, *overrides, "trainer.max_epochs=2", f"ckpt_path={last}")


def test_a_rescaled_run_goes_on_at_the_same_size(tmp_path: Path) -> None:
    overrides = ("data=wine", "optimizer=sgd", "optimizer.lr=0.01", "optimizer.lr_reference_batch_size=16")
    run(tmp_path / "a", *overrides, "trainer.max_epochs=1")
    last = tmp_path / "a" / "checkpoints" / "last.ckpt"
    second = run(tmp_path / "b", *overrides, "trainer.max_epochs=2", f"ckpt_path={last}")
    kept = torch.load(tmp_path / "b" / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["optimizer_states"][0]["param_groups"][0]["lr"] == second.chosen["optimizer.lr"] == 0.02


# Batch sizes.


def test_both_are_found_the_size_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(tmp_path, "data.batch_size=auto", "optimizer.lr=auto", "trainer.max_epochs=8")
    size, rate = result.chosen["data.batch_size"], result.chosen["optimizer.lr"]
    told = capsys.readouterr().out
    assert told.index(f"batch size {size} (") < told.index(f"learning rate {rate:g}: ")
    assert size & (size - 1) == 0
    assert result.steps == 8 * -(-1078 // size)
    assert (tmp_path / "batch_size_finder.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "batch_size_finder.csv").exists()
    assert result.metrics["test/accuracy"] > 0.94


def test_the_run_at_a_found_size_is_that_of_the_size_given(tmp_path: Path) -> None:
    found = run(
        tmp_path / "found", "data=wine", "data.batch_size=auto", "trainer.max_epochs=3", "model.dropout=0.2"
    )
    size = found.chosen["data.batch_size"]
    run(
        tmp_path / "given",
        "data=wine",
        f"data.batch_size={size}",
        "trainer.max_epochs=3",
        "model.dropout=0.2",
    )
    states = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("found", "given")
    ]
    assert all(value.equal(states[1][key]) for key, value in states[0].items())


@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize("limit", ["+trainer.limit_train_batches=0.5", "+trainer.val_check_interval=2"])
def test_a_size_under_the_limits_of_the_trainer(tmp_path: Path, limit: str) -> None:
    result = run(tmp_path, "data=wine", "data.batch_size=auto", limit, "trainer.max_epochs=1")
    assert result.chosen["data.batch_size"] > 1
    assert result.steps > 0


@pytest.mark.parametrize("optimizer", ["lbfgs", "acprop", "ftrl", "adgd", "gravity"])
def test_a_size_where_the_default_rate_diverges(tmp_path: Path, optimizer: str) -> None:
    """Or where a step at a rate of 0 is none: these divide by it."""
    recipe = check(dlblocks.compose(*QUIET, "data=wine", f"optimizer={optimizer}", "data.batch_size=auto"))
    data = build_data(recipe)
    result = dlblocks.Result(folder=str(tmp_path), seed=0)
    trainer = L.Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False)
    set_batch_size(recipe, trainer, build_module(recipe, data), data, result)
    assert data.batch_size == result.chosen["data.batch_size"] > 1


def test_a_size_is_found_with_activations_that_are_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The callback that does it takes part in trials, since it trades memory for time."""
    seen: list[bool] = []
    taken = measuring._seconds_a_step

    def seconds(trial: Any, *batches: Any) -> float:
        seen.append(["forward" in vars(block) for block in blocks(trial.module.net)] == [True])
        return taken(trial, *batches)

    monkeypatch.setattr(measuring, "_seconds_a_step", seconds)
    recipe = check(dlblocks.compose(*QUIET, "data=wine", "data.batch_size=auto", "data.max_batch_size=2"))
    net = nn.Sequential(nn.Linear(13, 6), nn.Sequential(nn.Linear(6, 6), nn.Tanh()), nn.Linear(6, 3))
    module = dlblocks.LitModule(task="multiclass", input_shape=(13,), outputs=3, model=net)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        callbacks=[CheckpointActivations()],
    )
    set_batch_size(recipe, trainer, module, build_data(recipe), dlblocks.Result(folder=str(tmp_path), seed=0))
    assert set(seen) == {True}
    assert all("forward" not in vars(part) for part in net)


def test_the_largest_size(tmp_path: Path) -> None:
    result = run(tmp_path, "data.batch_size=auto", "data.max_batch_size=10", "trainer.max_epochs=1")
    assert result.chosen["data.batch_size"] <= 8


def test_no_size_that_leaves_a_single_instance_to_batch_norm(tmp_path: Path) -> None:
    """Of 105 instances, 8 to a batch leave one."""
    overrides = ("data=wine", "data.val_fraction=0.2", "data.test_fraction=0.21", "model.norm=batch")
    result = run(tmp_path, *overrides, "data.batch_size=auto", "trainer.max_epochs=1")
    assert 105 % result.chosen["data.batch_size"] != 1


@pytest.mark.parametrize(
    "overrides",
    [["regime=gd", "data.effective_batch_size=107"], ["regime=sgd", "data.effective_batch_size=1"]],
    ids=str,
)
def test_an_effective_size_that_the_regime_has(tmp_path: Path, overrides: list[str]) -> None:
    result = run(tmp_path, "data=wine", *overrides, "trainer.max_epochs=1")
    assert result.steps == (1 if "regime=gd" in overrides else 107)


def test_class_shares_are_told_where_each_instance_has_one_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of labels there are more than instances."""
    for data, told in (("wine", True), ("digit_pairs", False)):
        run(
            tmp_path / data,
            f"data={data}",
            "data.batch_size=auto",
            "data.max_batch_size=4",
            "trainer.max_epochs=1",
        )
        assert ("class shares in a batch" in capsys.readouterr().out) is told


@pytest.mark.parametrize("size", ["32", "auto"])
def test_an_effective_size(tmp_path: Path, size: str) -> None:
    result = run(tmp_path, f"data.batch_size={size}", "data.effective_batch_size=96", "trainer.max_epochs=2")
    accumulate = result.chosen.get("trainer.accumulate_grad_batches", 3)
    found = result.chosen.get("data.batch_size", 32)
    assert accumulate * found == 96
    batches = -(-1078 // found)
    assert result.steps == 2 * -(-batches // accumulate)


@pytest.mark.parametrize(
    ("optimizer", "rate"), [("sgd", 0.01 * 64 / 16), ("adamw", 0.001 * (64 / 16) ** 0.5)]
)
def test_the_rate_follows_the_size(
    tmp_path: Path, optimizer: str, rate: float, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(
        tmp_path,
        f"optimizer={optimizer}",
        "optimizer.lr_reference_batch_size=16",
        "data.batch_size=64",
        "trainer.max_epochs=1",
    )
    assert result.chosen["optimizer.lr"] == pytest.approx(rate)
    assert "was set for batches of 16, these have 64" in capsys.readouterr().out
    assert dlblocks.LitModule.load_from_checkpoint(str(result.best_checkpoint)).lr == pytest.approx(rate)


def test_the_diagnosis_is_of_the_rate_that_trains(tmp_path: Path) -> None:
    """10 would diverge; at the size of the run it becomes 0.3."""
    overrides = ("optimizer=sgd", "optimizer.lr=10", "optimizer.lr_reference_batch_size=1024")
    result = run(tmp_path, *overrides, "diagnose=strict", "trainer.max_epochs=1")
    assert result.diagnosis == "trains"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lr_finder.method=valley"], r"lr_finder.method=valley: has no effect, .*set optimizer.lr=auto"),
        (["optimizer.lr=auto", "lr_finder.method=walley"], "Did you mean 'valley'"),
        (
            ["optimizer.lr=auto", "lr_finder.min_lr=3", "lr_finder.max_lr=1"],
            "lr_finder.min_lr=3: must be below",
        ),
        (["optimizer.lr=auto", "+lr_finder.stepps=3"], "Did you mean 'steps'"),
        (["optimizer.lr=otto"], "optimizer.lr=otto: must be a number"),
        (["data.max_batch_size=64"], r"data.max_batch_size=64: has no effect, .*data.batch_size=auto"),
        (["data.effective_batch_size=100"], "must be a multiple of data.batch_size=32"),
        (
            ["data.effective_batch_size=64", "trainer.accumulate_grad_batches=2"],
            "leave out trainer.accumulate",
        ),
        (["data=wine", "data.batch_size=auto", "data.effective_batch_size=2000"], "must be at most 107"),
        (["data=wine", "data.batch_size=20", "data.effective_batch_size=2000"], "must be at most 107"),
        (
            ["data.batch_size=full", "data.effective_batch_size=16"],
            "data.batch_size=full takes the whole training set, 1078 instances.*or set data.batch_size=auto",
        ),
        (
            ["regime=gd", "data.effective_batch_size=16"],
            "regime=gd takes the whole training set, 1078 instances.*or set regime=minibatch",
        ),
        (
            ["regime=sgd", "data.effective_batch_size=16"],
            "data.effective_batch_size=16: regime=sgd takes one instance for each update",
        ),
        (
            ["regime=sgd", "trainer.accumulate_grad_batches=4"],
            "trainer.accumulate_grad_batches=4: regime=sgd takes one instance for each update",
        ),
        (
            ["data=wine", "model.norm=batch", "data.batch_size=auto", "data.max_batch_size=1"],
            "limits leave only 1, .*batch normalisation",
        ),
        (["data.batch_size=auto", "regime=gd"], "regime=gd takes the whole training set"),
        (["data.batch_size=auto", "ckpt_path=x"], "keeps its size"),
        (
            ["optimizer.lr=auto", "optimizer.lr_reference_batch_size=8"],
            "has no effect, since optimizer.lr=auto",
        ),
        (["optimizer.lr_reference_batch_size=0"], "optimizer.lr_reference_batch_size=0"),
        (["optimizer=lbfgs", "optimizer.lr_reference_batch_size=8"], "no rule is known"),
        (["+sweep.panel=1"], "sweep.panel: unknown key. Did you mean 'panels'"),
        (["sweep.panels=[{x:epoch}]"], "must be a list of panels such as"),
    ],
    ids=str,
)
def test_mistakes_end_in_one_message(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(tmp_path, *overrides)
