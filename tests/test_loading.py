"""From run folders back to modules that predict."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from torch import nn

import dlblocks
from dlblocks.assembly import build_data
from dlblocks.data.format import DataFormat
from dlblocks.data.split import split
from dlblocks.data.table import Table
from dlblocks.errors import UserError
from dlblocks.recipe import check
from dlblocks.registry import build

QUICK = ("callbacks.progress_bar=null", "callbacks.model_summary=null", "trainer.max_epochs=2")
TASKS = {
    "regression": ("data=diabetes",),
    "binary": ("data=breast_cancer",),
    "binary_softmax": ("data=breast_cancer", "head=softmax"),
    "multiclass": ("data=wine",),
    "multilabel": ("data=digit_pairs", "model=convnet", "data.samples=300"),
}


def run(folder: Path, *overrides: str) -> dlblocks.Result:
    return dlblocks.train(dlblocks.compose(*QUICK, *overrides), folder)


def raw(*overrides: str) -> tuple[Table, Any]:
    """The data set as it is, and the rows of its parts."""
    recipe = check(dlblocks.compose(*overrides))
    table = build("dataset", recipe.dataset)
    return table, split(table, recipe.run["seed"])


@pytest.fixture(scope="module")
def wine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wine")
    run(folder, "data=wine")
    return folder


@pytest.mark.parametrize("task", TASKS)
def test_raw_instances_are_predicted_as_in_the_test(tmp_path: Path, task: str) -> None:
    run(tmp_path, *TASKS[task])
    module = dlblocks.load(tmp_path)
    table, rows = raw(*TASKS[task])
    data = build_data(check(dlblocks.compose(*TASKS[task])))
    served, _ = data.part("test")
    with torch.no_grad():
        expected = module.predict_step(served)
    assert torch.equal(module.predict(table.x[rows.test]), expected)
    assert torch.equal(module.predict(table.x[rows.test].numpy().astype(np.float64)), expected)
    assert module.data_format is not None
    assert module.data_format.classes == table.classes
    assert module.data_format.features == table.features
    assert not any(part.training for part in module.modules())


@pytest.mark.parametrize(
    ("scale", "scaler"),
    [("standard", StandardScaler()), ("minmax", MinMaxScaler())],
    ids=["standard", "minmax"],
)
def test_inputs_and_targets_are_scaled_as_scikit_learn_does(tmp_path: Path, scale: str, scaler: Any) -> None:
    run(tmp_path, "data=diabetes", f"data.scale={scale}")
    module = dlblocks.load(tmp_path)
    table, rows = raw("data=diabetes")
    x, y = table.x.double().numpy(), table.y.double().numpy()
    scaler.fit(x[rows.train])
    targets = StandardScaler().fit(y[rows.train])
    with torch.no_grad():
        output = module.net(torch.tensor(scaler.transform(x), dtype=torch.float32))
    expected = targets.inverse_transform(output.double().numpy())
    np.testing.assert_allclose(module.predict(x).numpy(), expected, rtol=2e-5, atol=1e-2)
    assert expected.std() > 10  # in the targets' own units


@pytest.mark.parametrize("flat", [False, True])
def test_pictures_keep_their_shape_or_become_vectors(flat: bool) -> None:
    data = dlblocks.TableDataModule("digits", flat=flat)
    data.setup()
    table = build("dataset", "digits")
    rows = split(table, 0)
    x, _ = data.part("val")
    assert torch.equal(data.format.prepare(table.x[rows.val]), x)
    as_rows = data.format.check(table.x[rows.val].flatten(1))
    assert torch.equal(as_rows, table.x[rows.val])
    again = DataFormat.from_plain(json.loads(json.dumps(data.format.plain())))
    assert again == data.format


def test_the_best_weights_are_loaded_not_the_last(tmp_path: Path) -> None:
    result = run(tmp_path, "scheduler=exponential", "scheduler.gamma=3", "trainer.max_epochs=5")
    assert result.tested_epoch < 4
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["epoch"] == result.tested_epoch
    loaded = dlblocks.load(tmp_path).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in best["state_dict"].items())


def test_a_schedule_free_optimizer_leaves_the_point_that_was_judged(tmp_path: Path) -> None:
    overrides = ("data=wine", "optimizer=schedule_free_adamw", "trainer.max_epochs=6")
    result = run(tmp_path, *overrides)
    x, y = build_data(check(dlblocks.compose(*overrides))).part("test")
    with torch.no_grad():
        predicted = dlblocks.load(result).predict_step(x).argmax(1)
    assert (predicted == y).double().mean().item() == pytest.approx(result.metrics["test/accuracy"])


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_weights_keep_the_precision_they_were_trained_in(tmp_path: Path, precision: str) -> None:
    run(tmp_path, "data=wine", f"trainer.precision={precision}")
    module = dlblocks.load(tmp_path)
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, best[key]) for key, value in module.state_dict().items())
    assert {value.dtype for value in module.state_dict().values()} == {value.dtype for value in best.values()}
    assert module.predict(np.ones((2, 13))).dtype == torch.float32


def test_folder_result_and_checkpoint_give_the_same_module(wine: Path) -> None:
    from dlblocks.results import Result

    x = torch.rand(5, 13)
    modules = [dlblocks.load(given) for given in (wine, str(wine), Result.load(wine))]
    modules.append(dlblocks.load(wine / "checkpoints" / "best.ckpt"))
    assert len({str(module.predict(x).tolist()) for module in modules}) == 1


def test_a_run_folder_may_be_moved(wine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = dlblocks.load(wine).predict(torch.ones(1, 13))
    shutil.copytree(wine, tmp_path / "moved")
    saved = json.loads((tmp_path / "moved" / "result.json").read_text())
    saved["best_checkpoint"] = "runs/elsewhere/checkpoints/best.ckpt"
    (tmp_path / "moved" / "result.json").write_text(json.dumps(saved))
    monkeypatch.chdir(tmp_path)
    assert torch.equal(dlblocks.load("moved").predict(torch.ones(1, 13)), expected)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((2, 12)), r"has shape \(2, 12\); the model takes \(N, 13\)"),
        (np.ones(13), r"has shape \(13,\)"),
        ([["a"] * 13], "must be numbers"),
        (np.full((3, 13), np.nan), "instance 0, alcohol: nan is not a finite number"),
        (np.full((3, 13), 1e300), "1e\\+300 is not a finite number in float32"),
    ],
    ids=["columns", "one", "words", "nan", "large"],
)
def test_wrong_inputs_are_refused(wine: Path, x: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        dlblocks.load(wine).predict(x)


def test_a_module_in_training_does_not_predict(wine: Path) -> None:
    module = dlblocks.load(wine).train()
    with pytest.raises(UserError, match="call eval"):
        module.predict(np.ones((1, 13)))
    module = dlblocks.LitModule(task="regression", input_shape=(3,), outputs=1).eval()
    with pytest.raises(UserError, match="no data_format"):
        module.predict(np.ones((1, 3)))


def test_runs_that_cannot_be_loaded_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        dlblocks.load(tmp_path / "missing")
    with pytest.raises(UserError, match=r"has no result\.json"):
        dlblocks.load(tmp_path)
    kept = '{"folder": "x", "main_metric": ["a", "max"], "status": "completed", "best_checkpoint": 5}'
    for content in ("", "[1, 2]", '{"folder": 1, "colour": "red"}', "\0\1", "[" * 100_000, kept):
        (tmp_path / "result.json").write_text(content)
        with pytest.raises(UserError, match=r"result\.json: damaged"):
            dlblocks.load(tmp_path)


def test_a_run_that_failed_or_kept_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="became"):
        run(tmp_path / "failed", "optimizer=sgd", "optimizer.lr=1e12")
    with pytest.raises(UserError, match=r"failed \(the training loss became"):
        dlblocks.load(tmp_path / "failed")
    run(tmp_path / "none", "data=wine", "callbacks.checkpoint=null", "callbacks.last_checkpoint=null")
    with pytest.raises(UserError, match="kept no checkpoint"):
        dlblocks.load(tmp_path / "none")
    run(tmp_path / "gone", "data=wine")
    (tmp_path / "gone" / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(UserError, match="is gone"):
        dlblocks.load(tmp_path / "gone")


class _Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (str(self.path), "w"))


def test_damaged_and_hostile_checkpoints_are_refused(wine: Path, tmp_path: Path) -> None:
    whole = (wine / "checkpoints" / "best.ckpt").read_bytes()
    path = tmp_path / "x.ckpt"
    hostile = pickle.dumps({"state_dict": _Payload(tmp_path / "ran")})
    for content in (b"", b"words", whole[: len(whole) // 2], hostile):
        path.write_bytes(content)
        with pytest.raises(UserError, match="damaged, or not a checkpoint of plain values"):
            dlblocks.load(path)
    torch.save({"weights": torch.ones(2)}, path)
    with pytest.raises(UserError, match="no state_dict"):
        dlblocks.load(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_instantiator": "os.system"}, "no hyper-parameter _instantiator"),
        ({"model": {"name": "os.system"}}, "unknown model 'os.system'"),
        ({"model": {"_target_": "os.system", "name": "mlp"}}, "_target_"),
        ({"model": {"name": "mlp", "width": 64}}, "weights don't fit"),
        ({"data_format": {"shape": [13]}}, "data_format"),
        ({"input_shape": "many"}, "no module can be built"),
        ({"model": {"name": "mlp", "width": 60_000}}, "ask for over [0-9]+ numbers"),
        ({"model": {"name": "mlp", "depth": 10**9}}, "ask for over [0-9]+ numbers"),
    ],
    ids=str,
)
def test_hyper_parameters_of_a_stranger_are_refused(
    wine: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    content = torch.load(wine / "checkpoints" / "best.ckpt", weights_only=True)
    content["hyper_parameters"] |= change
    torch.save(content, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=message):
        dlblocks.load(tmp_path / "x.ckpt")


@pytest.mark.parametrize(
    "change",
    [{"shift": ["0"]}, {"scale": [0.0]}, {"scale": [float("nan")]}, {"shape": [0]}, {"features": ["a", "b"]}],
    ids=str,
)
def test_formats_that_contradict_themselves_are_refused(change: dict[str, Any]) -> None:
    whole = DataFormat((1,), (0.0,), (1.0,)).plain()
    assert DataFormat.from_plain(whole).plain() == whole
    with pytest.raises(UserError, match="data_format"):
        DataFormat.from_plain({**whole, **change})


def test_formats_are_alike_but_for_rounding() -> None:
    one = DataFormat((2,), (1.0, 200.0), (1e-3, 10.0), features=("a", "b"))
    assert one.like(replace(one, shift=(1.0 + 5e-9, 200.0), scale=(1e-3, 10.00001)))
    assert not one.like(replace(one, shift=(1.0 + 1e-6, 200.0)))
    assert not one.like(replace(one, scale=(1e-3, 10.1)))
    assert not one.like(replace(one, features=("b", "a")))
    assert not one.like(replace(one, shape=(2, 1)))


def test_a_ready_net_is_asked_for(tmp_path: Path) -> None:
    import lightning as L

    data = dlblocks.TableDataModule("wine")
    data.setup()
    module = dlblocks.LitModule(task="multiclass", input_shape=(13,), outputs=3, model=nn.Linear(13, 3))
    trainer = L.Trainer(
        max_epochs=1, logger=False, default_root_dir=tmp_path, enable_progress_bar=False, log_every_n_steps=1
    )
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    with pytest.raises(UserError, match="model was given as a ready object"):
        dlblocks.load(tmp_path / "x.ckpt")
