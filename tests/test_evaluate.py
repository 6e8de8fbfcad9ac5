"""Runs judged again: the same metrics, by class, and a picture."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from sklearn import metrics as reference

import dlblocks
from dlblocks.errors import UserError
from dlblocks.evaluation.evaluate import Evaluation, evaluate
from dlblocks.tasks import Task

ROOT = Path(__file__).resolve().parents[1]
QUICK = ("callbacks.progress_bar=null", "callbacks.model_summary=null", "trainer.max_epochs=3")
RUNS = {
    "regression": ("data=diabetes",),
    "binary": ("data=breast_cancer", "data.eval_batch_size=7"),
    "binary_softmax": ("data=breast_cancer", "head=softmax", "trainer.precision=64-true"),
    "multiclass": ("data=wine", "trainer.precision=bf16-mixed", "trainer.limit_test_batches=1"),
    "multilabel": ("data=digit_pairs", "model=convnet", "model.norm=batch", "data.samples=300"),
    "found": ("data=wine", "data.batch_size=auto", "model.dropout=0.3"),
}


def run(folder: Path, *overrides: str) -> dlblocks.Result:
    overrides = tuple(f"++{o}" if "limit_" in o else o for o in overrides)
    return dlblocks.train(dlblocks.compose(*QUICK, *overrides), folder)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dlblocks.Result, Evaluation]]:
    found = {}
    for name, overrides in RUNS.items():
        folder = tmp_path_factory.mktemp(name)
        found[name] = run(folder, *overrides), evaluate(folder, "all")
    return found


Judged = dict[str, tuple[dlblocks.Result, Evaluation]]


@pytest.mark.parametrize("name", RUNS)
def test_metrics_are_those_of_the_run(judged: Judged, name: str) -> None:
    result, evaluation = judged[name]
    for split in ("test", "val"):
        values = evaluation.parts[split].metrics
        assert {f"{split}/{key}": value for key, value in values.items()} == {
            key: value for key, value in result.metrics.items() if key.startswith(split)
        }
    assert set(evaluation.parts["train"].metrics) == set(evaluation.parts["test"].metrics)


@pytest.mark.parametrize("name", RUNS)
def test_metrics_and_classes_are_scikit_learns(judged: Judged, name: str) -> None:
    _, evaluation = judged[name]
    for part in evaluation.parts.values():
        true, predicted = part.true.numpy(), part.predicted.double().numpy()
        if name == "regression":
            assert part.metrics["mae"] == pytest.approx(
                reference.mean_absolute_error(true, predicted), rel=1e-5
            )
            assert part.metrics["r2"] == pytest.approx(reference.r2_score(true, predicted), rel=1e-4)
            assert not part.classes
            continue
        decided = evaluation.task.decide(part.predicted).numpy()
        found = reference.classification_report(
            true, decided, target_names=list(evaluation.names), output_dict=True, zero_division=0.0
        )
        for label, values in part.classes.items():
            assert values["f1"] == pytest.approx(found[label]["f1-score"])
            assert values["count"] == found[label]["support"]
        if name == "multilabel":
            assert part.metrics["exact_match"] == pytest.approx(reference.accuracy_score(true, decided))
            assert part.metrics["f1"] == pytest.approx(found["macro avg"]["f1-score"], rel=1e-5)
        else:
            assert part.metrics["accuracy"] == pytest.approx(reference.accuracy_score(true, decided))
            assert part.confusion == [
                [int(((true == row) & (decided == column)).sum()) for column in range(len(evaluation.names))]
                for row in range(len(evaluation.names))
            ]


def test_the_parts_are_the_runs_and_hold_all_instances(judged: Judged) -> None:
    _, evaluation = judged["regression"]
    assert [len(part.true) for part in evaluation.parts.values()] == [265, 89, 88]
    together = torch.cat([part.true for part in evaluation.parts.values()]).flatten().sort().values
    from sklearn.datasets import load_diabetes

    assert together.tolist() == sorted(load_diabetes().target.tolist())


@pytest.mark.parametrize(
    ("task", "prediction", "expected"),
    [
        (Task("multiclass", "softmax", 3), [[0.2, 0.5, 0.3]], [1]),
        (Task("binary", "sigmoid", 2), [0.5, 0.50001], [0, 1]),
        (Task("binary", "softmax", 2), [[0.4, 0.6]], [1]),
        (Task("multilabel", "sigmoid", 2), [[0.9, 0.5]], [[1, 0]]),
        (Task("regression", "linear", 1), [[3.5]], [[3.5]]),
    ],
    ids=lambda value: value.key if isinstance(value, Task) else None,
)
def test_decisions(task: Task, prediction: Any, expected: Any) -> None:
    assert task.decide(torch.tensor(prediction)).tolist() == expected


@pytest.mark.parametrize("name", ["regression", "multiclass", "multilabel"])
def test_files_never_replace_others(judged: Judged, name: str) -> None:
    _, evaluation = judged[name]
    first, picture = evaluation.save()
    before = first.read_bytes()
    second, other = evaluation.save()
    assert [path.name for path in (first, picture, second, other)] == [
        "evaluation.json",
        "evaluation.png",
        "evaluation-2.json",
        "evaluation-2.png",
    ]
    assert first.read_bytes() == before == second.read_bytes()
    assert picture.read_bytes().startswith(b"\x89PNG")
    saved = json.loads(before)
    assert saved["parts"]["val"]["metrics"] == pytest.approx(evaluation.parts["val"].metrics)
    assert saved["parts"]["test"]["confusion"] == evaluation.parts["test"].confusion
    assert saved["versions"]["torch"] == torch.__version__


def test_an_evaluation_that_fails_leaves_no_file(judged: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    _, evaluation = judged["found"]
    before = sorted(evaluation.run.iterdir())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dlblocks.evaluation.evaluate.write_atomically", full)
    with pytest.raises(OSError, match="No space"):
        evaluation.save()
    assert [path for path in sorted(evaluation.run.iterdir()) if path.suffix == ".json"] == [
        path for path in before if path.suffix == ".json"
    ]


def test_data_and_recipes_that_do_not_fit_are_told(tmp_path: Path) -> None:
    run(tmp_path, "data=wine")
    config = tmp_path / "config.yaml"
    recipe = yaml.safe_load(config.read_text())
    with pytest.raises(UserError, match="split=tset: must be one of train, val, test, all"):
        evaluate(tmp_path, "tset")
    with pytest.raises(UserError, match=r"trainer\.accelerator=cuda: not on this machine"):
        evaluate(tmp_path, accelerator="cuda")
    config.write_text(yaml.safe_dump({**recipe, "seed": 1}))
    with pytest.raises(UserError, match="wine is not the one that the run was trained on"):
        evaluate(tmp_path)
    config.write_text(yaml.safe_dump({**recipe, "sed": 1}))
    with pytest.raises(UserError, match=r"config\.yaml: sed: unknown key"):
        evaluate(tmp_path)
    config.write_text("a: [")
    with pytest.raises(UserError, match="the run's recipe can't be read"):
        evaluate(tmp_path)
    config.write_text("!!python/object/apply:os.system ['touch ran']")
    with pytest.raises(UserError, match="the run's recipe can't be read"):
        evaluate(tmp_path)
    config.unlink()
    with pytest.raises(UserError, match="the run's recipe can't be read"):
        evaluate(tmp_path)


def test_the_script(judged: Judged) -> None:
    result, evaluation = judged["multiclass"]
    script = [sys.executable, str(ROOT / "scripts" / "evaluate.py")]
    done = subprocess.run(
        [*script, f"run={evaluation.run}", "split=val"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert f"{result.metrics['val/accuracy']:.4f}" in done.stdout
    assert "class_0" in done.stdout
    written = Path(done.stdout.split()[-2])
    assert json.loads(written.read_text())["parts"].keys() == {"val"}
