"""What a run leaves: `result.json`, `curves.png`, and the table at its end."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from math import nan
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from dlblocks.errors import UserError
from dlblocks.revision import revision

if TYPE_CHECKING:
    from rich.table import Table

_VERSIONED = ("dlblocks", "torch", "lightning", "torchmetrics", "hydra-core", "numpy", "scikit-learn")
STATUSES = ("running", "completed", "interrupted", "failed")
# A result is a few kilobytes; a file beyond this is none, and is not read.
_LARGEST = 2**24


@dataclass
class Result:
    """What came of a run.

    Args:
        folder: the run folder.
        status: `completed`, `interrupted` or `failed`.
        seed: of the run.
        task: its name.
        metrics: of training, validation and test, all of `tested_epoch`.
        tested_epoch: that of the best checkpoint, or the last one if none was kept.
        main_metric: the one that chose the best checkpoint, and `max` or `min`.
        best_checkpoint: its path, if one was kept.
        diagnosis: what was said before training: `trains`, `slow`, `will not start`, `will diverge`, `unclear`.
        chosen: what was found for the keys of the recipe that said `auto`, such as `optimizer.lr`; also a rate that was
            rescaled.
        parameters: trainable numbers in the net.
        epochs: passes over the training data.
        steps: optimizer updates.
        seconds: time of each part of the run.
        versions: of Python and the packages that the numbers depend on.
        revision: the git commit of the working directory, if it is in a repository.
        modified: whether files that git follows differed from that commit.
        recipe: the full config of the run, which `config.yaml` beside it holds too.
        error: what ended the run, if it did not complete.
    """

    folder: str
    status: str = "running"
    seed: int = 0
    task: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    tested_epoch: int = 0
    main_metric: tuple[str, str] = ("", "max")
    best_checkpoint: str | None = None
    diagnosis: str = ""
    chosen: dict[str, Any] = field(default_factory=dict)
    parameters: int = 0
    epochs: int = 0
    steps: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    revision: str | None = None
    modified: bool | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    def describe(self, recipe: Mapping[str, Any]) -> None:
        """Note what is needed to repeat the run: its recipe, versions, and the state of the working directory."""
        self.recipe = dict(recipe)
        self.versions = versions()
        self.revision, self.modified = revision()

    def save(self) -> Path:
        """Write `result.json`, whole or not at all."""
        path = Path(self.folder) / "result.json"
        write_atomically(
            path, json.dumps(finite(asdict(self)), indent=2, allow_nan=False, default=str) + "\n"
        )
        return path

    @classmethod
    def load(cls, folder: str | Path) -> Result:
        """Read the result of a run folder. A number that was not finite is NaN; a field that it lacks has its default.

        Raises:
            FileNotFoundError: there is none.
            UserError: damaged; names the field.
        """
        path = Path(folder) / "result.json"
        saved = _read_object(path)
        types = {**get_type_hints(cls), "chosen": dict[str, float]}
        for name, value in saved.items():
            if name not in types:
                raise UserError(f"{path}: damaged; a result has no field {name!r}.")
            if not _fits(value, types[name]):
                raise UserError(f"{path}: damaged; {name} must be of type {_told_type(types[name])}.")
        for name, legal in (("folder", None), ("status", STATUSES)):
            if name not in saved or (legal and saved[name] not in legal):
                raise UserError(f"{path}: damaged; {name} must be {', '.join(legal) if legal else 'there'}.")
        metric = tuple(saved.get("main_metric", cls.main_metric))
        if metric[1] not in ("max", "min"):
            raise UserError(f"{path}: damaged; main_metric must end in max or min.")
        numbers = {
            key: {name: nan if value is None else value for name, value in saved.get(key, {}).items()}
            for key in ("metrics", "seconds", "chosen")
        }
        return cls(**{**saved, **numbers, "main_metric": metric})

    def table(self) -> Table:
        """The summary shown at the end of a run."""
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=f"{self.task}: {self.status}", show_header=False, title_justify="left")
        table.add_column("what", style="bold")
        table.add_column("value", overflow="fold")
        for name, value in sorted(self.metrics.items(), key=lambda item: _order(item[0])):
            if name.startswith(("test/", "val/")):
                table.add_row(name.replace("/", " "), f"{value:.4f}")
        optimizer = self.recipe.get("optimizer")
        follows = isinstance(optimizer, Mapping) and optimizer.get("lr_reference_batch_size") is not None
        for key, value in self.chosen.items():
            table.add_row(key, f"{value:g} ({'rescaled' if follows and key == 'optimizer.lr' else 'found'})")
        if self.diagnosis:
            table.add_row("diagnosis", self.diagnosis)
        table.add_row("parameters", f"{self.parameters:,}")
        table.add_row("tested epoch", f"{self.tested_epoch} of 0 to {self.epochs - 1}")
        table.add_row("steps", f"{self.steps:,}")
        table.add_row("time", f"{self.seconds.get('total', 0.0):.1f} s")
        table.add_row("run folder", escape(self.folder))
        return table


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file that anyone may have written."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise ValueError("it is no file")
        if (size := path.stat().st_size) > _LARGEST:
            raise ValueError(f"{size} bytes are too many")
        saved = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}).") from error
    if not isinstance(saved, dict):
        raise UserError(f"{path}: damaged; it must be an object.")
    return saved


def _fits(value: Any, kind: Any) -> bool:
    """Whether what JSON gave can stand in a field of this type. Null stands for a number that is not finite."""
    if kind is Any:
        return True
    if kind is float:
        return value is None or (
            isinstance(value, (int, float)) and not isinstance(value, bool) and _small(value)
        )
    arguments = get_args(kind)
    if get_origin(kind) is UnionType:
        return any(_fits(value, argument) for argument in arguments)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_fits(item, arguments[1]) for item in value.values())
    if get_origin(kind) is tuple:
        return isinstance(value, list) and len(value) == len(arguments) and all(map(_fits, value, arguments))
    return value is None if kind is NoneType else type(value) is kind


def _told_type(kind: Any) -> str:
    return kind.__name__ if type(kind) is type else str(kind)


def _small(number: float) -> bool:
    return isinstance(number, float) or abs(number) < 2**1023


def told(error: BaseException) -> str:
    """An error in one text: a user's mistake in its own words, anything else with its kind."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in _VERSIONED}}


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader, a crash or a full disk never sees half of it.

    Raises:
        OSError: it can't be written; names the file.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def check_free(path: Path, overwrite: bool) -> None:
    """Refuse to replace a file, or to write into a folder that isn't there.

    Raises:
        UserError: says so.
    """
    if not path.parent.is_dir():
        raise UserError(f"output={path}: no such folder, {path.parent}.")
    if path.is_dir() or (path.exists() and not overwrite):
        hint = "is a folder." if path.is_dir() else "exists; overwrite=true replaces it."
        raise UserError(f"output={path}: {hint}")


def write_table(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows as CSV, under all their keys."""
    text = io.StringIO()
    columns = dict.fromkeys(key for row in rows for key in row)
    writer = csv.DictWriter(text, fieldnames=list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def draw_curves(rows: Sequence[Mapping[str, float]], metric: str, path: Path) -> None:
    """Draw loss and main metric, in training and validation, against the epoch."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("loss", metric), strict=True):
        for split, style in (("train", "--"), ("val", "-")):
            points = [(row["epoch"], row[f"{split}/{name}"]) for row in rows if f"{split}/{name}" in row]
            if points:
                axes.plot(*zip(*points, strict=True), style, marker=".", label=split)
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(path, dpi=120)


def _order(name: str) -> tuple[int, str]:
    split, _, metric = name.partition("/")
    return ({"test": 0, "val": 1}.get(split, 2), metric)


def finite(value: Any) -> Any:
    """JSON has no NaN or infinity; null stands for both."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value
