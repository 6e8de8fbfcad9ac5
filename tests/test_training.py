"""Whole runs on the embedded data sets."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping

import dlblocks
from dlblocks.assembly import build_data, without_validation
from dlblocks.errors import UserError
from dlblocks.recipe import check

QUIET = ("callbacks.progress_bar=null", "callbacks.model_summary=null")


def run(folder: Path, *overrides: str) -> dlblocks.Result:
    return dlblocks.train(dlblocks.compose(*QUIET, *overrides), folder)


@pytest.mark.parametrize(
    ("overrides", "metric", "least"),
    [
        (["data=digits", "activation=elu", "init=glorot_uniform"], "test/accuracy", 0.95),
        (["data=digits", "model=convnet", "trainer.max_epochs=8"], "test/accuracy", 0.96),
        (["data=breast_cancer"], "test/accuracy", 0.93),
        (["data=breast_cancer", "head=softmax"], "test/accuracy", 0.93),
        (["data=wine"], "test/accuracy", 0.9),
        (["data=diabetes", "model.width=32"], "test/r2", 0.35),
        (["experiment=convnet_pairs", "trainer.max_epochs=12"], "test/f1", 0.8),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_every_task_reaches_its_metric(
    tmp_path: Path, overrides: list[str], metric: str, least: float
) -> None:
    result = run(tmp_path, *overrides)
    assert result.status == "completed"
    assert result.metrics[metric] >= least


def test_the_run_folder_holds_everything(tmp_path: Path) -> None:
    recipe = dlblocks.compose(*QUIET, "trainer.max_epochs=3", "seed=7")
    result = dlblocks.train(recipe, tmp_path)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == recipe
    saved = json.loads((tmp_path / "result.json").read_text())
    assert saved["status"] == "completed"
    assert saved["seed"] == 7
    assert saved["metrics"] == result.metrics
    assert saved["main_metric"] == ["val/accuracy", "max"]
    assert saved["versions"]["torch"] == torch.__version__
    assert saved["epochs"] == 3
    assert {"total", "fit", "test"} <= set(saved["seconds"])
    with (tmp_path / "curves.csv").open() as file:
        curves = list(csv.DictReader(file))
    assert [float(row["step"]) for row in curves] == [34, 68, 102]
    seconds = [float(row["seconds"]) for row in curves]
    assert 0 < seconds[0] < seconds[1] < seconds[2] <= saved["seconds"]["fit"]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {
        "best.ckpt",
        "last.ckpt",
        "last-previous.ckpt",
    }
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    accuracies = [float(row["val/accuracy"]) for row in rows if row["val/accuracy"]]
    assert len(accuracies) == 3
    assert any(row["train/loss_step"] for row in rows)
    assert result.metrics["val/accuracy"] == pytest.approx(max(accuracies))
    assert accuracies[result.tested_epoch] == max(accuracies)
    assert set(result.metrics) == {
        f"{s}/{m}" for s in ("train", "val", "test") for m in ("loss", "accuracy", "f1")
    }


def test_the_test_is_of_the_best_checkpoint(tmp_path: Path) -> None:
    result = run(tmp_path, "trainer.max_epochs=4", "scheduler=exponential", "scheduler.gamma=3")
    best = dlblocks.LitModule.load_from_checkpoint(result.best_checkpoint)
    from dlblocks.assembly import build_data
    from dlblocks.recipe import check

    data = build_data(check(dlblocks.compose()))
    x, y = next(iter(data.test_dataloader()))
    assert len(x) == len(data.test_dataloader().x)
    accuracy = float((best.eval()(x).argmax(1) == y).float().mean())
    assert result.metrics["test/accuracy"] == pytest.approx(accuracy)


def test_same_seed_same_numbers_other_seed_others(tmp_path: Path) -> None:
    overrides = ("trainer.max_epochs=2", "model.dropout=0.3")
    first = run(tmp_path / "a", *overrides)
    torch.rand(3)
    second = run(tmp_path / "b", *overrides)
    other = run(tmp_path / "c", *overrides, "seed=1")
    assert first.metrics == second.metrics
    assert first.metrics != other.metrics
    assert _weights(tmp_path / "a").keys() == _weights(tmp_path / "b").keys()
    for key, value in _weights(tmp_path / "a").items():
        assert torch.equal(value, _weights(tmp_path / "b")[key])


def test_going_on_from_a_checkpoint_equals_the_undisturbed_run(tmp_path: Path) -> None:
    run(tmp_path / "whole", "trainer.max_epochs=4")
    run(tmp_path / "half", "trainer.max_epochs=2")
    last = tmp_path / "half" / "checkpoints" / "last.ckpt"
    run(tmp_path / "rest", "trainer.max_epochs=4", f"ckpt_path={last}")
    for key, value in _weights(tmp_path / "whole").items():
        assert torch.equal(value, _weights(tmp_path / "rest")[key])


@pytest.mark.parametrize(
    ("regime", "steps"), [("gd", 2), ("sgd", 2 * 1078), ("minibatch", 2 * 34)], ids=["gd", "sgd", "minibatch"]
)
def test_regimes_take_their_instances_for_each_update(tmp_path: Path, regime: str, steps: int) -> None:
    result = run(tmp_path, f"regime={regime}", "trainer.max_epochs=2", "optimizer=sgd", "optimizer.lr=0.01")
    assert result.steps == steps


def test_callbacks_and_logger_can_be_left_out(tmp_path: Path) -> None:
    recipe = dlblocks.compose("callbacks=none", "logger=none", "trainer.max_epochs=1")
    result = dlblocks.train(recipe, tmp_path)
    assert result.best_checkpoint is None
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.yaml",
        "result.json",
        "curves.csv",
        "curves.png",
        "diagnosis.json",
        "signal.png",
    }


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["+trainer.limit_val_batches=0"], "trainer.limit_val_batches=0"),
        (["trainer.max_steps=1"], "the run ends before its first one"),
        (["trainer.check_val_every_n_epoch=5"], "the run ends before its first one"),
    ],
    ids=str,
)
def test_without_validation_nothing_waits_for_it(
    tmp_path: Path, overrides: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(tmp_path, "data=wine", "trainer.max_epochs=2", *overrides)
    assert result.status == "completed"
    assert result.best_checkpoint is None
    assert (
        f"no validation ({why}): EarlyStopping and ModelCheckpoint of val/accuracy" in capsys.readouterr().out
    )


def test_a_run_that_goes_on_may_end_before_its_next_validation() -> None:
    """With four updates in an epoch."""
    trainer = L.Trainer(max_steps=6, callbacks=[EarlyStopping("val/accuracy")], logger=False)
    data = build_data(check(dlblocks.compose("data=wine")))
    assert without_validation(trainer, data, 0) is None
    assert "the run ends before" in str(without_validation(trainer, data, 4))


@pytest.mark.parametrize(
    "limit", ["trainer.max_steps=5", "+trainer.fast_dev_run=true", "+trainer.val_check_interval=1"]
)
def test_a_validation_that_runs_is_not_denied(
    tmp_path: Path, limit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "data=wine", "trainer.max_epochs=2", limit)
    assert "no validation" not in capsys.readouterr().out


def test_tensorboard_writes_its_events(tmp_path: Path) -> None:
    run(tmp_path, "logger=tensorboard", "trainer.max_epochs=1")
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_mixed_precision_on_the_cpu(tmp_path: Path) -> None:
    result = run(tmp_path, "trainer.precision=bf16-mixed", "trainer.max_epochs=5")
    assert result.metrics["test/accuracy"] > 0.9


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.batch_size=100000"], "data.batch_size=100000"),
        (["trainer=gpu"], "trainer.accelerator=gpu: not on this machine. Here: cpu"),
        (["trainer.precision=16-mixed", "trainer=cpu"], "use bf16-mixed"),
        (["trainer.devices=0"], "trainer.devices=0"),
        (["+trainer.max_step=5"], "Did you mean 'max_steps'"),
        (["ckpt_path=missing.ckpt"], "ckpt_path=missing.ckpt: no such file"),
        (["task=regression"], "labels are those of a multiclass task"),
        (["loss=mse"], "Losses that fit: .*cross_entropy"),
        (["data=diabetes", "model=convnet"], "needs pictures"),
        (["logger=wandb"], r"pip install 'dlblocks\[wandb\]'"),
        (["callbacks.early_stopping.patience=many"], "callbacks.early_stopping"),
        (["+callbacks.early_stopping.patiense=3"], "callbacks.early_stopping"),
        (["optimizer=sgd", "optimizer.lr=1e12"], "the training loss became"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_mistakes_end_in_one_message(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run(tmp_path, *overrides)
    saved = json.loads((tmp_path / "result.json").read_text())
    assert saved["status"] == "failed"
    assert str(caught.value) in saved["error"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.width=64"], r"is of another net; net\.1\.bias is \(128,\) there and \(64,\) here"),
        (["model.depth=3"], r"net\.5\.bias is \(10,\) there and \(128,\) here"),
        (["optimizer=sgd"], "was trained with optimizer=adamw, which can't go on as sgd"),
    ],
)
def test_a_checkpoint_of_another_recipe_is_refused(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    run(tmp_path / "a", "trainer.max_epochs=1")
    last = tmp_path / "a" / "checkpoints" / "last.ckpt"
    with pytest.raises(UserError, match=message):
        run(tmp_path / "b", f"ckpt_path={last}", *overrides)


def test_batches_of_one_are_refused_where_they_cannot_be_normalised(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the last batch of an epoch has one instance"):
        run(tmp_path / "a", "model.norm=batch", "data.batch_size=359")
    with pytest.raises(UserError, match="each batch has one instance"):
        run(tmp_path / "b", "model.norm=batch", "regime=sgd")
    run(
        tmp_path / "c",
        "model.norm=batch",
        "data.batch_size=359",
        "data.drop_last=true",
        "trainer.max_epochs=1",
    )


def test_no_logger_leaves_no_log(tmp_path: Path) -> None:
    run(tmp_path, "logger=none", "trainer.max_epochs=1")
    assert {p.name for p in tmp_path.iterdir()} == {
        "config.yaml",
        "result.json",
        "curves.csv",
        "curves.png",
        "diagnosis.json",
        "signal.png",
        "checkpoints",
    }


def test_full_batches_with_lbfgs(tmp_path: Path) -> None:
    result = run(tmp_path, "regime=gd", "optimizer=lbfgs", "trainer.max_epochs=8")
    assert result.steps == 8
    assert result.metrics["test/accuracy"] > 0.9


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "a", "trainer.max_epochs=1")
    whole = (tmp_path / "a" / "checkpoints" / "last.ckpt").read_bytes()
    damaged = tmp_path / "damaged.ckpt"
    for number, content in enumerate((b"", b"not a checkpoint", whole[: len(whole) // 2])):
        damaged.write_bytes(content)
        with pytest.raises(UserError, match="damaged, or not a checkpoint"):
            run(tmp_path / f"b{number}", f"ckpt_path={damaged}")
    torch.save({"weights": torch.ones(2)}, damaged)
    with pytest.raises(UserError, match="no state_dict"):
        run(tmp_path / "c", f"ckpt_path={damaged}")


def test_a_folder_with_a_result_is_not_written_into_again(tmp_path: Path) -> None:
    run(tmp_path, "trainer.max_epochs=1")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="holds the result of another run"):
        run(tmp_path, "trainer.max_epochs=1")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_pickle_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    import pickle

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (open, (str(tmp_path / "ran"), "w"))

    hostile = tmp_path / "hostile.ckpt"
    hostile.write_bytes(pickle.dumps({"state_dict": Payload()}))
    with pytest.raises(UserError, match="damaged, or not a checkpoint"):
        run(tmp_path / "a", f"ckpt_path={hostile}")
    assert not (tmp_path / "ran").exists()


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
