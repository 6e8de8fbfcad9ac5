"""Batch normalisation by the statistics of the whole batch, of which several processes have a share each.

torch's `SyncBatchNorm` is for GPUs, and Lightning applies it for some strategies; this is for the rest.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm


class SyncBatchNorm(Callback):
    """While training runs, the batch norms of the module normalise by the statistics of all processes."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.world_size > 1:
            for layer in _batch_norms(pl_module):
                layer.forward = partial(normalised, layer)  # type: ignore[method-assign]

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        for layer in _batch_norms(pl_module):
            vars(layer).pop("forward", None)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, _: BaseException) -> None:
        self.on_train_end(trainer, pl_module)


def normalised(layer: _BatchNorm, x: Tensor) -> Tensor:
    """What a batch norm gives of this process's share `(N, C, *)`; in training all processes call it together.

    The statistics that it keeps are updated as by torch: the variance is the unbiased one.
    """
    if not layer.training:
        out: Tensor = type(layer).forward(layer, x)
        return out
    dims = [dim for dim in range(x.ndim) if dim != 1]
    shape = (1, -1, *[1] * (x.ndim - 2))
    values = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    sums = _summed(torch.cat([values.sum(dims), values.new_tensor([float(x.numel() // x.shape[1])])]))
    count = sums[-1].detach()
    mean = sums[:-1] / count
    centred = values - mean.view(shape)
    variance = _summed(centred.square().sum(dims)) / count
    result: Tensor = centred * (variance + layer.eps).rsqrt().view(shape)
    if layer.affine:
        result = result * layer.weight.view(shape) + layer.bias.view(shape)
    if layer.track_running_stats:
        _keep(layer, mean.detach(), variance.detach() * (count / (count - 1)))
    return result.to(x.dtype)


def _keep(layer: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    assert layer.num_batches_tracked is not None
    layer.num_batches_tracked.add_(1)
    factor = 1 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
    layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), factor)
    layer.running_var.lerp_(variance.to(layer.running_var.dtype), factor)


class _Summed(torch.autograd.Function):
    """The sum over all processes; the gradient of what each does with it comes back summed."""

    @staticmethod
    def forward(_: Any, value: Tensor) -> Tensor:
        return _sum(value)

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return _sum(gradient)


def _summed(value: Tensor) -> Tensor:
    total: Tensor = _Summed.apply(value)  # type: ignore[no-untyped-call]
    return total


def _sum(value: Tensor) -> Tensor:
    total = value.detach().clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total)
    return total


def _batch_norms(module: nn.Module) -> list[_BatchNorm]:
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
