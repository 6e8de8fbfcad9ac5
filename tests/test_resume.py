"""Runs that are stopped by real signals and go on."""

from __future__ import annotations

import csv
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import dlblocks
from dlblocks.checkpoints import AtomicCheckpoints
from dlblocks.errors import UserError
from dlblocks.hydra.again import run_again
from dlblocks.runs import held, last_unfinished, saved_recipe
from dlblocks.training import resume

TRAIN = [sys.executable, str(Path(__file__).resolve().parents[1] / "scripts" / "train.py")]
QUIET = ["callbacks.progress_bar=null", "callbacks.model_summary=null", "callbacks.early_stopping=null"]
RECIPE = ["data=wine", "data.batch_size=4", "model.dropout=0.2", "trainer.max_epochs=8", *QUIET]


def train(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TRAIN, *words], check=False, capture_output=True, text=True)


def weights(folder: Path, checkpoint: str) -> dict[str, torch.Tensor]:
    path = folder / "checkpoints" / f"{checkpoint}.ckpt"
    content: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return content


def curves(folder: Path) -> list[dict[str, str]]:
    with (folder / "curves.csv").open() as file:
        return [{key: row[key] for key in sorted(row) if key != "seconds"} for row in csv.DictReader(file)]


def result(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return content


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calm")
    assert train(*RECIPE, f"hydra.run.dir={folder}").returncode == 0
    return folder


def log(folder: Path) -> list[dict[str, str]]:
    """The values of the log, without the order of its rows of one step."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
    return sorted(rows, key=lambda row: (int(row["step"]), sorted(row)))


@pytest.mark.parametrize("every", [3, 4])
def test_a_run_goes_on_from_every_checkpoint_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """Of 4 steps an epoch, so that some are due at an epoch's last step; as they lie there after each is written."""
    calm, moments = tmp_path / "calm", []
    written = AtomicCheckpoints.save_checkpoint

    def save(self: AtomicCheckpoints, checkpoint: dict[str, Any], path: str, **options: Any) -> None:
        written(self, checkpoint, path, **options)
        if str(path).startswith(str(calm)):
            moments.append(tmp_path / f"moment{len(moments)}")
            shutil.copytree(calm, moments[-1])

    monkeypatch.setattr(AtomicCheckpoints, "save_checkpoint", save)
    settings = ["trainer.max_epochs=4", f"callbacks.last_checkpoint.every_n_train_steps={every}"]
    recipe = ["data=wine", "model.dropout=0.2", "scheduler=one_cycle", "diagnose=off", *settings, *QUIET]
    dlblocks.train(dlblocks.compose(*recipe), calm)
    assert len(moments) > 6
    for moment in moments:
        resume(moment)
        for name in ("best", "last"):
            ours, theirs = weights(moment, name), weights(calm, name)
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs), (moment.name, name)
        assert log(moment) == log(calm), moment.name
        assert curves(moment) == curves(calm), moment.name


