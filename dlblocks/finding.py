"""The learning rate and the batch size of a recipe that leaves them to be found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning as L

from dlblocks.assembly import logged_every_epoch, normalises_alone
from dlblocks.checkpoints import Checkpoint
from dlblocks.data.module import TableDataModule
from dlblocks.errors import UserError
from dlblocks.module import LitModule
from dlblocks.recipe import Recipe
from dlblocks.recomputing import CheckpointActivations
from dlblocks.results import Result
from dlblocks.resuming import rate_of
from dlblocks.terminal import tell
from dlblocks.trainer import is_main_process
from dlblocks.tuning.batch_size import NoSizeError, find_batch_size
from dlblocks.tuning.finder import Choice
from dlblocks.tuning.learning_rate import find_lr
from dlblocks.tuning.scaling import rescaled, rule_of
from dlblocks.tuning.sizes import effective_above


def check_effective(recipe: Recipe, data: TableDataModule) -> None:
    """Batches are accumulated within an epoch.

    Raises:
        UserError: an update would take more than the training set, or another number where each takes all of it.
    """
    effective = recipe.batches["effective"]
    if effective is None:
        return
    if effective > data.n_train:
        raise effective_above(effective, data.n_train)
    if data.batch_size == "full" and not recipe.batches["auto"] and effective != data.n_train:
        said = "regime=gd" if recipe.run["regime"] == "gd" else "data.batch_size=full"
        instead = "regime=minibatch" if recipe.run["regime"] == "gd" else "data.batch_size=auto"
        raise UserError(
            f"data.effective_batch_size={effective}: {said} takes the whole training set, {data.n_train} instances, for"
            f" each update. Leave out data.effective_batch_size, or set {instead}."
        )


def set_rate(
    settings: Mapping[str, Any], trainer: L.Trainer, module: LitModule, data: TableDataModule, result: Result
) -> None:
    """Find the rate for `optimizer.lr=auto`, show and keep it, and train with it."""
    choice = find_lr(trainer, module, data, **settings)
    module.lr = result.chosen["optimizer.lr"] = choice.lr
    _show(choice, result)


def set_batch_size(
    recipe: Recipe, trainer: L.Trainer, module: LitModule, data: TableDataModule, result: Result
) -> None:
    """Find the size for `data.batch_size=auto`, show and keep it, and train with it."""
    # Until then the smallest one, with which any limit of the Trainer leaves a batch, if one does.
    data.batch_size = trainer.world_size
    # Instances with several labels, or with none, have no class of their own to be shared out.
    counts = list(data.class_counts.values()) if data.task in ("binary", "multiclass") else None
    refused: set[int] = set()

    def allowed(size: int) -> bool:
        alone = normalises_alone(module, data, size)
        refused.update({size} if alone else ())
        return not alone

    try:
        choice = find_batch_size(
            trainer,
            module,
            data,
            max_size=recipe.batches["max_size"],
            effective=recipe.batches["effective"],
            class_counts=counts,
            allowed=allowed,
            callbacks=[one for one in trainer.callbacks if isinstance(one, CheckpointActivations)],  # type: ignore[attr-defined]
        )
    except NoSizeError as error:
        if not refused:
            raise
        raise UserError(
            f"data.batch_size=auto: the limits leave only {', '.join(map(str, sorted(refused)))}, with which a batch has"
            " one instance, which batch normalisation can't normalise. Allow larger sizes, or use data.drop_last=true or"
            " another norm."
        ) from error
    data.batch_size = choice.size
    trainer.accumulate_grad_batches = choice.accumulate
    trainer.log_every_n_steps = logged_every_epoch(recipe.trainer, data)["log_every_n_steps"]  # type: ignore[attr-defined]
    result.chosen["data.batch_size"] = choice.size
    if recipe.batches["effective"] is not None:
        result.chosen["trainer.accumulate_grad_batches"] = choice.accumulate
    _show(choice, result)


def _show(choice: Choice, result: Result) -> None:
    """Picture, table and line of what was found."""
    if is_main_process():
        choice.save(result.folder)
        tell(choice.explanation)


def settle_rate(
    recipe: Recipe,
    start: Checkpoint | None,
    trainer: L.Trainer,
    module: LitModule,
    data: TableDataModule,
    result: Result,
) -> None:
    """Let the module have the rate that needs no search: of the recipe, which may follow the batch size, or of the
    checkpoint that the run goes on from.

    Raises:
        UserError: these two differ.
    """
    reference, said = recipe.batches["lr_reference"], ""
    if reference is not None:
        said = _rescale(reference, trainer, module, data, result)
    if start is not None:
        _keep_rate(recipe, start, module)
    if said and is_main_process():
        tell(said)


def _rescale(
    reference: int, trainer: L.Trainer, module: LitModule, data: TableDataModule, result: Result
) -> str:
    """Let the rate follow the batch size; what to say of it."""
    size = data.train_batch_size * trainer.accumulate_grad_batches
    rule = rule_of(module.hparams["optimizer"]["name"])
    before = module.lr
    module.lr = result.chosen["optimizer.lr"] = rescaled(before, reference, size, rule)
    return (
        f"learning rate {module.lr:.4g}: {before:g} was set for batches of {reference}, these have {size}; it"
        f" follows their {'ratio' if rule == 'linear' else 'square root'} ({rule} rule)."
    )


def _keep_rate(recipe: Recipe, start: Checkpoint, module: LitModule) -> None:
    """The optimizer's state brings back the rate of the checkpoint, whatever the module has."""
    kept = rate_of(start)
    if kept is None:
        return
    given = getattr(module, "lr", None) if recipe.lr_finder is None else None
    # What the error shows of a rate can be given in place of it.
    if given is not None and not math.isclose(given, kept, rel_tol=1e-5):
        reference = recipe.batches["lr_reference"]
        how = f" (by optimizer.lr_reference_batch_size={reference})" if reference is not None else ""
        without = " without a reference" if reference is not None else ""
        raise UserError(
            f"optimizer.lr={given:g}{how}: a run that goes on from a checkpoint keeps its rate, {kept:g}. Set"
            f" optimizer.lr=auto{without}, which takes that."
        )
    module.lr = kept
