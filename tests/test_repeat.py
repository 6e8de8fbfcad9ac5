"""Runs that are repeated, moved, or stopped twice, in processes of their own."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from torch.utils.data import DataLoader, TensorDataset

import dlblocks
from dlblocks.recipe import check
from dlblocks.results import Result
from dlblocks.revision import revision
from dlblocks.trainer import build_trainer

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
TRAIN = [sys.executable, str(SCRIPTS / "train.py")]
RECIPE = [
    "data=wine",
    "data.batch_size=8",
    "model.dropout=0.2",
    "trainer.max_epochs=4",
    # The rate grows, so that the first epochs are the best ones.
    "scheduler=exponential",
    "scheduler.gamma=4",
    "callbacks.progress_bar=null",
    "callbacks.model_summary=null",
    "callbacks.early_stopping=null",
]


def train(*words: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **variables}
    return subprocess.run([*TRAIN, *words], cwd=cwd, env=env, check=False, capture_output=True, text=True)


def weights(folder: Path, name: str = "last") -> dict[str, torch.Tensor]:
    path = folder / "checkpoints" / f"{name}.ckpt"
    content: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return content


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calm")
    done = train(*RECIPE, "hydra.run.dir=run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def changed(run: Path, to: Path, **changes: Any) -> Path:
    """A run folder with the config of another, changed."""
    to.mkdir()
    recipe = yaml.safe_load((run / "config.yaml").read_text())
    (to / "config.yaml").write_text(yaml.safe_dump({**recipe, **changes}))
    return to


def test_a_repeated_run_is_the_same_after_other_imports_and_with_another_logger(
    calm: Path, tmp_path: Path
) -> None:
    callbacks = yaml.safe_load((calm / "config.yaml").read_text())["callbacks"]
    del callbacks["lr_monitor"]  # which Lightning refuses without a logger
    other = changed(calm, tmp_path / "other", logger={}, callbacks=callbacks)
    code = (
        "import sklearn.datasets, matplotlib, torchmetrics, lightning, torch, numpy, random, sys\n"
        "random.random(); numpy.random.rand(); torch.rand(3)\n"
        "from dlblocks.hydra.main import main\n"
        "sys.exit(main())\n"
    )
    command = [sys.executable, "-c", code, f"repeat={other}", "root=again"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (again,) = tmp_path.glob("again/*/*")
    assert not (again / "metrics.csv").exists()
    assert same(weights(again), weights(calm))
    assert same(weights(again, "best"), weights(calm, "best"))
    assert Result.load(again).metrics == Result.load(calm).metrics


def test_the_result_says_how_to_repeat_it(calm: Path) -> None:
    result = Result.load(calm)
    assert result.recipe == yaml.safe_load((calm / "config.yaml").read_text())
    assert check(result.recipe).run["seed"] == result.seed
    assert result.versions["torch"] == torch.__version__


def git(*words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    return subprocess.run(["git", *who, *words], check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_revision_is_that_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert revision() == (None, None)
    git("init", "-q")
    assert revision() == (None, None)
    Path("a.txt").write_text("1")
    git("add", "a.txt")
    git("commit", "-q", "-m", "one")
    commit = git("rev-parse", "HEAD")
    assert revision() == (commit, False)
    Path("untracked.txt").write_text("1")
    assert revision() == (commit, False)
    Path("a.txt").write_text("2")
    assert revision() == (commit, True)
    # A repository may name a program of its own that git starts.
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\ntouch ran\n")
    program.chmod(0o755)
    git("config", "core.fsmonitor", str(program))
    assert revision() == (commit, True)
    assert not Path("ran").exists()
    monkeypatch.setenv("PATH", "")
    assert revision() == (None, None)


def test_deterministic_is_passed_to_torch(tmp_path: Path) -> None:
    recipe = check(dlblocks.compose("trainer.deterministic=true", "callbacks=none"))
    before = torch.are_deterministic_algorithms_enabled()
    try:
        build_trainer(recipe.trainer, [], [], tmp_path)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*Skipping val loop")
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_workers_of_a_foreign_loader_do_not_change_the_weights(tmp_path: Path) -> None:
    x = torch.rand(48, 5, generator=torch.Generator().manual_seed(1))
    found = []
    for workers in (0, 2):
        torch.manual_seed(3)
        module = dlblocks.LitModule(
            task="regression", input_shape=(5,), outputs=1, model={"name": "mlp", "dropout": 0.3}
        )
        trainer = L.Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        data = TensorDataset(x, x.sum(1, keepdim=True))
        trainer.fit(module, DataLoader(data, batch_size=8, shuffle=True, num_workers=workers))
        found.append({name: value.clone() for name, value in module.state_dict().items()})
    assert same(*found)


@pytest.mark.parametrize("word", ["resume", "repeat"])
def test_a_target_that_is_a_function_is_refused_and_not_run(calm: Path, tmp_path: Path, word: str) -> None:
    hostile = {"_target_": "os.system", "command": "touch ran"}
    group = {"resume": "callbacks", "repeat": "logger"}[word]
    run = changed(calm, tmp_path / "run", **{group: {"mine": hostile}})
    done = train(f"{word}={run}", cwd=tmp_path)
    assert done.returncode == 1
    kind = {"resume": "Callback", "repeat": "Logger"}[word]
    assert done.stderr.strip().splitlines()[-1] == (
        f"error: {group}.mine._target_=os.system: refused, since it is not a {kind}."
    )
    assert not list(tmp_path.rglob("ran"))


def test_a_tag_that_is_a_call_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: !!python/object/apply:os.system [touch ran]\n")
    done = train(f"repeat={tmp_path}", cwd=tmp_path)
    assert done.returncode == 1
    assert "config.yaml: damaged" in done.stderr
    assert not list(tmp_path.rglob("ran"))


BROKEN = """
import time
from lightning.pytorch.callbacks import Callback


