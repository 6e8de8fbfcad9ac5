"""Files that others wrote, damaged in any way: read, or refused by one error that names the file."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dlblocks
from dlblocks.errors import UserError
from dlblocks.results import STATUSES, Result
from dlblocks.runs import read_recipe, read_status
from dlblocks.sweeps.picture import read_curves
from dlblocks.training import resume

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ANY_TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
SAME_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
LAUGHS = "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 30))
# A state that lets NumPy read beyond its numbers.
NUMPY = ("MT19937", [0] * 624, 10**6, 0, 0.0)
WHOLE: dict[str, Any] = {
    "folder": "runs/a",
    "status": "completed",
    "seed": 1,
    "task": "binary",
    "metrics": {"val/loss": 0.5},
    "tested_epoch": 3,
    "main_metric": ["val/auroc", "max"],
    "best_checkpoint": "runs/a/checkpoints/best.ckpt",
    "diagnosis": "trains",
    "chosen": {"optimizer.lr": 0.1},
    "parameters": 10,
    "epochs": 4,
    "steps": 8,
    "seconds": {"fit": 1.5},
    "versions": {"torch": "2"},
    "error": None,
}


def write(folder: Path, content: Any) -> None:
    (folder / "result.json").write_text(json.dumps(content), encoding="utf-8")


def refusal(reading: Callable[[Path], object], folder: Path) -> str | None:
    """The message of the one error that may come."""
    try:
        reading(folder)
    except UserError as error:
        return str(error)
    return None


@SAME_FOLDER
@given(
    status=st.sampled_from(STATUSES),
    metrics=st.dictionaries(ANY_TEXT, st.floats()),
    seed=st.integers(),
    best=st.none() | ANY_TEXT,
    chosen=st.dictionaries(ANY_TEXT, st.floats(allow_nan=False, allow_infinity=False) | st.integers()),
    error=st.none() | ANY_TEXT,
)
def test_every_result_is_read_back(
    tmp_path: Path, status: str, metrics: dict[str, float], seed: int, best: Any, chosen: Any, error: Any
) -> None:
    result = Result(
        str(tmp_path), status, seed, metrics=metrics, best_checkpoint=best, chosen=chosen, error=error
    )
    result.save()
    again = Result.load(tmp_path)
    kept = {name: value if math.isfinite(value) else math.nan for name, value in metrics.items()}
    assert repr(again.metrics) == repr(kept)
    again.metrics = result.metrics
    assert again == result
    assert read_status(tmp_path) == status


@SAME_FOLDER
@given(name=st.sampled_from([field.name for field in fields(Result)]), value=PLAIN)
def test_a_field_of_another_type_is_named(tmp_path: Path, name: str, value: Any) -> None:
    write(tmp_path, {**WHOLE, name: value})
    refused = refusal(Result.load, tmp_path)
    if refused is not None:
        assert refused.startswith(f"{tmp_path}/result.json: damaged; {name} ")
        return
    loaded = Result.load(tmp_path)
    # What was taken is of the type that the field of a whole one has.
    whole = bool if name == "modified" else type(getattr(Result(""), name))
    assert isinstance(getattr(loaded, name), (whole, str, type(None)))
    loaded.table()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", True),
        ("seed", 1.0),
        ("steps", "8"),
        ("metrics", {"val/loss": "0.5"}),
        ("metrics", {"val/loss": 10**400}),
        ("metrics", [0.5]),
        ("main_metric", ["val/auroc"]),
        ("main_metric", ["val/auroc", "most"]),
        ("best_checkpoint", 5),
        ("chosen", None),
        ("versions", {"torch": 2}),
        ("status", "done"),
        ("colour", "red"),
    ],
)
def test_wrong_fields_are_refused_by_name(tmp_path: Path, name: str, value: Any) -> None:
    write(tmp_path, {**WHOLE, name: value})
    with pytest.raises(UserError, match=rf"result\.json: damaged; .*{name}"):
        Result.load(tmp_path)


def test_a_whole_one_is_read_and_a_field_of_a_later_version_may_be_absent(tmp_path: Path) -> None:
    write(tmp_path, WHOLE)
    assert Result.load(tmp_path).metrics == {"val/loss": 0.5}
    write(tmp_path, {"folder": "a", "status": "failed"})
    assert Result.load(tmp_path) == Result("a", "failed")
    write(tmp_path, {"status": "failed"})
    with pytest.raises(UserError, match="folder must be there"):
        Result.load(tmp_path)


@SAME_FOLDER
@given(content=st.binary(max_size=60))
def test_bytes_of_any_kind_are_read_or_refused(tmp_path: Path, content: bytes) -> None:
    files: dict[str, Callable[[Path], object]] = {
        "result.json": Result.load,
        "config.yaml": read_recipe,
        "curves.csv": read_curves,
    }
    for name, reading in files.items():
        (tmp_path / name).write_bytes(content)
        refused = refusal(reading, tmp_path)
        assert refused is None or refused.startswith(f"{tmp_path}/{name}: damaged")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_and_a_device_are_not_waited_for(tmp_path: Path) -> None:
    for name in ("result.json", "config.yaml", "curves.csv"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="it is no file"):
        read_status(tmp_path)
    with pytest.raises(UserError, match="has no config"):
        read_recipe(tmp_path)
    assert read_curves(tmp_path) == []
    (tmp_path / "result.json").unlink()
    (tmp_path / "result.json").symlink_to("/dev/zero")
    with pytest.raises(UserError, match="it is no file"):
        Result.load(tmp_path)


def test_curves_are_read_as_they_were_written_and_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "curves.csv"
    assert read_curves(tmp_path) == []
    path.write_text("epoch,step,val/loss\n0,5,0.25\n1,10,\n")
    assert read_curves(tmp_path) == [{"epoch": 0, "step": 5, "val/loss": 0.25}, {"epoch": 1, "step": 10}]
    for row, message in (
        ("1,10,x", "line 3 val/loss must be a number"),
        ("1,10", "line 3 has another number"),
        ("1,10,1,1", "line 3 has another number"),
        (",10,1", "line 3 has no epoch"),
    ):
        path.write_text(f"epoch,step,val/loss\n0,5,0.25\n{row}\n")
        with pytest.raises(UserError, match=message):
            read_curves(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: !!python/object/apply:os.system [touch ran]", "could not determine a constructor"),
        ("a0: &a0 x\n" + LAUGHS, "more than 100000 values"),
        ("a: &a [*a]", "nested more than 50 deep"),
        ("[" * 60 + "]" * 60, "nested more than 50 deep"),
        ("[" * 5000 + "]" * 5000, "recursion"),
    ],
    ids=["tag", "laughs", "itself", "deep", "deeper"],
)
def test_recipes_that_would_take_all_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(content)
    with pytest.raises(UserError, match=rf"config\.yaml: damaged.*{message}"):
        read_recipe("")
    assert not Path("ran").exists()


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("begun") / "run"
    quiet = ("callbacks.progress_bar=null", "callbacks.model_summary=null")
    dlblocks.train(dlblocks.compose("data=wine", "model.widths=[4]", "trainer.max_epochs=1", *quiet), folder)
    return folder


def _at(content: Any, *path: Any) -> tuple[Any, Any]:
    for key in path[:-1]:
        content = content[key]
    return content, path[-1]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["callbacks"], 5, "callbacks can't be 5"),
        (["global_step"], -1, "global_step can't be -1"),
        (["epoch"], -1, "epoch can't be -1"),
        (["loops"], [1], r"loops can't be \[1\]"),
        (["callbacks", "Continuity"], 5, "can't go on"),
        (["hyper_parameters", "optimizer"], "sgd", "hyper_parameters.optimizer can't be 'sgd'"),
        (["pytorch-lightning_version"], "", "can't go on .*Invalid version"),
        (["train_meters"], [5], "can't go on"),
        (["callbacks", "Continuity", "random", 0, "numpy"], NUMPY, "can't go on .*no position 1000000"),
        (["optimizer_states", 0, "state", 0, "exp_avg"], torch.zeros(2), r"exp_avg can't be \(2,\)"),
        (
            ["optimizer_states", 0, "state", 0, "exp_avg_sq"],
            torch.zeros(1).expand(4, 13),
            r"exp_avg_sq can't be",
        ),
        (["optimizer_states", 0, "state", 0, "step"], torch.zeros(0), r"step can't be \(0,\)"),
        (
            ["optimizer_states", 0, "state", 0, "exp_avg"],
            torch.zeros(1).expand(10**5, 10**5),
            "tensors claim 400",
        ),
        (["optimizer_states", 0, "state"], 5, "can't go on"),
        (["optimizer_states", 0, "state", 0], {"step": "x"}, "can't go on"),
        (["optimizer_states", 0, "param_groups", 0, "lr"], "x", r"can't go on .*\)\.$"),
    ],
)
def test_strange_values_of_what_resuming_takes_up_are_refused_by_name(
    tmp_path: Path, begun: Path, path: list[Any], value: Any, message: str
) -> None:
    run = shutil.copytree(begun, tmp_path / "run")
    last = run / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    holder, key = _at(content, *path)
    holder[key] = value
    torch.save(content, last)
    recipe = read_recipe(run) | {"ckpt_path": str(last)}
    recipe["trainer"]["max_epochs"] = 2
    with pytest.raises(UserError, match=f"ckpt_path={re.escape(str(last))}: .*{message}"):
        dlblocks.train(recipe, tmp_path / "other")


def test_the_run_that_a_strange_checkpoint_belongs_to_is_told_so(tmp_path: Path, begun: Path) -> None:
    run = shutil.copytree(begun, tmp_path / "run")
    for path in run.glob("checkpoints/*.ckpt"):
        torch.save({**torch.load(path, weights_only=True), "callbacks": {"History": 5}}, path)
    match = r"^.*run/checkpoints/\S+\.ckpt: damaged; callbacks\.History can't be 5\. Without that file the run goes on"
    with pytest.raises(UserError, match=match):
        resume(run, 2)


@pytest.mark.parametrize("way", ["up", "link", "protocol"])
def test_going_on_removes_nothing_but_checkpoints_of_the_run(tmp_path: Path, begun: Path, way: str) -> None:
    run = shutil.copytree(begun, tmp_path / "run")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    folder = run / "checkpoints"
    (folder / "link").symlink_to(tmp_path)
    path = {
        "up": f"{folder}/../../mine",
        "link": f"{folder}/link/mine",
        "protocol": f"local://{mine}",
    }[way]
    last = folder / "last.ckpt"
    content = torch.load(last, weights_only=True)
    for state in content["callbacks"].values():
        if "best_k_models" in state:
            state |= {"dirpath": str(folder), "best_model_path": path, "kth_best_model_path": path}
            state |= {"best_k_models": {path: torch.tensor(-1.0)}, "kth_value": torch.tensor(-1.0)}
    for other in folder.glob("*.ckpt"):
        other.unlink()
    torch.save(content, last)
    with pytest.raises(
        UserError, match=re.escape(f"a path of callbacks.ModelCheckpoint can't be '{path[:9]}")
    ):
        resume(run, 2)
    assert (mine / "thesis.txt").exists()


def test_a_sample_of_the_fuzz_ends_well() -> None:
    """`python scripts/benchmark.py fuzz` has ten thousand of these cases."""
    script = Path(__file__).resolve().parents[1] / "scripts" / "benchmark.py"
    command = [sys.executable, str(script), "fuzz", "--repeats", "300"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "60 cases" in done.stdout
    assert "other" in done.stdout


def test_the_fuzz_would_tell_a_payload_that_ran(tmp_path: Path) -> None:
    scripts = Path(__file__).resolve().parents[1] / "scripts"
    code = (
        "import os, sys, torch, benchmark_fuzz as fuzz\n"
        "fuzz.read = lambda path: torch.load(path, weights_only=False)\n"
        "torch.save(fuzz.PAYLOADS[3], 'a.ckpt')\n"
        "print(fuzz._end('a', lambda: fuzz.read('a.ckpt')), fuzz._end('b', lambda: 1 / 0))\n"
    )
    command = [sys.executable, "-c", code]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(scripts), *sys.path])}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["other", "other"], done.stderr
