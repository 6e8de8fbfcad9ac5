"""The calls of a net whose modules are called one after the other, from one run."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from dlblocks.errors import UserError

LINEAR = (nn.Linear,)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS: tuple[type[nn.Module], ...] = (*LINEAR, *CONVOLUTIONS)

# How what a call is given follows from what the one before made: the same tensor, all of an instance in one row, or
# the features moved to the end or back to the second place.
Link: TypeAlias = Literal["same", "flat", "last", "second"]


@dataclass(frozen=True)
class Call:
    """A call of a module that calls no others.

    Args:
        name: dotted.
        module: what was called.
        single: whether it takes one tensor and gives one.
        given, made: what it takes and gives; empty if not single.
        before, after: how often `given` and `made` had been changed in place at the beginning and the end.
    """

    name: str
    module: nn.Module
    single: bool
    given: Tensor
    made: Tensor
    before: int
    after: int

    @property
    def where(self) -> str:
        return f"{self.name} ({type(self.module).__name__})"


def plain(module: nn.Module, kinds: Collection[type[nn.Module]]) -> bool:
    """Whether a module is of one of these classes and computes as that class does."""
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds)


def calls_of_run(net: nn.Module, x: Any) -> tuple[list[Call], Any]:
    """Run a net; its calls in order, and what it gives. Where gradients are recorded, they reach each layer's outputs,
    trainable or not.

    Raises:
        UserError: the net can't be run on x.
    """
    calls: list[Call] = []
    begun: list[tuple[int, Tensor | None, int]] = []
    names = {module: name or type(module).__name__ for name, module in net.named_modules()}

    def begin(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        single = len(given) == 1 and not named and isinstance(given[0], Tensor)
        begun.append((len(calls), given[0] if single else None, given[0]._version if single else 0))

    def end(module: nn.Module, given: tuple[Any, ...], _: dict[str, Any], made: Any) -> None:
        count, first, before = begun.pop()
        if len(calls) > count and not plain(module, LAYERS):
            return
        del calls[count:]  # of a layer that computes its weights by further modules
        if first is None or given[0] is not first or not isinstance(made, Tensor):
            calls.append(Call(names[module], module, False, torch.empty(0), torch.empty(0), 0, 0))
            return
        if torch.is_grad_enabled() and plain(module, LAYERS) and not made.requires_grad:
            made.requires_grad_()
        calls.append(Call(names[module], module, True, first, made, before, made._version))

    hooks = []
    for module in net.modules():
        # First of all hooks, so that what others exchange is seen to be another tensor.
        hooks.append(module.register_forward_pre_hook(begin, prepend=True, with_kwargs=True))
        hooks.append(module.register_forward_hook(end, prepend=True, with_kwargs=True))
    try:
        output = net(x)
    except Exception as error:
        raise UserError(f"{type(net).__name__} can't be run on this input: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return calls, output


def shares(made: Tensor, given: Tensor) -> bool:
    """Whether one tensor is the other, or shows all of its numbers in another shape."""
    return given is made or (given.data_ptr() == made.data_ptr() and given.numel() == made.numel())


def link(made: Tensor, given: Tensor, axis: int) -> Link | None:
    """How the numbers of one tensor are arranged in another that shares them; None if in a way not known here.

    Args:
        made: of the call before.
        given: to the next one.
        axis: of the features in `made`.
    """
    if given is made:
        return "same"
    whole = made.is_contiguous() and given.is_contiguous()
    if whole and made.ndim > 2 and given.shape == (len(made), made[0].numel()):
        return "flat"
    moves: tuple[tuple[Link, int], ...] = (("last", -1), ("second", 1))
    for name, place in moves:
        moved = made.movedim(axis, place)
        if moved.shape == given.shape and moved.stride() == given.stride() != made.stride():
            return name
    return None
