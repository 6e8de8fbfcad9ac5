"""The attributes of objects, which afterwards are what they were."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

# What containers, tensors and arrays hold is kept up to so many elements of one, and of all together: counters and orders,
# but not data.
_MOST, _MOST_OF_ALL = 2**20, 2**25

PutBack = Callable[[], None]


class Keeper:
    """Keeps attributes: each is put back, new ones are removed, and lists, dictionaries, sets, deques, tensors and arrays
    that are not too large hold again what they held. What is in them, or in other objects, is not kept."""

    def __init__(self) -> None:
        self._room = _MOST_OF_ALL

    def keep(self, owner: Any) -> PutBack:
        """Keep the attributes of an object that has a `__dict__`. Returns what puts them back."""
        attributes = vars(owner)
        before = dict(attributes)
        contents = [put for value in before.values() if (put := self._contents(value)) is not None]

        def put_back() -> None:
            for name in attributes.keys() - before.keys():
                del attributes[name]
            attributes.update(before)
            for put in contents:
                put()

        return put_back

    def _contents(self, value: Any) -> PutBack | None:
        count = _count(value)
        if not 0 <= count <= min(_MOST, self._room):
            return None
        self._room -= count
        if isinstance(value, Tensor):
            return keep_values(value)
        if isinstance(value, np.ndarray):
            array = value.copy()
            return lambda: value.__setitem__(..., array)
        if isinstance(value, list):
            items = list(value)
            return lambda: value.__setitem__(slice(None), items)
        kept, add = value.copy(), value.extend if isinstance(value, deque) else value.update

        def put_back() -> None:
            value.clear()
            add(kept)

        return put_back


def _count(value: Any) -> int:
    """The elements of what can be kept; -1 for anything else."""
    if isinstance(value, Tensor):
        return value.numel() if has_values(value) else -1
    if isinstance(value, np.ndarray):
        return value.size if value.flags.writeable else -1
    return len(value) if isinstance(value, (list, dict, set, deque)) else -1


def has_values(tensor: Tensor) -> bool:
    """Whether there are numbers that can be copied."""
    return not is_lazy(tensor) and tensor.layout == torch.strided and not tensor.is_meta


def keep_values(tensor: Tensor, device: str | None = None) -> PutBack:
    """Keep the values of a tensor in a copy, on another device if one is named. Returns what puts them back, unless they
    are still the same."""
    kept = tensor.detach().to(device or tensor.device, copy=True)

    def put_back() -> None:
        if tensor.shape != kept.shape or tensor.dtype != kept.dtype:
            tensor.data = kept.to(tensor.device)
        elif not torch.equal(tensor.detach().to(kept.device), kept):
            tensor.detach().copy_(kept)

    return put_back


@contextmanager
def same_attributes(*owners: Any) -> Iterator[None]:
    """Afterwards, also after an exception, the attributes of some objects are what they were."""
    keeper = Keeper()
    with ExitStack() as stack:
        for owner in owners:
            stack.callback(keeper.keep(owner))
        yield
