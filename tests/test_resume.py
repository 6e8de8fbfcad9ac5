"""Runs that are stopped by real signals and go on."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

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


@pytest.mark.parametrize(
    ("number", "code", "settings"),
    [
        (signal.SIGTERM, 143, []),
        (signal.SIGINT, 130, []),
        (signal.SIGKILL, -9, []),
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


def test_a_complete_run_is_not_resumed(calm: Path) -> None:
    again = train(f"resume={calm}")
    assert again.returncode == 1
    assert "the run is complete" in again.stderr


def test_settings_beside_resume_are_refused(tmp_path: Path) -> None:
    answer = train(f"resume={tmp_path}", "seed=3")
    assert answer.returncode == 1
    assert "seed=3" in answer.stderr
