"""Predictions from files into files."""

from __future__ import annotations

import csv
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dlblocks
from dlblocks.data.format import DataFormat
from dlblocks.data.table import Table
from dlblocks.errors import UserError
from dlblocks.prediction.predict import predict
from dlblocks.prediction.reading import reading
from dlblocks.prediction.writing import writing
from dlblocks.recipe import check
from dlblocks.registry import build
from dlblocks.tasks import Task

ROOT = Path(__file__).resolve().parents[1]
QUICK = ("callbacks.progress_bar=null", "callbacks.model_summary=null", "trainer.max_epochs=2")
TASKS = {
    "regression": ("data=diabetes",),
    "binary": ("data=breast_cancer",),
    "binary_softmax": ("data=breast_cancer", "head=softmax"),
    "multiclass": ("data=digits", "model=convnet", "model.norm=batch"),
    "multilabel": ("data=digit_pairs", "model=convnet", "data.samples=300"),
}


def train(folder: Path, *overrides: str) -> Path:
    dlblocks.train(dlblocks.compose(*QUICK, *overrides), folder)
    return folder


def table(*overrides: str) -> Table:
    made: Table = build("dataset", check(dlblocks.compose(*overrides)).dataset)
    return made


def write(path: Path, rows: list[list[Any]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def rows_of(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def wine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("wine"), "data=wine")


@pytest.fixture(scope="module")
def wines() -> Table:
    return table("data=wine")


@pytest.mark.parametrize("task", TASKS)
def test_files_hold_what_the_module_predicts(tmp_path: Path, task: str) -> None:
    run = train(tmp_path / "run", *TASKS[task])
    module, data = dlblocks.load(run), table(*TASKS[task])
    x = data.x.double().numpy()
    expected = module.predict(x).numpy()
    np.save(tmp_path / "x.npy", x)
    names = [list(data.features)] if data.features else []
    write(tmp_path / "x.csv", [*names, *x.reshape(len(x), -1).tolist()])

    for source in ("x.npy", "x.csv"):
        for target in ("y.csv", "y.npy", "y.npz"):
            assert predict(run, tmp_path / source, tmp_path / target, overwrite=True, batch_size=100) == len(
                x
            )
        close = {"rtol": 1e-5, "atol": 1e-6 * abs(expected).max()}
        array = np.load(tmp_path / "y.npy")
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, expected, **close)
        archive = np.load(tmp_path / "y.npz")
        header, *rows = rows_of(tmp_path / "y.csv")
        if task == "regression":
            assert header == ["predicted"]
            assert archive.files == ["values"]
            np.testing.assert_array_equal(archive["values"], array)
            np.testing.assert_array_equal(np.array(rows, np.float32), array)
            continue
        decided = module.task.decide(torch.from_numpy(array)).numpy()
        np.testing.assert_array_equal(archive["probabilities"], array)
        np.testing.assert_array_equal(archive["labels"], decided)
        assert tuple(archive["classes"]) == data.classes
        both = np.stack([1 - array, array], 1) if array.ndim == 1 else array
        np.testing.assert_array_equal(np.array([row[-len(data.classes) :] for row in rows], np.float32), both)
        assert header[-len(data.classes) :] == [f"probability_{name}" for name in data.classes]
        if task == "multilabel":
            assert header[:10] == [f"predicted_{name}" for name in data.classes]
            assert [[int(word) for word in row[:10]] for row in rows] == decided.tolist()
        else:
            assert header[0] == "predicted"
            assert [row[0] for row in rows] == [data.classes[i] for i in decided]


def test_columns_are_found_by_name_and_others_carried(wine: Path, wines: Table, tmp_path: Path) -> None:
    order = list(reversed(range(13)))
    names = ["id", *(wines.features[i] for i in order), "grown, by"]
    rows = [[f"w{n}", *(repr(row[i]) for i in order), "a b"] for n, row in enumerate(wines.x.tolist())]
    write(tmp_path / "x.csv", [names, *rows])
    predict(wine, tmp_path / "x.csv", tmp_path / "y.csv", batch_size=50)
    header, *found = rows_of(tmp_path / "y.csv")
    assert header == ["id", "grown, by", "predicted", *(f"probability_class_{i}" for i in range(3))]
    assert [row[:2] for row in found] == [[f"w{n}", "a b"] for n in range(178)]
    np.testing.assert_allclose(
        np.array([row[3:] for row in found], np.float32), dlblocks.load(wine).predict(wines.x), rtol=1e-5
    )


def test_a_byte_order_mark_spaces_and_blank_lines_are_no_matter(
    wine: Path, wines: Table, tmp_path: Path
) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([[f" {name} " for name in wines.features], *wines.x[:3].tolist()])
    (tmp_path / "x.csv").write_text("\ufeff\n" + text.getvalue() + "\n\n", encoding="utf-8")
    assert predict(wine, tmp_path / "x.csv", tmp_path / "y.npy") == 3
    np.testing.assert_allclose(
        np.load(tmp_path / "y.npy"), dlblocks.load(wine).predict(wines.x[:3]), rtol=1e-5
    )


NAMES = [f"f{i}" for i in range(3)]
NAMED = DataFormat((3,), (0.0,) * 3, (1.0,) * 3, features=tuple(NAMES))
UNNAMED = DataFormat((1, 1, 3), (0.0,), (1.0,))


@pytest.mark.parametrize(
    ("data_format", "text", "message"),
    [
        (NAMED, "", "is empty"),
        (NAMED, "f0,f1\n1,2\n", "lacks the columns f2"),
        (NAMED, "f0,f1,g2\n1,2,3\n", "lacks the columns f2"),
        (NAMED, "f0,F1,f2\n1,2,3\n", "lacks the columns f1. Did you mean 'F1'"),
        (NAMED, "f0,f0,f1,f2\n1,1,2,3\n", "several columns are named 'f0'"),
        (NAMED, "1,2,3\n4,5,6\n", "The first line must name the columns"),
        (NAMED, "f0;f1;f2\n1;2;3\n", "values must be separated by commas"),
        (NAMED, "f0,f1,f2\n1,2,3\n1,2\n", "line 3: has 2 values; the first line has 3"),
        (NAMED, "f0,f1,f2\n1,2,3\n1,,3\n", "line 3, f1: '' is not a number"),
        (NAMED, "f0,f1,f2\n1,2,three\n", "line 2, f2: 'three' is not a number"),
        (NAMED, "f0,f1,f2\n1,2,3\n1,nan,3\n", "line 3, f1: nan is not a finite number"),
        (NAMED, "f0,f1,f2\n1,2,-inf\n", "line 2, f2: -inf is not a finite number"),
        (NAMED, "f0,f1,f2\n1,2,1e39\n", "line 2, f2: 1e[+]39 is not a finite number"),
        (NAMED, 'f0,f1,f2\n1,2,"3\n', "is no CSV file"),
        (UNNAMED, "1,2\n", "has 2 columns; the model takes 3 numbers"),
        (UNNAMED, "a,b,c\n1,2,x\n", "line 2, number 3: 'x' is not a number"),
    ],
)
def test_wrong_tables_are_told_by_place(
    tmp_path: Path, data_format: DataFormat, text: str, message: str
) -> None:
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=message), reading(path, data_format) as source:
        list(source.chunks(2))