class Broken(Callback):
    def on_train_start(self, trainer, pl_module):
        raise RuntimeError("of its own")


class Slow(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        open("begun", "w").close()
        time.sleep(600)
"""


def test_an_error_of_a_repeated_run_leaves_its_traceback_in_a_file(calm: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(BROKEN)
    run = changed(calm, tmp_path / "run", callbacks={"own": {"_target_": "own.Broken"}})
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = train(f"repeat={run}", cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert done.stderr.count("error:") == 1
    (left,) = tmp_path.glob("runs/*/*/traceback.txt")
    assert "of its own" in left.read_text()
    assert f"RuntimeError: of its own. The traceback is in {left.relative_to(tmp_path)}" in done.stderr
    assert json.loads(left.with_name("result.json").read_text())["status"] == "failed"


def test_debug_shows_the_traceback_of_a_resumed_run(tmp_path: Path) -> None:
    done = train("resume=missing", "debug=true", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    done = train("resume=missing", "debug=yes", cwd=tmp_path)
    assert "debug=yes: must be true or false" in done.stderr


def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(BROKEN)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [*TRAIN, *RECIPE, "+callbacks.own._target_=own.Slow", "hydra.run.dir=run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # A shell has what runs in its background ignore it, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (tmp_path / "begun").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)  # the first one waits for the step
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 143  # of the first one


def test_a_moved_run_goes_on_with_its_best_checkpoint(calm: Path, tmp_path: Path) -> None:
    shutil.copytree(calm, tmp_path / "b")
    before = Result.load(calm)
    assert before.tested_epoch < 3
    done = train("resume=b", "trainer.max_epochs=5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    after = Result.load(tmp_path / "b")
    assert after.tested_epoch == before.tested_epoch
    assert after.metrics["val/loss"] == before.metrics["val/loss"]
    assert after.best_checkpoint == "b/checkpoints/best.ckpt"
    assert sorted(path.name for path in (tmp_path / "b" / "checkpoints").iterdir()) == [
        "best.ckpt",
        "last-previous.ckpt",
        "last.ckpt",
    ]
    with (tmp_path / "b" / "curves.csv").open() as file:
        assert [float(row["epoch"]) for row in csv.DictReader(file)] == list(range(5))
