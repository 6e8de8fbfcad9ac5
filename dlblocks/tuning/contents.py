"""What is in a batch, of whatever kind its objects are."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

_PLAIN = (str, bytes, int, float, complex, type(None))


def fresh(batch: Any) -> Any:
    """A batch for one use, since a net may work in place, and take things out of what it is given."""
    return tree_map(partial(_fresh, {}), batch)


def _fresh(memo: dict[int, Any], leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.clone()
    if isinstance(leaf, _PLAIN):
        return leaf
    try:
        return copy.deepcopy(leaf, memo)
    except Exception:  # such as one with a lock: the batch itself is used again
        return leaf


def tensors(batch: Any) -> Iterator[Tensor]:
    """All tensors of a batch, in order, also those in attributes of its objects."""
    waiting, seen = deque(tree_leaves(batch)), set[int]()
    while waiting:
        one = waiting.popleft()
        if isinstance(one, Tensor):
            yield one
        elif not isinstance(one, _PLAIN) and id(one) not in seen:
            seen.add(id(one))
            waiting.extendleft(reversed([leaf for part in _parts(one) for leaf in tree_leaves(part)]))


def _parts(one: Any) -> Iterable[Any]:
    if isinstance(one, Mapping):
        return one.values()
    if isinstance(one, (list, tuple)):
        return one
    slots = (
        getattr(one, name, None) for kind in type(one).__mro__ for name in getattr(kind, "__slots__", ())
    )
    return [*getattr(one, "__dict__", {}).values(), *slots]
