"""SIGKILL at random moments of a training run, resumed each time, against the run that nothing disturbs."""

from __future__ import annotations

import csv
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

TRAIN = [sys.executable, str(Path(__file__).resolve().parent / "train.py")]
RECIPE = [
    "data=digits",
    "model.dropout=0.1",
    # Most checkpoints are inside an epoch, of 34 steps, and the rate depends on the place in the run.
    "scheduler=one_cycle",
    "callbacks.last_checkpoint.every_n_train_steps=25",
    "callbacks=default",
    "callbacks.early_stopping=null",
    "callbacks.progress_bar=null",
    "callbacks.model_summary=null",
]


def faults(kills: int) -> list[tuple[str, ...]]:
    """Every third kill waits for the temporary file of a checkpoint; the others come up to 0.6 s after training began."""
    choose = random.Random(0)
    with tempfile.TemporaryDirectory() as root:
        calm, disturbed = Path(root) / "calm", Path(root) / "disturbed"
        recipe = [*RECIPE, f"trainer.max_epochs={8 * kills}"]
        subprocess.run([*TRAIN, *recipe, f"hydra.run.dir={calm}"], check=True, capture_output=True)
        done = writing = 0
        command = [*TRAIN, *recipe, f"hydra.run.dir={disturbed}"]
        while done < kills:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            aimed = done % 3 == 2
            before = _stamp(disturbed)
            if _wait(process, lambda was=before: _stamp(disturbed) != was):
                if aimed:
                    _wait(process, lambda: _partial(disturbed))
                else:
                    time.sleep(choose.uniform(0, 0.6))
            if process.poll() is not None:
                break
            process.kill()
            process.wait()
            writing += _partial(disturbed)
            done += 1
            command = [*TRAIN, f"resume={disturbed}"]
        ending = subprocess.run(command, check=False, capture_output=True, text=True)
        whole = (disturbed / "result.json").exists()
        ours = [_weights(folder, name) for folder in (calm, disturbed) for name in ("best", "last")]
        same = all(_equal(ours[i], ours[i + 2]) for i in (0, 1))
        logs = _log(calm) == _log(disturbed)
    return [
        ("kills", "", str(done), str(kills), "", str(kills)),
        ("of these while a checkpoint was written", "", str(writing), "", "", "> 0"),
        ("exit code of the last resume", "", str(ending.returncode), "0", "", "0"),
        ("result.json written", "", str(whole), "", "", "True"),
        ("best and last weights bit-identical", "undisturbed run", str(same), "", "", "True"),
        ("metrics.csv the same", "undisturbed run", str(logs), "", "", "True"),
    ]


def _wait(process: subprocess.Popen[bytes], until: Callable[[], bool]) -> bool:
    while process.poll() is None:
        if until():
            return True
        time.sleep(0.0005)
    return False


def _stamp(folder: Path) -> int:
    path = folder / "checkpoints" / "last.ckpt"
    return path.stat().st_mtime_ns if path.exists() else 0


def _partial(folder: Path) -> bool:
    return any((folder / "checkpoints").glob(".*.partial"))


def _weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    content = torch.load(folder / "checkpoints" / f"{name}.ckpt", map_location="cpu", weights_only=True)
    weights: dict[str, torch.Tensor] = content["state_dict"]
    return weights


def _equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _log(folder: Path) -> list[dict[str, str]]:
    """The values of the log, without the order of its columns and its rows of one step."""
    with (folder / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
    return sorted(rows, key=lambda row: (int(row["step"]), sorted(row)))
