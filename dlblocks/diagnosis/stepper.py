"""The optimizer that a net is diagnosed with, however it is given."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dlblocks.registry import REGISTRY, Spec, name_of


def descends(optimizer: Spec) -> bool:
    """Whether its steps are in proportion to the gradient, as those of SGD."""
    if isinstance(optimizer, (str, Mapping)):
        return bool(_tag(optimizer, "gradient_degree") == 1)
    kind = _class_of(optimizer)
    return isinstance(kind, type) and issubclass(kind, (torch.optim.SGD, torch.optim.ASGD))


def second_order(optimizer: Spec) -> bool:
    """Whether it wants a graph of the gradients."""
    return isinstance(optimizer, (str, Mapping)) and bool(_tag(optimizer, "second_order"))


def rate_of(optimizer: Spec) -> float | None:
    """The learning rate it has been given; None if it has none, or its default."""
    rate: Any = None
    if isinstance(optimizer, Optimizer):
        rate = optimizer.param_groups[0].get("lr")
    elif isinstance(optimizer, partial):
        rate = optimizer.keywords.get("lr")
    elif isinstance(optimizer, Mapping):
        base = optimizer.get("base")
        rate = optimizer.get("lr")
        rate = base.get("lr") if rate is None and isinstance(base, Mapping) else rate
    return None if rate is None or isinstance(rate, str) else float(rate)


def without_rate(optimizer: Spec) -> Spec:
    """An optimizer, given by name, whose rate is still to be found."""
    if not isinstance(optimizer, Mapping):
        return optimizer
    kept = {key: value for key, value in optimizer.items() if key != "lr"}
    return kept | ({"base": without_rate(kept["base"])} if "base" in kept else {})


def takes_rate(optimizer: Spec) -> bool:
    """Whether it has a learning rate at all."""
    if isinstance(optimizer, (str, Mapping)):
        block = REGISTRY.get("optimizer", name_of(optimizer), "optimizer")
        return any(param.name == "lr" for param in block.params)
    return isinstance(optimizer, Optimizer) or "lr" in inspect.signature(optimizer).parameters


def twin(optimizer: Optimizer, net: nn.Module, made: nn.Module, lr: float | None) -> Optimizer:
    """A copy of a ready optimizer that trains a copy of its net.

    Args:
        optimizer: of `net`; its state is copied, too.
        net, made: the net and its copy.
        lr: of the first parameter group; those of the others keep their ratio to it.
    """
    pairs = zip(net.parameters(), made.parameters(), strict=True)
    memo: dict[int, Any] = {id(old): new for old, new in pairs}
    # A scheduler has put its own `step` there, which steps the optimizer it was made for.
    own = {name: value for name, value in vars(optimizer).items() if name != "step"}
    copied = object.__new__(type(optimizer))
    vars(copied).update(copy.deepcopy(own, memo))
    first = copied.param_groups[0].get("lr")
    if lr is not None and first:
        for group in copied.param_groups:
            group["lr"] = group["lr"] * lr / first
    return copied


def _class_of(optimizer: Any) -> Any:
    if isinstance(optimizer, Optimizer):
        return type(optimizer)
    return optimizer.func if isinstance(optimizer, partial) else optimizer


def _tag(optimizer: Spec, name: str) -> Any:
    return REGISTRY.get("optimizer", name_of(optimizer), "optimizer").tags.get(name)
