"""The same recipe on one process and on two, whole and divided: the same weights and metrics."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dlblocks

QUIET = (
    "callbacks.progress_bar=null",
    "callbacks.model_summary=null",
    "callbacks.early_stopping=null",
    "callbacks.checkpoint=null",  # the newest is tested, not the best
    "logger=none",
    "trainer.max_epochs=2",
)
SGD = ("optimizer=sgd", "optimizer.lr=0.03", "optimizer.momentum=0.9")
# Shares of batches differ by one instance, and the last batch of an epoch is smaller.
CASES = {
    "multiclass": ("data.batch_size=33", *SGD),
    "class weights": ("data=wine", "data.batch_size=7", "loss=cross_entropy", "loss.weight=[1,2,3]", "optimizer=adamw"),
    "clipping": ("data=breast_cancer", "data.batch_size=41", "trainer.gradient_clip_val=0.05", *SGD),
    "sum of the losses": ("data=wine", "data.batch_size=9", "loss=cross_entropy", "loss.reduction=sum", "optimizer=sgd", "optimizer.lr=0.003"),
    "regression": ("data=diabetes", "data.batch_size=31", "loss=huber", "activation=star_relu", *SGD, "optimizer.lr=0.001"),
    "accumulation": ("data=wine", "data.batch_size=5", "data.effective_batch_size=15", *SGD),
    "batch norm": ("data=digit_pairs", "model=convnet", "model.channels=[4,6]", "data.batch_size=125", "data.samples=500", *SGD),
}  # fmt: skip
RESUMED = ("data=wine", "data.batch_size=7", "optimizer=adamw")
# Of 16 steps an epoch: the only checkpoint is inside the second.
INSIDE = (*RESUMED, "scheduler=cosine", "callbacks.last_checkpoint.every_n_train_steps=20")

PROGRAM = """
import json
import dlblocks

recipes = json.loads(open("recipes.json").read())
for folder, overrides in recipes.items():
    result = dlblocks.train(dlblocks.compose(*overrides), folder)
"""


def train(folder: Path, *overrides: str) -> None:
    dlblocks.train(dlblocks.compose(*QUIET, *overrides), folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folders of every case: `cpu/<case>`, `ddp_cpu/<case>`, `fsdp_cpu/<case>`."""
    root = tmp_path_factory.mktemp("runs")
    for case, overrides in CASES.items():
        train(root / "cpu" / case, *overrides)
    train(root / "whole", "trainer.max_epochs=3", *RESUMED)
    train(root / "first", "trainer.max_epochs=1", *RESUMED)
    train(root / "inside", *INSIDE)
    recipes = {
        f"{trainer}/{case}": [*QUIET, *overrides, f"trainer={trainer}"]
        for trainer in ("ddp_cpu", "fsdp_cpu")
        for case, overrides in CASES.items()
    }
    recipes["second"] = [
        *QUIET,
        *RESUMED,
        f"ckpt_path={root}/first/checkpoints/last.ckpt",
        "trainer=fsdp_cpu",
    ]
    for trainer in ("ddp_cpu", "fsdp_cpu"):
        start = f"ckpt_path={root}/inside/checkpoints/last.ckpt"
        recipes[f"{trainer}/inside"] = [*QUIET, *INSIDE, start, f"trainer={trainer}"]
    (root / "recipes.json").write_text(json.dumps(recipes))
    (root / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=root, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return root


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)[
        "state_dict"
    ]
    return state


@pytest.mark.parametrize("trainer", ["ddp_cpu", "fsdp_cpu"])
@pytest.mark.parametrize("case", CASES)
def test_two_processes_end_where_one_ends(runs: Path, case: str, trainer: str) -> None:
    one, two = weights(runs / "cpu" / case), weights(runs / trainer / case)
    assert list(one) == list(two)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("trainer", ["ddp_cpu", "fsdp_cpu"])
@pytest.mark.parametrize("case", [case for case in CASES if case != "sum of the losses"])
def test_two_processes_report_what_one_reports(runs: Path, case: str, trainer: str) -> None:
    one, two = (json.loads((runs / name / case / "result.json").read_text()) for name in ("cpu", trainer))
    assert two["status"] == "completed"
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-4, abs=1e-6)
    assert {key: two[key] for key in ("steps", "epochs", "parameters", "tested_epoch")} == {
        key: one[key] for key in ("steps", "epochs", "parameters", "tested_epoch")
    }


def test_one_process_goes_on_from_a_divided_net_and_the_reverse(runs: Path) -> None:
    """One epoch whole, one divided, one whole: with the moments of AdamW, whose groups are not in the net's order."""
    train(runs / "third", "trainer.max_epochs=3", *RESUMED, f"ckpt_path={runs}/second/checkpoints/last.ckpt")
    for name, value in weights(runs / "whole").items():
        torch.testing.assert_close(weights(runs / "third")[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trainer", ["ddp_cpu", "fsdp_cpu"])
def test_two_processes_go_on_inside_an_epoch_of_one(runs: Path, trainer: str) -> None:
    """With the next batch, and with what was measured of those before."""
    whole, rest = (
        json.loads((runs / name / "inside" / "result.json").read_text()) for name in (".", trainer)
    )
    assert "train/loss" in whole["metrics"]
    assert rest["metrics"] == pytest.approx(whole["metrics"], rel=1e-4, abs=1e-6)


def test_a_divided_nets_checkpoint_is_a_plain_one(runs: Path) -> None:
    path = runs / "fsdp_cpu" / "multiclass" / "checkpoints" / "last.ckpt"
    content = torch.load(path, weights_only=True)
    assert all(type(value) is torch.Tensor for value in content["state_dict"].values())
    assert dlblocks.LitModule.load_from_checkpoint(path)(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    # Written as that of any run: whole or not at all, with the one before beside it.
    assert path.with_name("last-previous.ckpt").exists()