@pytest.mark.parametrize(
    "text", ["1,2,3\n4,5,6\n7,8,9\n", "a,b,c\n1,2,3\n4,5,6\n7,8,9"], ids=["bare", "header"]
)
@pytest.mark.parametrize("size", [1, 2, 100])
def test_tables_without_names_are_taken_in_order(tmp_path: Path, text: str, size: int) -> None:
    (tmp_path / "x.csv").write_text(text)
    with reading(tmp_path / "x.csv", UNNAMED) as source:
        chunks = list(source.chunks(size))
    assert torch.cat([chunk.x for chunk in chunks]).tolist() == [[[[1, 2, 3]]], [[[4, 5, 6]]], [[[7, 8, 9]]]]
    assert max(len(chunk.x) for chunk in chunks) <= size
    assert chunks[-1].position == source.length


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((2, 4)), r"has shape \(2, 4\); the model takes \(N, 3\)"),
        (np.ones(3), r"has shape \(3,\)"),
        (np.ones(()), r"has shape \(\)"),
        (np.array([["a"] * 3]), "must be numbers"),
        (np.ones((2, 3), complex), "must be numbers"),
        (np.array([[1, 2, 3], [4, np.inf, 6]]), r"row 1 .counted from 0., f1: inf is not a finite number"),
        (np.array([[None] * 3]), r"is no \.npy file of numbers"),
    ],
    ids=["wide", "one", "scalar", "words", "complex", "infinite", "objects"],
)
def test_wrong_arrays_are_told(tmp_path: Path, array: Any, message: str) -> None:
    path = tmp_path / "x.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(UserError, match=message), reading(path, NAMED) as source:
        list(source.chunks(2))


