"""A data set in memory, and the format of its targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlblocks.errors import UserError, unknown
from dlblocks.tasks import TASKS


@dataclass(frozen=True, eq=False)
class Table:
    """Instances and their targets.

    Args:
        x: float32 `(N, *shape)`: `(N, features)`, or pictures `(N, channels, height, width)`.
        y: multiclass: int64 `(N,)` from 0; binary: int64 `(N,)`, 0 or 1; multilabel: float32
            `(N, labels)`, 0 or 1; regression: float32 `(N, outputs)`.
        task: `regression`, `binary`, `multiclass` or `multilabel`.
        classes: the names of the classes or labels; empty for regression.
        features: the names of the numbers in one instance; empty if they have none.
        name: of the data set, for messages.
        groups: int64 `(N,)`: instances of one group must not be parted by a split, as they share
            something (a patient, a source image).
    """

    x: Tensor
    y: Tensor
    task: str
    classes: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    name: str = "data"
    groups: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one instance."""
        return tuple(self.x.shape[1:])

    @property
    def outputs(self) -> int:
        """Classes (2 if binary), labels, or values for each instance."""
        return self.y.shape[1] if self.task == "regression" else len(self.classes)

    def column(self, index: int) -> str:
        """The name of one number of an instance, counted over the flattened instance."""
        if len(self.features) == prod(self.shape):
            return self.features[index]
        return f"x[:, {', '.join(str(i) for i in np.unravel_index(index, self.shape))}]"

    @classmethod
    def from_arrays(
        cls,
        x: Any,
        y: Any,
        task: str | None = None,
        *,
        classes: Sequence[str] | None = None,
        features: Sequence[str] = (),
        name: str = "data",
        groups: Any = None,
    ) -> Table:
        """A table from arrays, tensors or lists, brought to the formats above.

        Without `task`: a column of two words, of booleans, or of 0 and 1 is binary; any other column of
        words or integers is multiclass; two or more columns of 0 and 1 are multilabel; anything else is
        regression. Words become 0, 1, ... in alphabetical order and the names of the classes.

        Raises:
            UserError: not numbers, no instances, lengths that differ, an unknown task, words that are
                no classes, or a number of names that does not fit.
        """
        values = _numbers(x, "data.x")
        values = values[:, None] if values.ndim == 1 else values
        targets = np.asarray(y)
        if targets.ndim == 2 and targets.shape[1] == 1 and task != "regression" and targets.dtype.kind != "f":
            targets = targets[:, 0]
        if values.ndim < 2 or not values.size or targets.ndim not in (1, 2) or len(values) != len(targets):
            raise UserError(
                f"data: x has shape {values.shape} and y {targets.shape}; must be (N, ...) and (N,) or"
                " (N, outputs), with the same N of at least 1."
            )
        if task is None:
            task = _infer(targets)
        if task not in TASKS:
            raise unknown("task", task, TASKS, "data.task")
        if targets.dtype.kind in "USO" and targets.ndim == 1 and task in ("binary", "multiclass"):
            words, targets = np.unique(targets.astype(str), return_inverse=True)
            classes = [str(word) for word in words] if classes is None else classes
        targets = _numbers(targets, "data.y")
        if task in ("regression", "multilabel") and targets.ndim == 1:
            targets = targets[:, None]
        if classes is None:
            classes = _class_names(targets, task)
        table = cls(
            x=torch.tensor(values, dtype=torch.float32),
            # Labels stay as given until `check` has seen that they are whole numbers.
            y=torch.tensor(targets, dtype=torch.float32 if targets.dtype.kind == "f" else torch.int64),
            task=task,
            classes=tuple(classes),
            features=tuple(features),
            name=name,
            groups=None if groups is None else torch.tensor(np.unique(groups, return_inverse=True)[1]),
        )
        check(table)
        whole = task in ("binary", "multiclass")
        return cls(**{**vars(table), "y": table.y.long() if whole else table.y.float()})


def check(table: Table) -> None:
    """Refuse data that cannot be trained on.

    Raises:
        UserError: NaN or infinite values (names the columns, with counts), or targets that do not fit
            the task.
    """
    where = f"data={table.name}"
    _check_finite(table, where)
    if len(table.x) != len(table.y) or (table.groups is not None and len(table.groups) != len(table.y)):
        raise UserError(
            f"{where}: x, y and groups must have the same length; x has {len(table.x)}, y {len(table)}."
        )
    if table.features and len(table.features) != prod(table.shape):
        raise UserError(f"{where}: {len(table.features)} feature names for instances of shape {table.shape}.")
    dimensions = 1 if table.task in ("binary", "multiclass") else 2
    if table.y.ndim != dimensions:
        legal = "(N,)" if dimensions == 1 else "(N, outputs)"
        raise UserError(f"{where}: y has shape {tuple(table.y.shape)}; for {table.task} it must be {legal}.")
    if table.task == "regression":
        return
    count = len(table.classes)
    if (table.task == "multilabel" and count != table.y.shape[1]) or (table.task == "binary" and count != 2):
        raise UserError(
            f"{where}: {count} class names do not fit y of shape {tuple(table.y.shape)}, {table.task}."
        )
    if table.task == "multiclass":
        legal = f"whole numbers from 0 to {count - 1}"
        wrong = (table.y < 0) | (table.y >= count) | (table.y != table.y.round())
    else:
        legal = "0 or 1"
        wrong = (table.y != 0) & (table.y != 1)
    if wrong.any():
        examples = ", ".join(f"{value:g}" for value in torch.unique(table.y[wrong])[:5].tolist())
        raise UserError(
            f"{where}: {int(wrong.sum())} labels do not fit the task {table.task}: {examples}."
            f" They must be {legal}."
        )


def _check_finite(table: Table, where: str) -> None:
    for label, values in (("x", table.x), ("y", table.y)):
        bad = ~values.isfinite()
        if not bad.any():
            continue
        counts = bad.reshape(len(values), -1).sum(0)
        columns = counts.nonzero().flatten().tolist()
        shown = [
            f"{table.column(i) if label == 'x' else f'y[:, {i}]' if values.ndim > 1 else 'y'} ({counts[i]})"
            for i in columns[:5]
        ]
        more = f" and {len(columns) - 5} more columns" if len(columns) > 5 else ""
        raise UserError(
            f"{where}: {int(bad.sum())} values of {label} are NaN or infinite, in {', '.join(shown)}{more}."
            " Remove or fill them."
        )


def _numbers(values: Any, where: str) -> Any:
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise UserError(f"{where}: must be numbers, but its type is {array.dtype}.")
    return array


def _infer(targets: Any) -> str:
    kind, distinct = (
        targets.dtype.kind,
        np.unique(targets.astype(str) if targets.dtype.kind == "O" else targets),
    )
    if targets.ndim == 2:
        zero_one = kind in "biuf" and targets.shape[1] > 1 and set(distinct.tolist()) <= {0, 1}
        return "multilabel" if zero_one else "regression"
    if kind == "f":
        return "regression"
    two = len(distinct) == 2 if kind in "USO" else set(distinct.tolist()) <= {0, 1}
    return "binary" if two else "multiclass"


def _class_names(targets: Any, task: str) -> tuple[str, ...]:
    if task == "regression":
        return ()
    if task == "binary":
        return ("0", "1")
    finite = targets[np.isfinite(targets)]
    count = targets.shape[1] if task == "multilabel" else int(finite.max(initial=0)) + 1
    return tuple(str(i) for i in range(count))
