"""The data and the module of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
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
