"""Two processes that were killed go on with what each of them had."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from pathlib import Path

import torch

TRAIN = [sys.executable, str(Path(__file__).resolve().parents[2] / "scripts" / "train.py")]
RECIPE = [
    "trainer=ddp_cpu",
    "trainer.max_epochs=12",
    "data=wine",
    "data.batch_size=8",
    "model.dropout=0.2",  # drawn by each process for itself
    "callbacks.progress_bar=null",
    "callbacks.model_summary=null",
    "callbacks.early_stopping=null",
]


def test_killed_processes_go_on_to_the_same_weights(tmp_path: Path) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    subprocess.run([*TRAIN, *RECIPE, f"hydra.run.dir={calm}"], check=True, capture_output=True)
    process = subprocess.Popen(
        [*TRAIN, *RECIPE, f"hydra.run.dir={killed}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (killed / "checkpoints" / "last.ckpt").exists() and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    _, errors = process.communicate(timeout=60)  # which the other one ends, too
    assert errors.count("error:") == 1
    assert "rank 1" in errors
    subprocess.run([*TRAIN, f"resume={killed}"], check=True, capture_output=True)
    for name in ("best", "last"):
        ours, theirs = weights(killed, name), weights(calm, name)
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert curves(killed) == curves(calm)


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    path = folder / "checkpoints" / f"{name}.ckpt"
    content: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return content


def curves(folder: Path) -> list[dict[str, str]]:
    with (folder / "curves.csv").open() as file:
        return [{key: row[key] for key in sorted(row) if key != "seconds"} for row in csv.DictReader(file)]
