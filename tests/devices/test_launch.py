"""From the command line: divided nets, sweeps of them, and processes that torchrun starts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dlblocks.errors import UserError
from dlblocks.trainer import build_trainer

ROOT = Path(__file__).resolve().parents[2]
TRAIN = str(ROOT / "scripts" / "train.py")
SHORT = ("data=wine", "trainer.max_epochs=2", "callbacks.model_summary=null")


def run(cwd: Path, *arguments: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    pair = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}"] if processes > 1 else []
    return subprocess.run(
        [sys.executable, *pair, TRAIN, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def test_a_divided_net_in_each_run_of_a_sweep(tmp_path: Path) -> None:
    done = run(tmp_path, "-m", "trainer=fsdp_cpu", "seed=0", *SHORT)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert done.stdout.count("1 runs, best first") == 1
    assert len(list(tmp_path.glob("runs/*/*/*/result.json"))) == 1
    assert [path.name for path in tmp_path.glob("runs/*/*")] == [only(tmp_path, "runs/*/*-sweep").name]


def test_processes_of_torchrun_join_one_run(tmp_path: Path) -> None:
    done = run(tmp_path, "trainer=ddp_cpu", *SHORT, processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder") == 1
    folder = only(tmp_path, "runs/*/*")
    saved = json.loads((folder / "result.json").read_text())
    assert saved["status"] == "completed"
    assert saved["steps"] == 2 * 4  # 107 instances in batches of 32, of both together
    assert len((folder / "metrics.csv").read_text().splitlines()) == len(
        set((folder / "metrics.csv").read_text().splitlines())
    )
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}


def test_a_repeated_run_of_two_processes_is_one_run_with_the_same_weights(tmp_path: Path) -> None:
    assert run(tmp_path, "trainer=ddp_cpu", "hydra.run.dir=first", *SHORT).returncode == 0
    done = run(tmp_path, f"repeat={tmp_path / 'first'}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder") == 1
    again = only(tmp_path, "runs/*/*")
    ours, theirs = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (tmp_path / "first", again)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert json.loads((again / "result.json").read_text())["steps"] == 2 * 4


def test_two_machines_share_one_run(tmp_path: Path) -> None:
    """Started by hand on each; here both are this one."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    recipe = ("trainer=ddp_cpu", "trainer.num_nodes=2", "trainer.devices=1", *SHORT)
    machines = [
        subprocess.Popen(
            [sys.executable, TRAIN, *recipe],
            cwd=tmp_path,
            env={
                **os.environ,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "NODE_RANK": str(number),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    said = [machine.communicate(timeout=120) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert "run folder" in said[0][0]
    assert "run folder" not in said[1][0]
    saved = json.loads((only(tmp_path, "runs/*/*") / "result.json").read_text())
    assert (saved["status"], saved["steps"]) == ("completed", 2 * 4)


def test_a_recipe_for_other_processes_than_torchrun_started_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "TORCHELASTIC_RUN_ID": "none",
        "WORLD_SIZE": "4",
        "RANK": "0",
        "LOCAL_RANK": "0",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"trainer\.devices=2.* are 2 processes, and torchrun started 4"):
        build_trainer({"accelerator": "cpu", "devices": 2, "strategy": "ddp"}, [], [], tmp_path)
