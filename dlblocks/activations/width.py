"""How many features an activation takes for each one it gives."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from dlblocks.records import Block
from dlblocks.registry import REGISTRY, Spec, parse


def width_ratio(activation: Spec) -> Fraction:
    """Features in for each feature out: 1 for elementwise activations, `pieces` for maxout, 2 for GLU.

    Layers ask for it when they size the linear or convolution before the activation.

    Args:
        activation: a name, a `{name: ..., params}` mapping, or a module. A module of a class that is
            not in the registry may state its ratio in an attribute `width_ratio`.

    >>> width_ratio({"name": "maxout", "pieces": 3})
    Fraction(3, 1)
    """
    if isinstance(activation, (str, Mapping)):
        block, params = parse("activation", activation)
        return _ratio(block, block.defaults() | params)
    if hasattr(activation, "width_ratio"):
        return Fraction(activation.width_ratio)
    for name in REGISTRY.names("activation"):
        block = REGISTRY.get("activation", name)
        if "width_ratio" in block.tags and block.load() is type(activation):
            return _ratio(block, vars(activation))
    return Fraction(1)


def _ratio(block: Block, params: Any) -> Fraction:
    ratio = block.tags.get("width_ratio", 1)
    return Fraction(params[ratio] if isinstance(ratio, str) else ratio)


def widened(features: int, ratio: Fraction) -> int:
    """The size of the layer before an activation that is to give `features`.

    Raises:
        ValueError: the ratio does not divide, as for 3 features of an activation that gives 2 for 1.
    """
    size = features * ratio
    if size.denominator != 1:
        raise ValueError(f"{features} features can't come from an activation with width ratio {ratio}")
    return int(size)
