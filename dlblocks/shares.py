"""What several processes that have a share of each batch tell each other: losses, counts, states."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

from dlblocks.errors import UserError
from dlblocks.losses.base import Loss
from dlblocks.losses.combined import Sum
from dlblocks.registry import REGISTRY, Spec, name_of

T = TypeVar("T")


def check_shared(loss: nn.Module, spec: Spec) -> None:
    """Refuse a loss of a whole batch that its shares don't give.

    Raises:
        UserError: the loss is of all instances at once, or a sum of means over different numbers.
    """
    terms = list(loss.terms) if isinstance(loss, Sum) else [name_of(spec)] if isinstance(spec, dict) else []
    if whole := [name for name in terms if REGISTRY.get("loss", name).tags.get("whole_batch")]:
        raise UserError(
            f"loss={whole[0]}: is of all instances of a batch at once, and each of several processes has a"
            " share of them. Train in one process."
        )
    if isinstance(loss, Sum) and any(weighs_classes(term) for term in loss.terms.values()):
        raise UserError(
            "loss=sum: a term with class weights or an ignored class is a mean over another number than the rest,"
            " which several processes can't share. Train in one process, or leave those out."
        )


def weighs_classes(loss: nn.Module) -> bool:
    """Whether a loss's mean is over anything but the number of instances."""
    weights = getattr(loss, "weight", None)
    return getattr(weights, "weight", None) is not None or getattr(loss, "ignore_index", -1) >= 0


def shared_loss(loss: Tensor, counted: Tensor | None) -> Tensor:
    """The loss of the whole batch from this process's share of it. All processes call it together.

    Its gradient is such that the mean over all processes, which is what distributed training takes, is the
    gradient of the whole batch's loss, whatever the sizes of the shares.

    Args:
        loss: of the share.
        counted: over how much the loss is a mean, see `counted`; None if it is a sum.
    """
    processes = distributed.get_world_size()
    value = loss.detach()
    both = torch.stack([value, torch.ones_like(value)] if counted is None else [value * counted, counted])
    distributed.all_reduce(both)
    whole, count = both
    if counted is None:
        return _with_value(loss * processes, whole)
    return _with_value(loss * (counted * (processes / count)), whole / count)


def _with_value(loss: Tensor, value: Tensor) -> Tensor:
    """The gradient of one, the value of the other."""
    with torch.no_grad():
        shift = torch.where(value.isfinite(), value - loss, value)
    return loss + shift


def counted(loss: nn.Module, input: Tensor, target: Tensor) -> Tensor | None:
    """Over how much a loss of a batch is a mean: instances, or what their classes weigh; None if it is a sum."""
    if getattr(loss, "reduction", "mean") == "sum":
        return None
    counts = loss.counts(input, target) if isinstance(loss, Loss) else None
    return (
        input.new_tensor(float(len(input)), dtype=torch.float32) if counts is None else counts.detach().sum()
    )


def of_all(value: T) -> list[T]:
    """What each process has, by rank. All processes call it together."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values: list[T] = [value] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def agree_on_buffers(net: nn.Module) -> None:
    """Give all processes the buffers of the main one, such as the running statistics of batch norms, which
    are of each process's own shares. All processes call it together."""
    for buffer in net.buffers():
        distributed.broadcast(buffer, 0)
