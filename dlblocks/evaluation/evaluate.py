"""A run's best checkpoint, judged on the parts of its data as the run split them."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import yaml
from torch import Tensor

from dlblocks.assembly import build_data
from dlblocks.data.module import TableDataModule
from dlblocks.errors import UserError
from dlblocks.loading import checkpoint_of, load, load_result
from dlblocks.module import SPLITS, LitModule
from dlblocks.recipe import Recipe, check
from dlblocks.results import Result, finite, versions, write_atomically
from dlblocks.tasks import Task
from dlblocks.trainer import build_trainer

if TYPE_CHECKING:
    import lightning as L
    from rich.console import RenderableType

# What of a run's trainer the numbers depend on. Judged is by one process, whatever the run had.
_AS_TRAINED = ("accelerator", "precision", "deterministic", "benchmark", "inference_mode")
# Classes shown on the terminal; the file has them all.
_SHOWN = 40


@dataclass(frozen=True, eq=False)
class Part:
    """What came of one part of the data.

    Args:
        metrics: loss and the task's metrics.
        predicted: as `Task.predict` gives it, on the CPU.
        true: the targets in the format of a `Table`, on the CPU.
        classes: class or label -> precision, recall, f1 and count; empty for regression.
        confusion: instances of each class (row) that were taken for each (column); empty for other tasks.
    """

    metrics: Mapping[str, float]
    predicted: Tensor
    true: Tensor
    classes: Mapping[str, Mapping[str, float]]
    confusion: list[list[int]]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What `evaluate` found.

    Args:
        run: the run folder.
        checkpoint: the file that was judged.
        task: with its head.
        names: of classes or labels; empty for regression.
        parts: by name: `train`, `val`, `test`.
    """

    run: Path
    checkpoint: Path
    task: Task
    names: tuple[str, ...]
    parts: Mapping[str, Part]

    def tables(self) -> list[RenderableType]:
        """The metrics of all parts side by side, and the classes of each."""
        from rich.table import Table

        metrics = Table(title=f"{self.task.name}: {self.checkpoint.name}", title_justify="left")
        metrics.add_column("metric", style="bold")
        for split, part in self.parts.items():
            metrics.add_column(f"{split} ({len(part.true)})", justify="right")
        for name in next(iter(self.parts.values())).metrics:
            metrics.add_row(name, *(f"{part.metrics[name]:.4f}" for part in self.parts.values()))
        return [metrics, *(_class_table(s, p) for s, p in self.parts.items() if p.classes)]

    def plain(self) -> dict[str, Any]:
        """What `evaluation.json` holds."""
        return {
            "run": str(self.run),
            "checkpoint": str(self.checkpoint),
            "task": self.task.name,
            "head": self.task.head,
            "classes": list(self.names),
            "parts": {
                split: {
                    "instances": len(part.true),
                    "metrics": dict(part.metrics),
                    "classes": {name: dict(values) for name, values in part.classes.items()},
                    "confusion": part.confusion,
                }
                for split, part in self.parts.items()
            },
            "versions": versions(),
        }

    def save(self) -> tuple[Path, Path]:
        """Write `evaluation.json` and `evaluation.png` into the run folder, or `evaluation-2` and so on where
        there are some already.

        Returns:
            The paths of both.
        """
        from dlblocks.evaluation.picture import draw

        for number in itertools.count(1):
            path = self.run / f"evaluation{f'-{number}' if number > 1 else ''}.json"
            picture = path.with_suffix(".png")
            try:
                path.open("x").close()  # the name is taken before anything is written under it
            except FileExistsError:
                continue
            try:
                draw(self, picture)
                write_atomically(path, json.dumps(finite(self.plain()), indent=2, allow_nan=False) + "\n")
            except BaseException:
                path.unlink()
                raise
            return path, picture
        raise AssertionError("itertools.count never ends")


def evaluate(run: str | Path, split: str = "test", accelerator: str | None = None) -> Evaluation:
    """Judge a run's best checkpoint on parts of its data.

    The data are split and scaled as in the run, in the same batches and precision, so the metrics of the test
    part are those in `result.json` to the last bit (where several processes trained: to rounding).

    Args:
        run: the run folder.
        split: `train`, `val`, `test`, or `all` for each of them.
        accelerator: another device than the run's own.

    Raises:
        UserError: no such run or part, no checkpoint, or a data set that has changed since.
    """
    if split not in (*SPLITS, "all"):
        raise UserError(f"split={split}: must be one of {', '.join((*SPLITS, 'all'))}.")
    folder = Path(run)
    result = load_result(folder)
    checkpoint = checkpoint_of(folder)
    module = load(checkpoint)
    recipe = read_recipe(folder)
    data = _data(recipe, result, module, folder)
    names: tuple[str, ...] = SPLITS if split == "all" else (split,)
    parts = {name: _judge(name, recipe, module, data, folder, accelerator) for name in names}
    return Evaluation(folder, checkpoint, module.task, data.classes, parts)


