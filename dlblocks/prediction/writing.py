"""Predictions into a file, a chunk at a time; the file appears when it is whole."""

from __future__ import annotations

import csv
import io
import os
import shutil
import struct
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO, Protocol

import numpy as np
import torch
from torch import Tensor

from dlblocks.errors import UserError
from dlblocks.results import check_free
from dlblocks.tasks import Task

SUFFIXES = (".csv", ".npy", ".npz")


class Target(Protocol):
    """A file that is open for writing."""

    def write(self, prediction: Tensor, carried: list[list[str]]) -> None:
        """Add some instances."""

    def finish(self) -> None:
        """After the last ones."""


def check_output(path: Path, overwrite: bool) -> None:
    """Refuse a file that can't be written.

    Raises:
        UserError: an ending that says no format, no such folder, or a file that is there already.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"output={path}: must end in {', '.join(SUFFIXES)}.")
    check_free(path, overwrite)


@contextmanager
def writing(
    path: Path, task: Task, classes: Sequence[str], carried: Sequence[str], overwrite: bool = False
) -> Iterator[Target]:
    """Open a file for predictions; its ending says the format.

    - `.csv`: the carried columns; then for classes `predicted` and `probability_<class>`, for labels
      `predicted_<label>` (0 or 1) and `probability_<label>`, for values `predicted`, or `predicted_0`, ... where
      there are several.
    - `.npy`: probabilities or values, shaped as `Task.predict` gives them.
    - `.npz`: `probabilities`, `labels` (numbers of classes, or 0 and 1 for each label) and `classes`, their
      names; for regression `values`.

    It is written under another name in the same folder, which goes when something fails.

    Raises:
        UserError: the file exists and is not to be replaced, or a carried column has the name of a new one.
    """
    check_output(path, overwrite)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    suffix = path.suffix.lower()
    try:
        with ExitStack() as files:
            file = files.enter_context(partial.open("wb"))
            target: Target
            if suffix == ".csv":
                target = _Csv(file, task, classes, carried)
            elif suffix == ".npy":
                target = _Npy(file, task)
            else:
                # An archive takes one file after the other; until then they are here, without names.
                parts = [files.enter_context(TemporaryFile(dir=path.parent)) for _ in range(2)]
                target = _Npz(file, parts, task, classes)
            yield target
            target.finish()
            file.flush()
            os.fsync(file.fileno())
        check_free(path, overwrite)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def columns(task: Task, classes: Sequence[str]) -> list[str]:
    """The names of the columns that are added."""
    if task.name == "regression":
        several = task.outputs > 1
        return [f"predicted_{i}" for i in range(task.outputs)] if several else ["predicted"]
    labels = [f"predicted_{name}" for name in classes] if task.name == "multilabel" else ["predicted"]
    return labels + [f"probability_{name}" for name in classes]


class _Csv:
    def __init__(self, file: BinaryIO, task: Task, classes: Sequence[str], carried: Sequence[str]) -> None:
        self._file, self._task, self._classes = file, task, list(classes)
        names = columns(task, classes)
        if clash := [name for name in carried if name in names]:
            raise UserError(f"output: the input has a column {clash[0]!r} too; rename it there.")
        self._add([[*carried, *names]])

    def write(self, prediction: Tensor, carried: list[list[str]]) -> None:
        task = self._task
        # Two columns, whether the net gives both probabilities or that of class 1.
        values = torch.stack([1 - prediction, prediction], 1) if prediction.ndim == 1 else prediction
        # numpy writes float32 with the fewest digits that give it back.
        words: list[list[str]] = values.numpy().astype(str).tolist()
        decided = task.decide(prediction)
        if task.name == "multilabel":
            words = [[*map(str, d), *w] for d, w in zip(decided.tolist(), words, strict=True)]
        elif task.name != "regression":
            words = [[self._classes[d], *w] for d, w in zip(decided.tolist(), words, strict=True)]
        self._add([[*c, *w] for c, w in zip(carried, words, strict=True)])

    def finish(self) -> None:
        pass

    def _add(self, rows: list[list[str]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        self._file.write(text.getvalue().encode())


class _Npy:
    def __init__(self, file: BinaryIO, task: Task) -> None:
        alone = task.name == "binary" and task.head == "sigmoid"
        self._array = _Growing(file, np.dtype("<f4"), () if alone else (task.outputs,))

    def write(self, prediction: Tensor, carried: list[list[str]]) -> None:  # noqa: ARG002 - numbers only
        self._array.add(prediction)

    def finish(self) -> None:
        self._array.finish()


class _Npz:
    def __init__(self, file: BinaryIO, parts: Sequence[BinaryIO], task: Task, classes: Sequence[str]) -> None:
        self._file, self._parts, self._task, self._classes = file, parts, task, classes
        self._numbers = _Npy(parts[0], task)
        labels = (task.outputs,) if task.name == "multilabel" else ()
        self._labels = None if task.name == "regression" else _Growing(parts[1], np.dtype("<i8"), labels)

    def write(self, prediction: Tensor, carried: list[list[str]]) -> None:
        self._numbers.write(prediction, carried)
        if self._labels is not None:
            self._labels.add(self._task.decide(prediction))

    def finish(self) -> None:
        self._numbers.finish()
        with zipfile.ZipFile(self._file, "w") as archive:
            _add(archive, "values" if self._labels is None else "probabilities", self._parts[0])
            if self._labels is not None:
                self._labels.finish()
                _add(archive, "labels", self._parts[1])
                with archive.open("classes.npy", "w") as member:
                    np.lib.format.write_array(member, np.array(list(self._classes), dtype=str))


def _add(archive: zipfile.ZipFile, name: str, file: BinaryIO) -> None:
    file.seek(0)
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        shutil.copyfileobj(file, member)


class _Growing:
    """A `.npy` file whose number of rows is known at its end."""

    _HEADER = 128

    def __init__(self, file: BinaryIO, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
        self._file, self._dtype, self._shape, self._rows = file, dtype, shape, 0
        file.write(self._header())

    def add(self, values: Tensor) -> None:
        self._file.write(np.ascontiguousarray(values.numpy(), self._dtype).tobytes())
        self._rows += len(values)

    def finish(self) -> None:
        self._file.seek(0)
        self._file.write(self._header())
        self._file.seek(0, os.SEEK_END)

    def _header(self) -> bytes:
        """The format's version 1.0, filled up to a fixed length."""
        shape = (self._rows, *self._shape)
        text = f"{{'descr': '{self._dtype.str}', 'fortran_order': False, 'shape': {shape!r}, }}"
        size = self._HEADER - 10
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", size) + text.ljust(size - 1).encode() + b"\n"
