"""Several processes end together: killed, failed or stuck, with one message and code 1."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRAIN = [sys.executable, str(ROOT / "scripts" / "train.py"), "hydra.run.dir=run"]
QUIET = ("callbacks.progress_bar=null", "callbacks.model_summary=null", "callbacks.early_stopping=null")
ENDLESS = ("data=wine", "trainer.max_epochs=100000", *QUIET)

# On rank 1 an error, or an end without a word while rank 0 waits for something else for ever.
FAILING = """
import os, time
from lightning.pytorch.callbacks import Callback

class Failing(Callback):
    def __init__(self, how):
        self.how = how

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step < 3:
            return
        if trainer.global_rank == 1:
            if self.how == "raise":
                raise ValueError("rank 1 is sad")
            os._exit(3)
        elif self.how == "hang":
            time.sleep(1000)
"""


def start(cwd: Path, *arguments: str, trainer: str = "ddp_cpu", **environment: str) -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, (str(cwd), os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [*TRAIN, f"trainer={trainer}", *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **environment},
    )


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_gone(pid: int) -> bool:
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not Path(f"/proc/{pid}").exists()


def in_training(cwd: Path, process: subprocess.Popen[str]) -> int:
    """Wait until both train; the id of the second."""
    deadline = time.monotonic() + 120
    while not list(cwd.glob("run/checkpoints/last.ckpt")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.1)
    (child,) = children(process.pid)
    return child


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the other process by /proc")
@pytest.mark.parametrize("which", ["main", "other"])
def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path: Path, which: str) -> None:
    process = start(tmp_path, "model.dropout=0.2", *ENDLESS)
    child = in_training(tmp_path, process)
    os.kill(child if which == "other" else process.pid, signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert is_gone(child)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "interrupted"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the other process by /proc")
def test_a_killed_process_ends_the_run(tmp_path: Path) -> None:
    process = start(tmp_path, *ENDLESS)
    child = in_training(tmp_path, process)
    os.kill(child, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.count("error:") == 1
    assert "the process of rank 1, of 2 processes, was killed by SIGKILL" in errors
    assert "Traceback" not in errors
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert saved["status"] == "failed"
    assert "SIGKILL" in saved["error"]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the other process by /proc")
def test_no_process_outlives_the_main_one(tmp_path: Path) -> None:
    """Of a divided net; `test_resumed` does it to copies of one."""
    process = start(tmp_path, *ENDLESS, trainer="fsdp_cpu")
    child = in_training(tmp_path, process)
    process.kill()
    _, errors = process.communicate(timeout=60)
    assert is_gone(child)
    assert errors.count("error:") == 1
    assert re.search("rank 1: another process of this run ended|the main process is gone, so rank 1", errors)
    assert not (tmp_path / "run" / "traceback.txt").exists()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", "rank 1, of 2 processes, ended with exit code 1: ValueError: rank 1 is sad"),
        ("hang", "rank 1, of 2 processes, ended with exit code 3."),
    ],
)
def test_a_failed_process_ends_the_run(tmp_path: Path, how: str, message: str) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    failing = ("+callbacks.failing._target_=failing.Failing", f"+callbacks.failing.how={how}")
    process = start(tmp_path, *ENDLESS, *failing)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 1
    assert errors.count("error:") == 1
    assert message in errors
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert saved["status"] == "failed"
    assert message in saved["error"]


def test_a_mistake_of_all_is_told_once(tmp_path: Path) -> None:
    process = start(tmp_path, *ENDLESS, "optimizer=sgd", "optimizer.lr=1e12")
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 1
    assert errors.count("error:") == 1
    assert "the training loss became" in errors


def test_processes_that_cannot_meet_say_where(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = start(tmp_path, *ENDLESS, MASTER_PORT=str(port))
        _, errors = process.communicate(timeout=90)
    assert process.returncode == 1
    assert errors.count("error:") == 1
    assert f"can't meet at 127.0.0.1:{port}" in errors
