"""User's arrays become tables, and bad ones are refused with a message that names the place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dlblocks.data.table import Table, check
from dlblocks.errors import UserError

X = np.arange(12.0).reshape(6, 2)


@pytest.mark.parametrize(
    ("y", "task", "classes", "dtype", "shape"),
    [
        ([0, 1, 2, 0, 1, 2], "multiclass", ("0", "1", "2"), torch.int64, (6,)),
        ([0, 1, 1, 0, 1, 0], "binary", ("0", "1"), torch.int64, (6,)),
        ([True, False] * 3, "binary", ("0", "1"), torch.int64, (6,)),
        ([[0], [1], [2]] * 2, "multiclass", ("0", "1", "2"), torch.int64, (6,)),
        (["b", "a"] * 3, "binary", ("a", "b"), torch.int64, (6,)),
        (["c", "a", "b"] * 2, "multiclass", ("a", "b", "c"), torch.int64, (6,)),
        ([0.5, 1.0, 2, 3, 4, 5], "regression", (), torch.float32, (6, 1)),
        ([[0.5], [1.0]] * 3, "regression", (), torch.float32, (6, 1)),
        ([[0, 1], [1, 1]] * 3, "multilabel", ("0", "1"), torch.float32, (6, 2)),
        ([[0.0, 1.5], [1, 1]] * 3, "regression", (), torch.float32, (6, 2)),
    ],
)
def test_inferred(y: Any, task: str, classes: tuple[str, ...], dtype: torch.dtype, shape: tuple[int]) -> None:
    table = Table.from_arrays(X, y)
    assert (table.task, table.classes, table.y.dtype, tuple(table.y.shape)) == (task, classes, dtype, shape)
    assert table.x.dtype == torch.float32
    assert table.outputs == (shape[1] if task == "regression" else len(classes))


def test_words_become_their_class() -> None:
    table = Table.from_arrays(X, ["c", "a", "b"] * 2)
    assert table.y.tolist() == [2, 0, 1, 2, 0, 1]
    assert Table.from_arrays(X, np.array(["c", "a", "b"] * 2, dtype=object)).y.equal(table.y)


def test_given_task_wins() -> None:
    assert Table.from_arrays(X, [0, 1, 2, 3, 4, 5], "regression").y.shape == (6, 1)
    assert Table.from_arrays(X, [0.0, 1, 1, 0, 1, 0], "binary").y.dtype == torch.int64


def test_the_arrays_are_copied() -> None:
    x = X.copy()
    table = Table.from_arrays(x, [0, 1] * 3)
    x[:] = -1
    assert table.x.min() == 0


def test_tensors_and_one_column() -> None:
    table = Table.from_arrays(
        torch.arange(6.0), torch.tensor([0, 1] * 3), groups=["a", "b", "a", "c", "a", "b"]
    )
    assert table.x.shape == (6, 1)
    assert table.groups is not None
    assert table.groups.tolist() == [0, 1, 0, 2, 0, 1]


@pytest.mark.parametrize(
    ("x", "y", "about", "message"),
    [
        (X, [0, 1], {}, r"x has shape \(6, 2\) and y \(2,\)"),
        (np.empty((0, 2)), [], {}, r"same N of at least 1"),
        ([["a", "b"]], [0], {}, r"data.x: must be numbers"),
        (X, ["a", "b"] * 3, {"task": "regression"}, r"data.y: must be numbers"),
        (
            X,
            [0, 1] * 3,
            {"task": "multiclas"},
            r"data.task: unknown task 'multiclas'. Did you mean 'multiclass'",
        ),
        (X, [-1, 1, 2, 0, 1, 2], {}, r"1 labels do not fit the task multiclass: -1. .* from 0 to 2"),
        (X, [0, 1.5, 2, 0, 1, 2], {"task": "multiclass"}, r"1 labels do not fit .*: 1.5"),
        (X, [1, 2] * 3, {"task": "binary"}, r"3 labels do not fit the task binary: 2. They must be 0 or 1"),
        (X, [[0, 3], [1, 0]] * 3, {"task": "multilabel"}, r"3 labels do not fit the task multilabel: 3"),
        (X, [0, 1, 2] * 2, {"classes": ["a", "b"]}, r"2 labels do not fit .*: 2. .* from 0 to 1"),
        (X, [0, 1] * 3, {"classes": ["a"]}, r"1 class names do not fit"),
        (X, [[0, 1], [1, 0]] * 3, {"task": "multiclass"}, r"y has shape \(6, 2\); for multiclass"),
        (X, [0, 1] * 3, {"features": ["a"]}, r"1 feature names for instances of shape \(2,\)"),
        (X, [0, 1] * 3, {"groups": [1]}, r"same length"),
        (X, [0.5, np.nan] * 3, {}, r"3 values of y are NaN or infinite, in y\[:, 0\] \(3\)"),
        (X, [0, np.inf, 1, 0, 1, 0], {"task": "binary"}, r"1 values of y are NaN or infinite, in y \(1\)"),
    ],
)
def test_refused(x: Any, y: Any, about: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Table.from_arrays(x, y, **about)


def test_nan_names_the_columns() -> None:
    x = X.copy()
    x[:4, 1] = np.nan
    x[0, 0] = np.inf
    with pytest.raises(UserError, match=r"data=mine: 5 values of x .* in age \(1\), income \(4\)\. Remove"):
        Table.from_arrays(x, [0, 1] * 3, features=["age", "income"], name="mine")


def test_nan_in_pictures_names_the_pixel() -> None:
    table = Table.from_arrays(np.zeros((2, 1, 3, 4)), [0, 1])
    table.x[1, 0, 2, 3] = torch.nan
    with pytest.raises(UserError, match=r"x\[:, 0, 2, 3\] \(1\)"):
        check(table)


def test_many_bad_columns_are_cut_short() -> None:
    table = Table.from_arrays(np.zeros((2, 9)), [0, 1])
    with pytest.raises(UserError, match=r"18 values .* and 4 more columns"):
        check(replace(table, x=table.x / 0))
