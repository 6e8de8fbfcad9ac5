"""A disk that is full ends a run with one message, and loses nothing that was on it."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from dlblocks.checkpoints import newest, read

TRAIN = [sys.executable, str(Path(__file__).resolve().parents[1] / "scripts" / "train.py")]
RECIPE = [
    "data=wine",
    "data.batch_size=8",
    "model.dropout=0.2",
    "callbacks.progress_bar=null",
    "callbacks.model_summary=null",
    "callbacks.early_stopping=null",
]
EPOCHS = "trainer.max_epochs=5"
# In a mount namespace of its own: the disk is there for these commands only.
ON_A_SMALL_DISK = """
mount -t tmpfs -o size=4m none disk || exit 99
head -c {filled} /dev/zero > disk/filler
"$@" hydra.run.dir=disk/run; echo "code $?"
cp -r disk/run failed
rm disk/filler
"{python}" "{script}" resume=disk/run; echo "code $?"
cp -r disk/run resumed
"""


def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    trial = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(trial, capture_output=True, check=False).returncode == 0


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = read(folder / "checkpoints" / "last.ckpt")["state_dict"]
    return found


def run(words: Sequence[str], cwd: Path, largest_file: int | None = None) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

    return subprocess.run(
        [*TRAIN, *words], cwd=cwd, preexec_fn=limit, check=False, capture_output=True, text=True
    )


def check_message(output: str, name: str, reason: str) -> None:
    assert "Traceback" not in output
    assert output.count("error:") == 1
    (line,) = [line for line in output.splitlines() if "error:" in line]
    assert name in line
    assert reason in line


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calm")
    assert run([*RECIPE, EPOCHS, "hydra.run.dir=run"], folder).returncode == 0
    return folder / "run"


@pytest.mark.skipif(not can_mount(), reason="no file system can be mounted here")
def test_a_disk_that_fills_up(tmp_path: Path, calm: Path) -> None:
    (tmp_path / "disk").mkdir()
    size = (calm / "checkpoints" / "last.ckpt").stat().st_size
    filled = 4 * 2**20 - 5 * size // 2 - 60_000  # of the other files of a run
    script = ON_A_SMALL_DISK.format(filled=filled, python=TRAIN[0], script=TRAIN[1])
    command = ["unshare", "-rm", "sh", "-c", script, "sh", *TRAIN, *RECIPE, EPOCHS]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert [line for line in done.stdout.splitlines() if line.startswith("code")] == ["code 1", "code 0"], (
        done
    )
    check_message(done.stderr, "disk/run/checkpoints/", "No space left on device")
    path, damaged = newest(tmp_path / "failed")
    assert damaged == []
    assert path is not None
    assert not list((tmp_path / "failed" / "checkpoints").glob(".*"))
    assert json.loads((tmp_path / "failed" / "result.json").read_text())["status"] == "failed"
    ours, theirs = weights(tmp_path / "resumed"), weights(calm)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_file_that_may_not_grow(tmp_path: Path, calm: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(calm, folder)
    # As it was one epoch before its end.
    (folder / "checkpoints" / "last-previous.ckpt").replace(folder / "checkpoints" / "last.ckpt")
    (folder / "result.json").unlink()
    good = (folder / "checkpoints" / "last.ckpt").read_bytes()
    failed = run(["resume=run"], tmp_path, largest_file=len(good) // 2)
    assert failed.returncode == 1
    check_message(failed.stderr, "run/checkpoints/", "File too large")
    assert (folder / "checkpoints" / "last.ckpt").read_bytes() == good
    assert newest(folder)[1] == []
    assert json.loads((folder / "result.json").read_text())["status"] == "failed"
    again = run(["resume=run"], tmp_path)
    assert again.returncode == 0, again.stderr
    ours, theirs = weights(folder), weights(calm)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("largest_file", "named", "left"),
    [(2500, "run/checkpoints/", True), (300, "run/config.yaml", False)],
    ids=["result with its recipe", "any result"],
)
def test_a_result_that_cannot_be_written_hides_nothing(
    tmp_path: Path, largest_file: int, named: str, left: bool
) -> None:
    words = [*RECIPE, EPOCHS, "diagnose=off", "hydra.run.dir=run", "hydra.output_subdir=null"]
    failed = run(words, tmp_path, largest_file)
    assert failed.returncode == 1
    check_message(failed.stderr, named, "File too large")
    result = tmp_path / "run" / "result.json"
    assert result.exists() == left
    if left:
        saved = json.loads(result.read_text())
        assert saved["status"] == "failed"
        assert named in saved["error"]
    assert not [path for path in (tmp_path / "run").rglob(".*") if path.is_file()]
