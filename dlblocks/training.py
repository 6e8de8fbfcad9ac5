"""The spine: from a recipe to a result."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback

from dlblocks.assembly import (
    build_data,
    build_module,
    check_batch_norm,
    logged_every_epoch,
    without_validation,
)
from dlblocks.checkpoints import Checkpoint, newest, read, tidy
from dlblocks.continuity import Continuity, StopAtSignal
from dlblocks.data.module import TableDataModule
from dlblocks.diagnosis.before import diagnose_on
from dlblocks.endings import together
from dlblocks.errors import Interrupted, UserError
from dlblocks.finding import check_effective, set_batch_size, set_rate, settle_rate
from dlblocks.history import History
from dlblocks.module import LitModule
from dlblocks.moved import Moved
from dlblocks.processes import joined_folder
from dlblocks.recipe import Recipe, check
from dlblocks.results import Result, draw_curves, told, write_atomically, write_table
from dlblocks.resuming import Restoring, check_start, take_up
from dlblocks.runs import held, new_folder, saved_recipe
from dlblocks.seeds import derive
from dlblocks.terminal import show, tell
from dlblocks.trainer import build_callbacks, build_loggers, build_trainer, is_main_process


def train(recipe: Mapping[str, Any], folder: str | Path | None = None) -> Result:
    """Train one recipe, test the best checkpoint, and leave everything in the run folder.

    Args:
        recipe: plain values, as `dlblocks.compose("activation=elu")` gives them.
        folder: the run folder; a new one under `recipe["root"]` if None.

    Returns:
        The result, which is also in `result.json`.

    Raises:
        UserError: something in the recipe is wrong, the folder is another run's, or the training loss became infinite
            or NaN.
        OSError: the folder can't be made.
    """
    checked = check(recipe)
    run = checked.run
    folder = folder or joined_folder() or new_folder(run["root"], run["name"])
    result = Result(folder=str(folder), seed=run["seed"])
    Path(folder).mkdir(parents=True, exist_ok=True)
    with held(folder):
        if is_main_process() and (Path(folder) / "result.json").exists():
            raise UserError(f"{folder}: holds the result of another run; choose a new run folder.")
        return _told(checked, result)


def resume(folder: str | Path, max_epochs: int | None = None) -> Result:
    """Go on with a run in its own folder, by its own `config.yaml`, from its newest whole checkpoint.

    Weights, optimizer, scheduler, random states, the place in the epoch, early stopping, the best checkpoint, the curves
    and what was found for `auto` continue. A run without a checkpoint begins again.

    Args:
        folder: of a run that was killed, interrupted or failed, or of a complete one if `max_epochs` is raised.
        max_epochs: instead of the `trainer.max_epochs` of the run.

    Raises:
        UserError: no run there, a damaged file, or a run that is complete or under way.
    """
    plain = saved_recipe(folder, max_epochs)
    checked = check(plain)
    result = Result(folder=str(folder), seed=checked.run["seed"])
    with held(folder):
        start, damaged = newest(folder)
        if is_main_process():
            tidy(folder)
            for line in damaged:
                tell(f"left aside: {line}")
            tell(
                f"goes on from {start.path}"
                if start
                else f"{folder} has no whole checkpoint: the run begins again"
            )
        return _told(checked, result, start)


def _told(checked: Recipe, result: Result, start: Checkpoint | None = None) -> Result:
    """Train, and write down how it ended."""
    try:
        with _timed(result, "total"), ExitStack() as processes:
            _train(checked, result, start, processes)
    except BaseException as error:
        result.status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        result.error = told(error)
        if is_main_process():
            with suppress(OSError):  # a full disk has ended the run, and is what is told
                result.save()
        raise
    if is_main_process():
        result.save()
    return result


def _fail(result: Result, reason: str) -> None:
    """The end of a run whose main thread waits for ever."""
    result.status, result.error = "failed", reason
    result.save()
    print(f"error: {reason}", file=sys.stderr, flush=True)


def _train(recipe: Recipe, result: Result, start: Checkpoint | None, processes: ExitStack) -> None:
    folder = Path(result.folder)
    resumed, given = start is not None, recipe.run["ckpt_path"]
    if given is not None and start is None:
        start = Checkpoint(Path(given), read(given, "ckpt_path="), "ckpt_path=")
    if is_main_process():
        result.describe(recipe.plain)
        write_atomically(folder / "config.yaml", yaml.safe_dump(dict(recipe.plain), sort_keys=False))

    with _timed(result, "data"):
        data = build_data(recipe)
        check_effective(recipe, data)
    with _timed(result, "build"):
        module = build_module(recipe, data)
        if not recipe.batches["auto"]:
            check_batch_norm(module, data)
        result.task = module.task.name
        result.parameters = sum(p.numel() for p in module.net.parameters() if p.requires_grad)
        metric, mode = module.task.main_metric
        result.main_metric = (f"val/{metric}", mode)
        words = {"run": str(folder), "metric": f"val/{metric}", "mode": mode, "name": recipe.run["name"]}
        history, stop, restoring = History(), StopAtSignal(folder), Restoring()
        trainer = build_trainer(
            logged_every_epoch(recipe.trainer, data),
            [
                *build_callbacks(recipe.callbacks, words),
                *_of_run(recipe),
                *([Moved()] if resumed else []),
                restoring,
                history,
                Continuity(result),
                stop,
            ],
            build_loggers(recipe.logger, words),
            folder,
        )
    if start is not None:
        processes.enter_context(restoring.of(start))
    processes.enter_context(together(trainer, folder, lambda reason: _fail(result, reason)))
    if start is not None:
        check_start(start, module)
    if start is not None and resumed:
        take_up(start, trainer, data, result)
    if recipe.batches["auto"] and "data.batch_size" not in result.chosen:
        with _timed(result, "batch_size_finder"), _quiet():
            set_batch_size(recipe, trainer, module, data, result)
    unjudged = without_validation(trainer, data, start.content.get("global_step", 0) if start else 0)
    if unjudged and is_main_process():
        tell(unjudged)
    settle_rate(recipe, start, trainer, module, data, result)
    if recipe.run["diagnose"] != "off" and start is None:
        with _timed(result, "diagnosis"):
            _diagnose(recipe, module, data, result, trainer.accumulate_grad_batches)
    if recipe.lr_finder is not None and start is None:
        with _timed(result, "lr_finder"), _quiet():
            set_rate(recipe.lr_finder, trainer, module, data, result)
    torch.manual_seed(derive(recipe.run["seed"], f"dropout/{trainer.global_rank}"))

    with _timed(result, "fit"), _quiet():
        try:
            trainer.fit(module, data, ckpt_path=start.path if start else None)
        except MisconfigurationException as error:
            # What Lightning finds only when it starts: a strategy that this device can't do, and the like.
            raise UserError(f"trainer: {error}") from error
        except SystemExit as ending:
            # Lightning ends the process after Ctrl-C; the run has still to be written down.
            if trainer.interrupted:
                raise (Interrupted(stop.received) if stop.received else KeyboardInterrupt) from ending
            raise
    result.epochs, result.steps = trainer.current_epoch, trainer.global_step
    rows = history.rows  # before the test, which brings back the state of the best checkpoint
    if is_main_process():
        draw_curves(rows, metric, folder / "curves.png")
        write_table(rows, folder / "curves.csv")

    with _timed(result, "test"), _quiet():
        best = getattr(trainer.checkpoint_callback, "best_model_path", "") or None
        tested = trainer.test(module, data, ckpt_path=best, verbose=False)
    result.best_checkpoint = os.path.relpath(best) if best else None
    result.tested_epoch = read(best)["epoch"] if best else result.epochs - 1
    values = {key: value for row in rows if row["epoch"] == result.tested_epoch for key, value in row.items()}
    result.metrics = {**{key: value for key, value in values.items() if "/" in key}, **tested[0]}
    result.status = "completed"
    if is_main_process():
        stop.path.unlink(missing_ok=True)


def _of_run(recipe: Recipe) -> list[Callback]:
    if not recipe.run["checkpoint_activations"]:
        return []
    from dlblocks.recomputing import CheckpointActivations

    return [CheckpointActivations()]


def _diagnose(
    recipe: Recipe, module: LitModule, data: TableDataModule, result: Result, accumulate: int
) -> None:
    """Say whether this will start to train; with diagnose=strict, refuse what will not."""
    rate = module.lr if recipe.lr_finder is None and hasattr(module, "lr") else None
    strict = recipe.run["diagnose"] == "strict"
    size = data.train_batch_size * accumulate
    found = diagnose_on(module, data.part("train"), rate, size, thorough=strict)
    result.diagnosis = found.verdict.outcome
    if is_main_process():
        found.save(result.folder)
        if found.worth_telling:
            show(found.panel())
    if strict:
        found.check()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings that are no news to the user: the CSV logger finds the run folder, which
    holds the config already; there is no best checkpoint where no validation runs, as was said before; a run that
    goes on from a checkpoint writes its own into its own folder, or goes on in one that has some; and Lightning
    uses a name that torch is about to rename."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Experiment logs directory")
        warnings.filterwarnings("ignore", "The dirpath has changed")
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
        warnings.filterwarnings("ignore", r".*ModelCheckpoint\(monitor=.*could not find the monitored key")
        warnings.filterwarnings("ignore", ".*LeafSpec.*")
        yield


@contextmanager
def _timed(result: Result, part: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        result.seconds[part] = round(time.perf_counter() - start, 3)
