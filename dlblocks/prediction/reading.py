"""Instances from a file, a chunk at a time."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
from torch import Tensor

from dlblocks.data.format import DataFormat
from dlblocks.errors import UserError, did_you_mean

SUFFIXES = (".csv", ".npy")


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some instances in the order of the file.

    Args:
        x: float32 `(N, *shape)`, as the data set has them.
        carried: the words of the other columns, for each instance.
        position: how much of the source's `length` is read after them.
    """

    x: Tensor
    carried: list[list[str]]
    position: int


class Source(Protocol):
    """A file that is open for reading.

    Args:
        carried: the names of the columns that are no features.
        length: in instances or bytes.
    """

    carried: tuple[str, ...]
    length: int

    def chunks(self, size: int) -> Iterator[Chunk]:
        """All instances, at most `size` at a time.

        Raises:
            UserError: names the place of what is no finite number.
        """


@contextmanager
def reading(path: Path, data_format: DataFormat) -> Iterator[Source]:
    """Open a file of instances; its ending says the format.

    - `.csv`: comma-separated, in UTF-8. Where the model knows the names of its features, the first line names
      the columns: features in any order, and others, which are carried to the output. Else all columns are
      features in their order, and a first line that is not all numbers is left out.
    - `.npy`: an array `(N, *shape)` or `(N, numbers)`. It is mapped, not read into memory.

    Raises:
        UserError: another ending, columns or a shape that the model doesn't take, or a damaged file.
    """
    check_input(path)
    if path.suffix.lower() == ".npy":
        yield _Array(path, data_format)
        return
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield _Lines(path, file, data_format)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not text in UTF-8 ({error.reason}).") from error
    except csv.Error as error:
        raise UserError(f"{path}: is no CSV file ({error}).") from error


def check_input(path: Path) -> None:
    """Refuse a file that isn't there, or whose ending says no format.

    Raises:
        UserError: says so.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"input={path}: must end in {' or '.join(SUFFIXES)}.")
    if not path.is_file():
        raise UserError(f"input={path}: no such file.")


class _Array:
    def __init__(self, path: Path, data_format: DataFormat) -> None:
        try:
            # Arrays of objects would be unpickled.
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise UserError(f"{path}: is no .npy file of numbers ({error}).") from error
        if not isinstance(array, np.ndarray):
            raise UserError(f"{path}: is no .npy file of numbers but an archive.")
        data_format.check_shape(array.shape)
        self._path, self._array, self._format = path, array, data_format
        self.carried: tuple[str, ...] = ()
        self.length = len(array)

    def chunks(self, size: int) -> Iterator[Chunk]:
        for start in range(0, self.length, size):
            x = self._format.check(self._array[start : start + size], partial(self._place, start))
            yield Chunk(x, [[]] * len(x), start + len(x))

    def _place(self, start: int, row: int) -> str:
        return f"{self._path}, row {start + row} (counted from 0)"


class _Lines:
    def __init__(self, path: Path, file: TextIO, data_format: DataFormat) -> None:
        self._path, self._file, self._format = path, file, data_format
        self.length = path.stat().st_size
        self._rows = csv.reader(file, strict=True)
        first = next((row for row in self._rows if row), None)
        if first is None:
            raise UserError(f"{path}: is empty.")
        self._pending: list[tuple[int, list[str]]] = []
        names = [name.strip() for name in first]
        if data_format.features:
            self._places = self._find(names)
        else:
            self._places = list(range(prod(data_format.shape)))
            if len(names) != len(self._places):
                raise UserError(
                    f"{path}: has {len(names)} columns; the model takes {len(self._places)} numbers."
                )
            if all(map(_is_number, names)):
                self._pending = [(self._rows.line_num, first)]
        self._columns = len(names)
        features = set(self._places)
        self._others = [i for i in range(len(names)) if i not in features]
        self.carried = tuple(names[i] for i in self._others)

    def chunks(self, size: int) -> Iterator[Chunk]:
        lines, values, carried = [], [], []
        for line, row in self._numbered():
            values.append(self._numbers(line, row))
            carried.append([row[i] for i in self._others])
            lines.append(line)
            if len(lines) == size:
                yield self._chunk(lines, values, carried)
                lines, values, carried = [], [], []
        if lines:
            yield self._chunk(lines, values, carried)

    def _chunk(self, lines: list[int], values: list[list[float]], carried: list[list[str]]) -> Chunk:
        x = self._format.check(np.array(values), lambda row: f"{self._path}, line {lines[row]}")
        return Chunk(x, carried, self._file.buffer.tell())

    def _numbered(self) -> Iterator[tuple[int, list[str]]]:
        yield from self._pending
        for row in self._rows:
            if row:
                yield self._rows.line_num, row

    def _numbers(self, line: int, row: Sequence[str]) -> list[float]:
        if len(row) != self._columns:
            raise UserError(
                f"{self._path}, line {line}: has {len(row)} values; the first line has {self._columns}."
            )
        try:
            return [float(row[i]) for i in self._places]
        except ValueError:
            number, i = next((n, i) for n, i in enumerate(self._places) if not _is_number(row[i]))
            column = self._format.column(number)
            raise UserError(f"{self._path}, line {line}, {column}: {row[i]!r} is not a number.") from None

    def _find(self, names: list[str]) -> list[int]:
        """Where each feature stands."""
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"{self._path}: several columns are named {twice[0]!r}.")
        if missing := [name for name in self._format.features if name not in names]:
            shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            hint = did_you_mean(missing[0], names)
            if all(map(_is_number, names)):
                hint = " The first line must name the columns."
            elif len(names) == 1:
                hint = " It has one column; values must be separated by commas."
            raise UserError(f"{self._path}: lacks the columns {shown}.{hint}")
        places: dict[str, Any] = {name: i for i, name in enumerate(names)}
        return [places[name] for name in self._format.features]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
