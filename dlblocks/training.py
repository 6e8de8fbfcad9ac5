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

import lightning as L
import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from dlblocks.checkpoints import fitting, newest, read, tidy
from dlblocks.continuity import Continuity, StopAtSignal, continue_tables
from dlblocks.data.module import TableDataModule
from dlblocks.diagnosis.before import diagnose_on
from dlblocks.errors import Interrupted, UserError
from dlblocks.history import History
from dlblocks.module import LitModule
from dlblocks.moved import Moved
from dlblocks.probing import probed
from dlblocks.processes import rank
from dlblocks.recipe import Recipe, check
from dlblocks.results import Result, draw_curves, told, write_atomically, write_table
from dlblocks.runs import new_folder, saved_recipe
from dlblocks.seeds import derive
from dlblocks.tasks import resolve
from dlblocks.trainer import build_callbacks, build_loggers, build_trainer
from dlblocks.tuning.batch_size import find_batch_size
from dlblocks.tuning.finder import Choice, show, tell
from dlblocks.tuning.learning_rate import find_lr
from dlblocks.tuning.scaling import rescaled, rule_of
from dlblocks.watching import together


def train(recipe: Mapping[str, Any], folder: str | Path | None = None) -> Result:
    """Train one recipe, test the best checkpoint, and leave everything in the run folder.

    Args:
        recipe: plain values, as `dlblocks.compose("activation=elu")` gives them.
        folder: the run folder; a new one under `recipe["root"]` if None.

    Returns:
        The result, which is also in `result.json`.

    Raises:
        UserError: something in the recipe is wrong, or the training loss became infinite or NaN.
    """
    checked = check(recipe)
    run = checked.run
    result = Result(folder=str(folder or new_folder(run["root"], run["name"])), seed=run["seed"])
    if is_main_process() and (Path(result.folder) / "result.json").exists():
        raise UserError(f"{result.folder}: holds the result of another run; choose a new run folder.")
    return _told(checked, result)


def resume(folder: str | Path, max_epochs: int | None = None) -> Result:
    """Go on with a run in its own folder, by its own `config.yaml`, from its newest whole checkpoint.

    Weights, optimizer, scheduler, random states, the place in the epoch, early stopping, the best checkpoint, the curves
    and what was found for `auto` continue. A run without a checkpoint begins again.

    Args:
        folder: of a run that was killed, interrupted or failed, or of a complete one if `max_epochs` is raised.
        max_epochs: instead of the `trainer.max_epochs` of the run.

    Raises:
        UserError: no run there, a damaged file, or a run that is complete.
    """
    plain = saved_recipe(folder, max_epochs)
    checked = check(plain)
    result = Result(folder=str(folder), seed=checked.run["seed"])
    path, damaged = newest(folder)
    if is_main_process():
        tidy(folder)
        for line in damaged:
            tell(f"left aside: {line}")
        tell(f"goes on from {path}" if path else f"{folder} has no whole checkpoint: the run begins again")
    return _told(checked, result, path)


def _told(checked: Recipe, result: Result, start: Path | None = None) -> Result:
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


def is_main_process() -> bool:
    """Whether this is the process that writes files and prints, of all that train together."""
    return not (getattr(rank_zero_only, "rank", 0) or rank())


