"""Less memory for more time: blocks keep their inputs alone, and compute again when gradients are wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from dlblocks.errors import UserError


class CheckpointActivations(Callback):
    """While training runs, the blocks of the net keep no activations inside (Chen et al. 2016, arXiv:1604.06174).

    Blocks are the outermost entries of an `nn.Sequential` or `nn.ModuleList` that are made of other modules.
    Random masks are drawn alike in both computations, and running statistics are updated once, so that the
    weights are those of ordinary training.

    Raises:
        UserError: the net has no such blocks.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        found = list(blocks(_net(pl_module)))
        if not found:
            raise UserError(
                "checkpoint_activations=true: the net has no blocks that are made of other modules, as residual nets"
                " and transformers have; leave it out."
            )
        for block in found:
            block.forward = partial(_recomputed, block, block.forward)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        for block in blocks(_net(pl_module)):
            vars(block).pop("forward", None)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, _: BaseException) -> None:
        self.on_train_end(trainer, pl_module)


def _net(module: pl.LightningModule) -> nn.Module:
    net = getattr(module, "net", module)
    assert isinstance(net, nn.Module)
    return net


def blocks(net: nn.Module) -> Iterator[nn.Module]:
    """The outermost entries of containers that are made of other modules."""
    if isinstance(net, (nn.Sequential, nn.ModuleList)):
        for entry in net:
            if isinstance(entry, nn.ModuleList):
                yield from blocks(entry)
            elif any(True for _ in entry.children()):
                yield entry
    else:
        for child in net.children():
            yield from blocks(child)


def _recomputed(block: nn.Module, forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    if not block.training:
        return forward(*inputs, **named)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_stay(block)

    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, **named)


@contextmanager
def _statistics_stay(block: nn.Module) -> Iterator[None]:
    """Batch norms normalise by the batch, and learn nothing of it."""
    norms = [layer for layer in block.modules() if isinstance(layer, _BatchNorm)]
    momenta = [layer.momentum for layer in norms]
    counts = [
        None if layer.num_batches_tracked is None else layer.num_batches_tracked.clone() for layer in norms
    ]
    for layer in norms:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum, count in zip(norms, momenta, counts, strict=True):
            layer.momentum = momentum
            if layer.num_batches_tracked is not None and count is not None:
                layer.num_batches_tracked.copy_(count)
