"""The data and the module of a recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn

from dlblocks.data.module import TableDataModule
from dlblocks.errors import UserError
from dlblocks.module import LitModule
from dlblocks.probing import probed
from dlblocks.recipe import Recipe
from dlblocks.tasks import resolve


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


def logged_every_epoch(trainer: Mapping[str, Any], data: TableDataModule) -> dict[str, Any]:
    """At least one logged step in each epoch, however few steps it has."""
    every = int(trainer.get("log_every_n_steps", 50))
    return {**trainer, "log_every_n_steps": max(1, min(every, len(data.train_dataloader())))}


def without_validation(trainer: L.Trainer, data: TableDataModule, step: int) -> str | None:
    """Where no validation will run, let early stopping pass over its metric, which would end the run with an error.

    Args:
        trainer: of the run.
        data: with the batch size that it will have.
        step: the update that the run begins after.

    Returns:
        What to say of it; None if a validation will run, or nothing waits for one.
    """
    waiting = [
        callback
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(callback, (EarlyStopping, ModelCheckpoint))
        and (callback.monitor or "").startswith("val/")
    ]
    if not waiting or _validates(trainer, data, step):
        return None
    for callback in waiting:
        if isinstance(callback, EarlyStopping):
            callback.strict = False
    why = (
        "trainer.limit_val_batches=0"
        if trainer.limit_val_batches == 0
        else "the run ends before its first one"
    )
    names = " and ".join(sorted({type(callback).__name__ for callback in waiting}))
    return f"no validation ({why}): {names} of {waiting[0].monitor} will do nothing; the test is of the last weights."


def _validates(trainer: L.Trainer, data: TableDataModule, step: int) -> bool:
    """Whether a validation will run before the training ends, as far as the limits tell."""
    if trainer.limit_val_batches == 0:
        return False
    if not isinstance(trainer.val_check_interval, float) or trainer.val_check_interval < 1:
        return True
    limit, batches = trainer.limit_train_batches, len(data.train_dataloader())
    taken = int(batches * limit) if isinstance(limit, float) else min(batches, limit)
    epoch = max(1, math.ceil(taken / trainer.accumulate_grad_batches))
    between = epoch * (trainer.check_val_every_n_epoch or 1)
    first = (step // between + 1) * between
    ends = [trainer.max_steps, epoch * (trainer.max_epochs or -1)]
    return all(end < 0 or first <= end for end in ends)


def check_batch_norm(module: LitModule, data: TableDataModule) -> None:
    """Batch normalisation has no deviation to divide by where a batch has one value for each feature.

    Raises:
        UserError: some training batch has one instance, and with it some layer one value.
    """
    size = data.train_batch_size
    if normalises_alone(module, data, size):
        which = "each batch has" if size == 1 else "the last batch of an epoch has"
        own = ", or model.norm=layer" if "norm" in module.hparams.get("model", {}) else ""
        raise UserError(
            f"data.batch_size={size}: {which} one instance, which batch normalisation can't normalise. Use"
            f" {'a larger batch' if size == 1 else 'data.drop_last=true'}{own}."
        )


def normalises_alone(module: LitModule, data: TableDataModule, size: int) -> bool:
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