def _train(recipe: Recipe, result: Result, start: Path | None, processes: ExitStack) -> None:
    folder = Path(result.folder)
    start_path = str(start) if start else recipe.run["ckpt_path"]
    if is_main_process():
        result.describe(recipe.plain)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "config.yaml", yaml.safe_dump(dict(recipe.plain), sort_keys=False))

    with _timed(result, "data"):
        data = build_data(recipe)
    with _timed(result, "build"):
        module = build_module(recipe, data)
        if not recipe.batches["auto"]:
            _check_batch_norm(module, data)
        result.task = module.task.name
        result.parameters = sum(p.numel() for p in module.net.parameters() if p.requires_grad)
        metric, mode = module.task.main_metric
        result.main_metric = (f"val/{metric}", mode)
        words = {"run": str(folder), "metric": f"val/{metric}", "mode": mode, "name": recipe.run["name"]}
        history, stop = History(), StopAtSignal(folder)
        trainer = build_trainer(
            _logged_every_epoch(recipe.trainer, data),
            [
                *build_callbacks(recipe.callbacks, words),
                *_of_run(recipe),
                *([Moved()] if start else []),
                history,
                Continuity(result.chosen),
                stop,
            ],
            build_loggers(recipe.logger, words),
            folder,
        )
    processes.enter_context(together(trainer, folder, lambda reason: _fail(result, reason)))
    if start is not None:
        _take_up(start, trainer, data, result)
    if recipe.run["diagnose"] != "off" and start_path is None:
        with _timed(result, "diagnosis"):
            _diagnose(recipe, module, data, result)
    if recipe.batches["auto"] and "data.batch_size" not in result.chosen:
        with _timed(result, "batch_size_finder"), _quiet():
            _set_batch_size(recipe, trainer, module, data, result)
    if recipe.batches["lr_reference"] is not None:
        _rescale(recipe.batches["lr_reference"], trainer, module, data, result)
    if recipe.lr_finder is not None:
        with _timed(result, "lr_finder"), _quiet():
            module.lr = _learning_rate(recipe, start_path, trainer, module, data, result)
    torch.manual_seed(derive(recipe.run["seed"], f"dropout/{trainer.global_rank}"))

    with _timed(result, "fit"), _quiet():
        try:
            trainer.fit(module, data, ckpt_path=_checkpoint(start_path, module))
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


def build_data(recipe: Recipe) -> TableDataModule:
    """The data module of a recipe, split and checked."""
    data = TableDataModule(dict(recipe.dataset), seed=recipe.run["seed"], **recipe.data)
    data.setup()
    return data


def build_module(recipe: Recipe, data: TableDataModule) -> LitModule:
    """The module of a recipe, shaped for its data."""
    run = recipe.run
    task = resolve(run["task"], run["head"], data.outputs, data.task)
    module = LitModule(
        task=task.name,
        head=task.head,
        input_shape=data.input_shape,
        outputs=data.outputs,
        data_format=data.format.plain(),
        seed=run["seed"],
        target_mean=data.target_mean,
        target_std=data.target_std,
        **recipe.blocks,
    )
    module.meet(data.part("train")[0])
    module.compiled = run["compile"]
    return module


def _diagnose(recipe: Recipe, module: LitModule, data: TableDataModule, result: Result) -> None:
    """Say whether this will start to train; with diagnose=strict, refuse what will not."""
    rate = module.lr if recipe.lr_finder is None and hasattr(module, "lr") else None
    size = 64 if recipe.batches["auto"] else data.train_batch_size
    found = diagnose_on(module, data.part("train"), rate, size)
    result.diagnosis = found.verdict.outcome
    if is_main_process():
        found.save(result.folder)
        if found.worth_telling:
            show(found.panel())
    if recipe.run["diagnose"] == "strict":
        found.check()


def _take_up(path: Path, trainer: L.Trainer, data: TableDataModule, result: Result) -> None:
    """What the run had found for `auto`, and the rows of its log that are older than the checkpoint."""
    content = read(path)
    result.chosen.update(content.get("callbacks", {}).get("Continuity", {}).get("chosen", {}))
    data.batch_size = result.chosen.get("data.batch_size", data.batch_size)
    trainer.accumulate_grad_batches = result.chosen.get(
        "trainer.accumulate_grad_batches", trainer.accumulate_grad_batches
    )
    if is_main_process():
        history = content.get("callbacks", {}).get("History", {}).get("rows", [])
        continue_tables(trainer.loggers, content["global_step"], history)


def _learning_rate(
    recipe: Recipe,
    start: str | None,
    trainer: L.Trainer,
    module: LitModule,
    data: TableDataModule,
    result: Result,
) -> float:
    """The rate for `optimizer.lr=auto`: that of the checkpoint, or what is found, which is shown and kept."""
    if (path := _checkpoint(start, module)) is not None:
        kept: float = read(path)["hyper_parameters"]["optimizer"]["lr"]
        return kept
    assert recipe.lr_finder is not None
    choice = find_lr(trainer, module, data, **recipe.lr_finder)
    result.chosen["optimizer.lr"] = choice.lr
    _show(choice, result)
    return choice.lr