@pytest.mark.parametrize(
    ("number", "code", "settings"),
    [
        (signal.SIGTERM, 143, []),
        (signal.SIGINT, 130, []),
        (signal.SIGKILL, -9, ["callbacks.last_checkpoint.every_n_train_steps=5"]),
    ],
)
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(
    tmp_path: Path, calm: Path, number: signal.Signals, code: int, settings: list[str]
) -> None:
    stopped = tmp_path / "stopped"
    process = subprocess.Popen(
        [*TRAIN, *RECIPE, *settings, f"hydra.run.dir={stopped}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (stopped / "checkpoints" / "last.ckpt").exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(number)
    assert process.wait() == code
    if code > 0:
        assert result(stopped)["status"] == "interrupted"
    assert train(f"resume={stopped}").returncode == 0
    for checkpoint in ("best",) if settings else ("best", "last"):
        ours, theirs = weights(stopped, checkpoint), weights(calm, checkpoint)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    # Also those of the epoch in whose middle it was stopped.
    assert curves(stopped) == curves(calm)
    assert result(stopped)["diagnosis"] == result(calm)["diagnosis"] != ""


STOPPER = """
import os, signal
from lightning.pytorch.callbacks import Callback

place = None  # epoch and batch

class Stopper(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        global place
        if (trainer.current_epoch, batch_idx) == place:
            place = None
            os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize(
    "settings",
    [
        # These count all steps of the run, for which Lightning sets up the data before it knows the place in them.
        ["scheduler=one_cycle", "model.dropout=0.2"],
        ["scheduler=cosine_warm_restarts", "optimizer=noisy_sgd"],
        # Between two updates there are gradients that no checkpoint has.
        ["data.effective_batch_size=24", "trainer.gradient_clip_val=0.1"],
    ],
)
def test_a_run_that_was_stopped_inside_epochs_goes_on_with_the_next_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str]
) -> None:
    (tmp_path / "stopper.py").write_text(STOPPER)
    monkeypatch.syspath_prepend(tmp_path)
    stopper: Any = importlib.import_module("stopper")
    small = ["data=wine", "data.batch_size=8", "trainer.max_epochs=3", "diagnose=off", *QUIET]
    recipe = dlblocks.compose(*small, *settings, "+callbacks.stopper._target_=stopper.Stopper")
    dlblocks.train(recipe, tmp_path / "calm")
    run = tmp_path / "stopped"
    try:
        stopper.place = (0, 3)
        with pytest.raises(KeyboardInterrupt):
            dlblocks.train(recipe, run)
        stopper.place = (1, 6)
        with pytest.raises(KeyboardInterrupt):
            resume(run)
        resume(run)
    finally:
        del sys.modules["stopper"]
    ours, theirs = weights(run, "last"), weights(tmp_path / "calm", "last")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert curves(run) == curves(tmp_path / "calm")


def refused(*words: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert run_again(words) == 1
    return capsys.readouterr().err


def test_a_complete_run_is_not_resumed(calm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "the run is complete" in refused(f"resume={calm}", capsys=capsys)


def test_settings_beside_resume_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "seed=3" in refused(f"resume={tmp_path}", "seed=3", capsys=capsys)


@pytest.fixture
def unfinished(tmp_path: Path, calm: Path) -> Path:
    """A folder of runs without a result, the newest last: `waiting`, `damaged`, `busy`."""
    for name in ("waiting", "damaged", "busy"):
        run = shutil.copytree(calm, tmp_path / name)
        os.utime(run / "config.yaml")
        (run / "result.json").unlink()
    (tmp_path / "damaged" / "result.json").write_text("{")
    return tmp_path


def test_a_run_that_is_under_way_is_left_alone(unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    busy = unfinished / "busy"
    before = {path: path.stat().st_mtime_ns for path in busy.rglob("*") if ".hydra" not in path.parts}
    with held(busy):
        said = refused(f"resume={busy}", capsys=capsys)
        assert said == f"error: {busy}: another process is training in it.\n"
        answer = train(*RECIPE, f"hydra.run.dir={busy}")
    assert answer.returncode == 1
    assert answer.stderr.endswith("busy: another process is training in it.\n")
    after = {path: path.stat().st_mtime_ns for path in busy.rglob("*") if ".hydra" not in path.parts}
    assert after == before


def test_the_last_run_is_the_newest_that_can_go_on(
    unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with held(unfinished / "busy"):
        assert run_again(["resume=last", f"root={unfinished}"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left aside: ")]
    assert [line.split(": ")[1] for line in said] == [
        f"{unfinished}/busy",
        f"{unfinished}/damaged/result.json",
    ]
    assert result(unfinished / "waiting")["status"] == "completed"


def test_where_no_run_can_go_on_it_is_told_why(tmp_path: Path, calm: Path) -> None:
    shutil.copytree(calm, tmp_path / "complete")
    for name, content in (("damaged", "[1"), ("list", "- 1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(content)
    with pytest.raises(UserError, match=r"no unfinished run under .* that can go on\.") as failed:
        last_unfinished(tmp_path)
    assert str(failed.value).count("config.yaml: damaged") == 2


def test_a_run_with_a_damaged_result_is_told_how_it_goes_on(unfinished: Path) -> None:
    with pytest.raises(UserError, match=r"result\.json: damaged .* Without that file the run can go on"):
        saved_recipe(unfinished / "damaged")