def test_damaged_arrays_are_told(tmp_path: Path) -> None:
    np.save(tmp_path / "whole.npy", np.ones((100, 3)))
    whole = (tmp_path / "whole.npy").read_bytes()
    np.savez(tmp_path / "archive.npz", x=np.ones((2, 3)))
    for content in (b"", b"words", whole[:50], whole[:1000], (tmp_path / "archive.npz").read_bytes()):
        path = tmp_path / "x.npy"
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"is no \.npy file of numbers"), reading(path, NAMED):
            pass


def test_arrays_in_any_order_and_type_of_numbers(tmp_path: Path) -> None:
    values = np.arange(12).reshape(4, 3)
    for array in (np.asfortranarray(values), values.astype(np.uint8), values.astype(">f8"), values > 5):
        np.save(tmp_path / "x.npy", array)
        with reading(tmp_path / "x.npy", NAMED) as source:
            chunks = list(source.chunks(3))
        np.testing.assert_array_equal(torch.cat([chunk.x for chunk in chunks]), array.astype(np.float32))


def test_nothing_is_replaced_unasked_and_failures_leave_nothing(
    wine: Path, wines: Table, tmp_path: Path
) -> None:
    x = wines.x.numpy().copy()
    np.save(tmp_path / "x.npy", x)
    x[170, 3] = np.nan
    np.save(tmp_path / "bad.npy", x)
    there = sorted(path.name for path in tmp_path.iterdir())
    for suffix in ("csv", "npy", "npz"):
        with pytest.raises(UserError, match="row 170"):
            predict(wine, tmp_path / "bad.npy", tmp_path / f"y.{suffix}", batch_size=20)
        assert sorted(path.name for path in tmp_path.iterdir()) == there
    (tmp_path / "y.csv").write_text("mine")
    with pytest.raises(UserError, match=r"y\.csv: exists; overwrite=true"):
        predict(wine, tmp_path / "x.npy", tmp_path / "y.csv")
    with pytest.raises(UserError, match="row 170"):
        predict(wine, tmp_path / "bad.npy", tmp_path / "y.csv", overwrite=True)
    assert (tmp_path / "y.csv").read_text() == "mine"
    predict(wine, tmp_path / "x.npy", tmp_path / "y.csv", overwrite=True)
    assert len(rows_of(tmp_path / "y.csv")) == 179
    with pytest.raises(UserError, match="is the input"):
        predict(wine, tmp_path / "x.npy", tmp_path / "x.npy", overwrite=True)