def _set_batch_size(
    recipe: Recipe, trainer: L.Trainer, module: LitModule, data: TableDataModule, result: Result
) -> None:
    """Find the size for `data.batch_size=auto`, show and keep it, and train with it."""
    choice = find_batch_size(
        trainer,
        module,
        data,
        max_size=recipe.batches["max_size"],
        effective=recipe.batches["effective"],
        class_counts=list(data.class_counts.values()) or None,
        allowed=lambda size: not _normalises_alone(module, data, size),
    )
    data.batch_size = choice.size
    trainer.accumulate_grad_batches = choice.accumulate
    trainer.log_every_n_steps = _logged_every_epoch(recipe.trainer, data)["log_every_n_steps"]  # type: ignore[attr-defined]
    result.chosen["data.batch_size"] = choice.size
    if recipe.batches["effective"] is not None:
        result.chosen["trainer.accumulate_grad_batches"] = choice.accumulate
    _show(choice, result)


def _show(choice: Choice, result: Result) -> None:
    """Picture, table and line of what was found."""
    if is_main_process():
        choice.save(result.folder)
        tell(choice.explanation)


def _rescale(
    reference: int, trainer: L.Trainer, module: LitModule, data: TableDataModule, result: Result
) -> None:
    """Let the rate follow the batch size, and say so."""
    size = data.train_batch_size * trainer.accumulate_grad_batches
    rule = rule_of(module.hparams["optimizer"]["name"])
    before = module.lr
    module.lr = result.chosen["optimizer.lr"] = rescaled(before, reference, size, rule)
    if is_main_process():
        tell(
            f"learning rate {module.lr:.4g}: {before:g} was set for batches of {reference}, these have {size}; it"
            f" follows their {'ratio' if rule == 'linear' else 'square root'} ({rule} rule)."
        )


def _logged_every_epoch(trainer: Mapping[str, Any], data: TableDataModule) -> dict[str, Any]:
    """At least one logged step in each epoch, however few steps it has."""
    every = int(trainer.get("log_every_n_steps", 50))
    return {**trainer, "log_every_n_steps": max(1, min(every, len(data.train_dataloader())))}


def _check_batch_norm(module: LitModule, data: TableDataModule) -> None:
    """Batch normalisation has no deviation to divide by where a batch has one value for each feature.

    Raises:
        UserError: some training batch has one instance, and with it some layer one value.
    """
    size = data.train_batch_size
    if _normalises_alone(module, data, size):
        which = "each batch has" if size == 1 else "the last batch of an epoch has"
        own = ", or model.norm=layer" if "norm" in module.hparams.get("model", {}) else ""
        raise UserError(
            f"data.batch_size={size}: {which} one instance, which batch normalisation can't normalise. Use"
            f" {'a larger batch' if size == 1 else 'data.drop_last=true'}{own}."
        )


def _normalises_alone(module: LitModule, data: TableDataModule, size: int) -> bool:
    """Whether, with batches of a size, some layer would normalise a single value."""
    rest = 0 if data.drop_last else data.n_train % size
    return 1 in (size, rest) and _normalises_single_values(module)


def _normalises_single_values(module: LitModule) -> bool:
    """Whether an instance gives a batch norm one value for each feature: a vector, or a picture of one place."""
    layers = [layer for layer in module.net.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    single: list[bool] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs: single.append(inputs[0][:, 0].numel() == 1))
        for layer in layers
    ]
    try:
        with probed(module.net):
            if layers:
                module.net(torch.zeros(1, *module.hparams["input_shape"]))
    finally:
        for hook in hooks:
            hook.remove()
    return any(single)


def _checkpoint(path: str | None, module: LitModule) -> str | None:
    """The path, after a look into the file.

    Raises:
        UserError: the file does not exist, is not a whole checkpoint, or is of another module.
    """
    if path is None:
        return None
    content = read(path, "ckpt_path=")
    fitting(content, module, f"ckpt_path={path}")
    for kind in ("optimizer", "scheduler"):
        there, here = (
            h.get(kind, {}).get("name") for h in (content.get("hyper_parameters", {}), module.hparams)
        )
        if there != here:
            raise UserError(
                f"ckpt_path={path}: was trained with {kind}={there}, which can't go on as {here}."
            )
    return path


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings that are no news to the user: the CSV logger finds the run folder, which
    holds the config already; a run that goes on from a checkpoint writes its own into its own folder; and
    Lightning uses a name that torch is about to rename."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Experiment logs directory")
        warnings.filterwarnings("ignore", "The dirpath has changed")
        warnings.filterwarnings("ignore", ".*LeafSpec.*")
        yield


@contextmanager
def _timed(result: Result, part: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        result.seconds[part] = round(time.perf_counter() - start, 3)
