"""What a net is diagnosed on: instances as a tensor, or as tensors in a tuple or mapping, and their targets."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dlblocks.errors import UserError, first_line
from dlblocks.probing import probed


def parts_of(model: nn.Module, batch: Any) -> tuple[Any, Tensor, bool]:
    """Inputs, targets, and whether the targets are known; in an order of their own, as a table may be sorted.

    Raises:
        UserError: the batch is empty, not finite, or of parts that don't belong together; the model can't be run on it.
    """
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise UserError(f"diagnosis: {type(model).__name__} is no torch.nn.Module that can be looked into.")
    batch = _as_tensors(batch)
    known = isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Tensor)
    x = batch[0] if known else batch
    tensors = list(tensors_of(x))
    if not tensors:
        raise UserError(f"diagnosis: a batch is (x, y) or x alone, of tensors; got {_described(batch)}.")
    for tensor in tensors:
        if not tensor.numel():
            raise UserError("diagnosis: the batch has no instances.")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError("diagnosis: the batch has inputs that are not finite numbers.")
    if known:
        y = batch[1]
        if not y.ndim or all(len(y) not in tensor.shape for tensor in tensors):
            raise UserError(
                f"diagnosis: {_described(x)} as inputs and {tuple(y.shape)} as targets are not of equally many instances."
            )
    else:
        with probed(model):
            output = output_of(model, x)
        y = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output)
    if countable(x, y):
        places = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
        x, y = take(x, places, len(y)), y[places.to(y.device)]
    return x, y, known


def output_of(net: nn.Module, x: Any) -> Tensor:
    """What a net gives for a batch: a tensor, or the `logits` in it.

    Raises:
        UserError: neither, or it can't be run.
    """
    try:
        if isinstance(x, Mapping) and _takes(net, x):
            made = net(**x)
        elif isinstance(x, (tuple, list)) and _takes(net, x):
            made = net(*x)
        else:
            made = net(x)
    except (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
        raise UserError(
            f"diagnosis: {type(net).__name__} can't be run on {_described(x)}: {first_line(error)}"
        ) from error
    output = made.get("logits", made) if isinstance(made, Mapping) else getattr(made, "logits", made)
    if not isinstance(output, Tensor) or not output.ndim:
        given = "one number for the whole batch" if isinstance(output, Tensor) else type(made).__name__
        raise UserError(
            f"diagnosis: {type(net).__name__} gives {given}, not a tensor with a row for each instance; wrap it in a"
            " module that gives its logits."
        )
    return output


def countable(x: Any, y: Tensor) -> bool:
    """Whether inputs can be parted into instances as the targets can."""
    return all(len(tensor) == len(y) for tensor in tensors_of(x) if len(y) in tensor.shape)


def take(batch: Any, rows: Tensor, count: int) -> Any:
    """Some instances of a batch of so many: of each tensor in it that has as many rows, those."""
    if isinstance(batch, Tensor):
        return batch[rows.to(batch.device)] if batch.ndim and len(batch) == count else batch
    if isinstance(batch, Mapping):
        return {key: take(value, rows, count) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(take(value, rows, count) for value in batch)
    return batch


def tensors_of(batch: Any) -> Iterator[Tensor]:
    """The tensors in a batch, of one dimension or more."""
    if isinstance(batch, Tensor):
        if batch.ndim:
            yield batch
        return
    values = (
        batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else ()
    )
    for value in values:
        yield from tensors_of(value)


def _as_tensors(batch: Any) -> Any:
    if isinstance(batch, np.ndarray):
        return torch.as_tensor(batch)
    if isinstance(batch, Mapping):
        return {key: _as_tensors(value) for key, value in batch.items()}
    return tuple(map(_as_tensors, batch)) if isinstance(batch, (tuple, list)) else batch


def _takes(net: nn.Module, x: Any) -> bool:
    """Whether a net takes the parts of x as arguments, several or by name."""
    try:
        signature = inspect.signature(net.forward)
        signature.bind(**x) if isinstance(x, Mapping) else signature.bind(*x)
    except (TypeError, ValueError):
        return False
    return isinstance(x, Mapping) or len(x) > 1


def _described(batch: Any) -> str:
    if isinstance(batch, Tensor):
        return f"{tuple(batch.shape)} of {str(batch.dtype).removeprefix('torch.')}"
    if isinstance(batch, Mapping):
        return "{" + ", ".join(f"{key}: {_described(value)}" for key, value in batch.items()) + "}"
    if isinstance(batch, (tuple, list)):
        return f"({', '.join(map(_described, batch))})"
    return type(batch).__name__
