"""The command line, in processes of its own."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRAIN = [sys.executable, str(ROOT / "scripts" / "train.py")]
SHORT = ("trainer.max_epochs=1", "callbacks.model_summary=null")


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*TRAIN, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.glob(pattern)
    return found


def test_the_main_job(tmp_path: Path) -> None:
    done = run("activation=elu", "init=glorot_uniform", "trainer.max_epochs=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    assert "test accuracy" in done.stdout
    folder = only(tmp_path, "runs/*/*-digits-mlp")
    assert str(folder.relative_to(tmp_path)) in done.stdout
    assert json.loads((folder / "result.json").read_text())["status"] == "completed"
    assert "init=glorot_uniform" in (folder / ".hydra" / "overrides.yaml").read_text()


def test_a_sweep_goes_on_after_a_failure_and_ends_with_a_table(tmp_path: Path) -> None:
    done = run("-m", "activation=relu,elu", "optimizer.lr=1e-3,1e12", "optimizer=sgd", *SHORT, cwd=tmp_path)
    assert done.returncode == 1
    assert "4 runs, best first" in done.stdout
    assert "learning rate 1e+12" in done.stdout
    with only(tmp_path, "runs/*/*-sweep/sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["completed"] * 2 + ["failed"] * 2
    values = [float(row["val/accuracy"]) for row in rows[:2]]
    assert values == sorted(values, reverse=True)
    assert {row["activation"] for row in rows} == {"relu", "elu"}
    for row in rows:
        assert json.loads((tmp_path / row["folder"] / "result.json").read_text())["status"] == row["status"]


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path: Path) -> None:
    both = [
        subprocess.Popen([*TRAIN, *SHORT], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    assert [process.wait() for process in both] == [0, 0]
    for process in both:
        process.communicate()
    assert len(list(tmp_path.glob("runs/*/*/result.json"))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["activaton=elu"], "Did you mean 'activation'"),
        (["+activaton=elu"], "Did you mean 'activation'"),
        (["activation=eluu"], "Did you mean 'elu'"),
        (["activation=elu", "activation.alhpa=1"], "Did you mean 'alpha'"),
        (["data.batch_size=0"], "data.batch_size=0: must be"),
        (["-m", "activation=elu,eluu"], "Did you mean 'elu'"),
        (["-m", "activation=glob(zz*)"], "expands to no job"),
        (["--help", "activation=eluu"], "Did you mean 'elu'"),
        (["root=/dev/null/runs"], "/dev/null/runs"),
        (["callbacks.progress_bar._target_=os.system"], "refused, since it is not a Callback"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_mistakes_end_in_one_message(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr + done.stdout


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = run("debug=true", "data.batch_size=0", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_ctrl_c_ends_with_130_and_says_so(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*TRAIN, "trainer.max_epochs=100000", "callbacks.early_stopping=null"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell has what runs in its background ignore it, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/*/*/checkpoints/last.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert json.loads(only(tmp_path, "runs/*/*/result.json").read_text())["status"] == "interrupted"


def test_two_processes_join_each_run_of_a_sweep(tmp_path: Path) -> None:
    done = run("-m", "trainer=ddp_cpu", "seed=0,1", *SHORT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 runs, best first") == 1
    assert [path.name for path in tmp_path.glob("runs/*/*")] == [only(tmp_path, "runs/*/*-sweep").name]
    assert len(list(tmp_path.glob("runs/*/*/*/result.json"))) == 2


def test_a_lesson_is_a_sweep_with_a_picture(tmp_path: Path) -> None:
    done = run("experiment=lesson_learning_rate", "optimizer.lr=1e-3,0.1,1e12", *SHORT, cwd=tmp_path)
    assert "3 runs, best first" in done.stdout
    assert "sweep picture" in done.stderr
    assert only(tmp_path, "runs/*/*-sweep/sweep.png").stat().st_size > 5000
    assert len(list(tmp_path.glob("runs/*/*-sweep/*/curves.csv"))) == 2


def test_a_picture_that_can_not_be_drawn_ends_the_sweep_before_its_runs(tmp_path: Path) -> None:
    done = run("experiment=lesson_learning_rate", "sweep.panels=[{x:epoch,y:val/rmse}]", *SHORT, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("error: sweep.panels: val/rmse is no metric of the task multiclass") == 1
    assert not list(tmp_path.glob("runs/*/*-sweep/sweep.csv"))


def test_two_processes_join_each_run_of_a_lesson(tmp_path: Path) -> None:
    """A recipe that is a sweep by itself; the processes of one run don't start it again."""
    done = run(
        "experiment=lesson_gradient_descent", "regime=minibatch,gd", "trainer=ddp_cpu", *SHORT, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 runs, best first") == 1
    assert len(list(tmp_path.glob("runs/*/*/*/lr_finder.csv"))) == 2


def test_two_processes_share_one_run(tmp_path: Path) -> None:
    done = run("trainer=ddp_cpu", "trainer.max_epochs=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder") == 1
    saved = json.loads(only(tmp_path, "runs/*/*/result.json").read_text())
    assert saved["status"] == "completed"
    assert saved["metrics"]["test/accuracy"] > 0.8
    assert saved["steps"] == 3 * 34


def test_the_lesson_on_initialisation_says_what_comes_out(tmp_path: Path) -> None:
    done = run(
        "experiment=lesson_initialisation",
        "activation=relu",
        "init=zeros,auto",
        "model.depth=3",
        "trainer.max_epochs=3",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("runs/*/*-sweep")
    assert (folder / "sweep.png").exists()
    with (folder / "sweep.csv").open() as file:
        rows = {row["init"]: row for row in csv.DictReader(file)}
    assert rows["zeros"]["diagnosis"] == "will not start"
    assert float(rows["zeros"]["val/accuracy"]) < 0.2
    assert rows["auto"]["diagnosis"] == "trains"
    assert float(rows["auto"]["val/accuracy"]) > 0.5