def read_recipe(folder: Path) -> Recipe:
    """The checked recipe of a run folder.

    Raises:
        UserError: `config.yaml` is missing, damaged, or no recipe.
    """
    path = folder / "config.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: the run's recipe can't be read ({reason}).") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: not a recipe, since it holds no mapping.")
    try:
        return check(content)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _data(recipe: Recipe, result: Result, module: LitModule, folder: Path) -> TableDataModule:
    """The data as the run had them."""
    data = build_data(recipe)
    # Batches in validation and test are as large as those of training, if not larger.
    data.batch_size = result.chosen.get("data.batch_size", data.batch_size)
    told, found = ((m or ()) for m in (module.hparams["target_mean"], data.target_mean))
    same_targets = len(told) == len(found) and all(map(partial(math.isclose, rel_tol=1e-5), told, found))
    if module.data_format is None or not module.data_format.like(data.format) or not same_targets:
        raise UserError(
            f"run={folder}: the data set {recipe.dataset['name']} is not the one that the run was trained on;"
            " its shape, names or scaling differ from those in the checkpoint."
        )
    return data


def _judge(
    split: str,
    recipe: Recipe,
    module: LitModule,
    data: TableDataModule,
    folder: Path,
    accelerator: str | None,
) -> Part:
    loader = data.evaluation(split)  # type: ignore[arg-type]
    trainer = _trainer(split, recipe, folder, accelerator)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec.*")  # as in training
        judge = trainer.validate if split == "val" else trainer.test
        values = judge(module, loader, verbose=False)[0]
        batches = trainer.predict(module, loader)
    assert batches is not None
    predicted = torch.cat([batch.cpu() for batch in batches])  # type: ignore[union-attr]
    true = data.part(split)[1][: len(predicted)].cpu()  # type: ignore[arg-type]
    metrics = {name.partition("/")[2]: value for name, value in values.items()}
    return Part(metrics, predicted, true, *_by_class(module.task, predicted, true, data.classes))


def _trainer(split: str, recipe: Recipe, folder: Path, accelerator: str | None) -> L.Trainer:
    settings = {key: recipe.trainer[key] for key in _AS_TRAINED if key in recipe.trainer}
    if accelerator is not None:
        settings["accelerator"] = accelerator
    if (limit := recipe.trainer.get(f"limit_{split}_batches")) is not None and split != "train":
        settings |= {f"limit_{split}_batches": limit, "limit_predict_batches": limit}
    return build_trainer({**settings, "devices": 1}, [], [], folder)


def _by_class(
    task: Task, predicted: Tensor, true: Tensor, names: tuple[str, ...]
) -> tuple[dict[str, dict[str, float]], list[list[int]]]:
    """Precision, recall, f1 and count of each class or label, and the confusion matrix."""
    if task.name == "regression":
        return {}, []
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    decided, given = task.decide(predicted).numpy(), true.long().numpy()
    numbers = list(range(len(names)))
    found = precision_recall_fscore_support(given, decided, labels=numbers, average=None, zero_division=0.0)
    rows = zip(names, *(values.tolist() for values in found), strict=True)
    classes = {name: {"precision": p, "recall": r, "f1": f, "count": int(n)} for name, p, r, f, n in rows}
    one_of_many = task.name != "multilabel"
    return classes, confusion_matrix(given, decided, labels=numbers).tolist() if one_of_many else []


def _class_table(split: Literal["train", "val", "test"] | str, part: Part) -> RenderableType:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"{split}, by class", title_justify="left")
    table.add_column("class", style="bold")
    for name in ("precision", "recall", "f1", "count"):
        table.add_column(name, justify="right")
    for name, values in list(part.classes.items())[:_SHOWN]:
        numbers = (f"{values[key]:.4f}" for key in ("precision", "recall", "f1"))
        table.add_row(escape(name), *numbers, str(values["count"]))
    if len(part.classes) > _SHOWN:
        table.add_row(f"and {len(part.classes) - _SHOWN} more", "", "", "", "")
    return table