def test_files_that_cannot_be_are_told(wine: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 13)))
    np.save(tmp_path / "none.npy", np.ones((0, 13)))
    np.save(tmp_path / "far.npy", np.full((2, 13), 3e38))
    for given, target, message in (
        ("x.txt", "y.csv", r"input=.*must end in \.csv or \.npy"),
        ("missing.csv", "y.csv", "no such file"),
        ("x.npy", "y.parquet", r"output=.*must end in \.csv, \.npy, \.npz"),
        ("x.npy", "missing/y.csv", "no such folder"),
        ("none.npy", "y.csv", "holds no instances"),
        ("far.npy", "y.csv", "instance 0 .*the model gives no finite number"),
    ):
        with pytest.raises(UserError, match=message):
            predict(wine, tmp_path / given, tmp_path / target)
    with pytest.raises(UserError, match="device=nowhere: not on this machine"):
        predict(wine, tmp_path / "x.npy", tmp_path / "y.csv", device="nowhere")
    write(tmp_path / "x.csv", [["predicted", *table("data=wine").features], ["1"] * 14])
    with pytest.raises(UserError, match="has a column 'predicted' too"):
        predict(wine, tmp_path / "x.csv", tmp_path / "y.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["far.npy", "none.npy", "x.csv", "x.npy"]


def test_an_output_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    def race() -> None:
        with writing(tmp_path / "y.csv", Task("regression", "linear", 2), (), ()) as target:
            target.write(torch.ones(1, 2), [[]])
            (tmp_path / "y.csv").write_text("another's")

    with pytest.raises(UserError, match="exists; overwrite=true"):
        race()
    assert [path.name for path in tmp_path.iterdir()] == ["y.csv"]
    assert (tmp_path / "y.csv").read_text() == "another's"


def test_several_values_have_numbered_columns_that_read_back_exactly(tmp_path: Path) -> None:
    values = torch.randn(1000, 2) * 10 ** torch.randint(-20, 20, (1000, 2)).float()
    with writing(tmp_path / "y.csv", Task("regression", "linear", 2), (), ()) as target:
        target.write(values, [[]] * 1000)
    header, *rows = rows_of(tmp_path / "y.csv")
    assert header == ["predicted_0", "predicted_1"]
    assert torch.equal(torch.tensor(np.array(rows, np.float32)), values)


def test_the_model_sees_one_chunk_at_a_time(
    wine: Path, wines: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", wines.x.numpy())
    seen = []
    before = dlblocks.LitModule.predict

    def counted(self: dlblocks.LitModule, x: Any) -> torch.Tensor:
        seen.append(len(x))
        return before(self, x)

    monkeypatch.setattr(dlblocks.LitModule, "predict", counted)
    predict(wine, tmp_path / "x.npy", tmp_path / "y.npy", batch_size=50)
    assert seen == [50, 50, 50, 28]


def test_the_script(wine: Path, wines: Table, tmp_path: Path) -> None:
    write(tmp_path / "x.csv", [list(wines.features), *wines.x.tolist()])
    script = [
        sys.executable,
        str(ROOT / "scripts" / "predict.py"),
        f"run={wine}",
        f"input={tmp_path / 'x.csv'}",
    ]
    done = subprocess.run(
        [*script, f"output={tmp_path / 'y.csv'}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'y.csv'}: 178 predictions\n"
    assert "predicting" in done.stderr
    assert len(rows_of(tmp_path / "y.csv")) == 179


def test_ctrl_c_leaves_no_output(wine: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((300_000, 13), np.float32))
    script = [sys.executable, str(ROOT / "scripts" / "predict.py"), f"run={wine}", "batch_size=1"]
    process = subprocess.Popen(
        [*script, f"input={tmp_path / 'x.npy'}", f"output={tmp_path / 'y.csv'}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that a shell runs in the background are told to ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        # It has begun when its file is there under the other name.
        while process.poll() is None and len(os.listdir(tmp_path)) < 2:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.endswith("interrupted\n")
    assert os.listdir(tmp_path) == ["x.npy"]
