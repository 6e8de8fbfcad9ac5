"""What the graph of a computation shows of the end of a net and of a loss, whether modules or functions made it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor

# Autograd's nodes, without the `Backward0` of their names. What squashes an output:
_SQUASHING = {
    "Sigmoid": "sigmoid",
    "Hardsigmoid": "sigmoid",
    "LogSigmoid": "sigmoid",
    "Softmax": "softmax",
    "LogSoftmax": "softmax",
}
_LOGARITHMS = frozenset({"Log", "LogSigmoid", "LogSoftmax"})
# What only changes its shape or type, or guards it against 0 and 1.
SHAPING = frozenset(
    {"Alias", "Clone", "Expand", "Index", "IndexSelect", "Permute", "Reshape", "ReshapeAlias", "Select"}
    | {"Slice", "Split", "Squeeze", "T", "ToCopy", "Transpose", "Unsqueeze", "UnsafeView", "View"}
)
_GUARDING = frozenset(
    {"Add", "Clamp", "ClampMax", "ClampMin", "Maximum", "Minimum", "NanToNum", "Rsub", "Sub", "Where"}
)
# What losses on logits are made of. In between may be a scale or a mask; but of a difference, as from a target,
# softplus is a regression's log-cosh.
_OF_LOGITS = {
    **_SQUASHING,
    "BinaryCrossEntropyWithLogits": "sigmoid",
    "Logsumexp": "softmax",
    "SoftMarginLoss": "sigmoid",
    "Softplus": "sigmoid",
}
_SCALING = frozenset({"Cat", "ConstantPadNd", "Div", "MaskedFill", "Mul", "Neg"})
_DIFFERENCES = frozenset({"Add", "Sub", "Rsub"})
# How far probabilities may be off after a guard against 0 and 1; and the logarithm of their sum.
_GUARD, _UNNORMALISED = 0.01, 0.1


@dataclass(frozen=True)
class End:
    """What lies between the last weights and the end of a net.

    Args:
        squashed: by what the output is squashed, `sigmoid` or `softmax`; empty if not, or not any more.
        twice: the squashing whose result is squashed again, and the one that does; empty if none.
        logarithm: whether the output is a logarithm of what is squashed.
    """

    squashed: str
    twice: tuple[str, ...]
    logarithm: bool


def kind_of(node: Any) -> str:
    """`SigmoidBackward0` -> `Sigmoid`."""
    name: str = node.name()
    return name.partition("Backward")[0]


def made_of(node: Any) -> list[Any]:
    """The nodes whose results a node took."""
    return [other for other, _ in node.next_functions if other is not None]


def nodes_of(value: Tensor) -> list[Any]:
    """All nodes of a graph."""
    found: dict[Any, None] = {}
    todo = [value.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in found:
            found[node] = None
            todo.extend(made_of(node))
    return list(found)


def end_of(output: Tensor) -> End:
    """Follow an output back through changes of shape and guards, to what joins weights or two paths."""
    node: Any = output.grad_fn
    path: list[tuple[str, int]] = []  # each squashing, and how often the logarithm of its result was taken
    logarithms = 0
    while node is not None:
        kind = kind_of(node)
        if kind not in _SQUASHING and kind not in SHAPING | _GUARDING | {"Log", "Exp"}:
            break
        logarithms += (kind in _LOGARITHMS) - (kind == "Exp")
        if kind in _SQUASHING:
            path.append((_SQUASHING[kind], logarithms))
            logarithms = 0
        before = made_of(node)
        node = before[0] if len(before) == 1 else None
    values = output.detach()
    if not path and _distributed(values):  # a softmax written out
        path.append(("softmax", 0))
    if not path:
        return End("", (), False)
    last, logarithms = path[0]
    bounded = bool(((values >= -_GUARD) & (values <= 1 + _GUARD)).all())
    twice = next(((inner, outer) for (outer, _), (inner, logs) in pairwise(path) if logs <= 0), ())
    return End(last if logarithms == 0 and bounded else "", twice, logarithms > 0)


def _distributed(values: Tensor) -> bool:
    """Whether each instance's numbers are the probabilities of classes."""
    if values.ndim < 2 or values.shape[1] < 2:
        return False
    return bool((values >= 0).all() and ((values.float().sum(1) - 1).abs() < 1e-3).all())


def unnormalised(logarithms: Tensor) -> bool:
    """Whether logarithms `(N, C, *)` are not those of probabilities."""
    return float(logarithms.detach().float().logsumexp(1).abs().mean()) > _UNNORMALISED


def squashes(node: Any, output: Tensor) -> str:
    """By what a node of a loss squashes the output itself; not a product or a difference that it made of it."""
    squashing = _OF_LOGITS.get(kind_of(node), "")
    passing = SHAPING | _GUARDING | _SCALING
    if squashing == "sigmoid":
        passing -= _DIFFERENCES
    return squashing if squashing and reaches(node, output, passing) else ""


def reaches(node: Any, output: Tensor, passing: frozenset[str]) -> bool:
    """Whether a node takes an output, with nothing but these in between."""
    todo = made_of(node)
    while todo:
        other = todo.pop()
        if getattr(other, "variable", None) is output:
            return True
        if kind_of(other) in passing:
            todo.extend(made_of(other))
    return False


def spreads(nodes: Sequence[Any], output: Tensor, y: Tensor) -> bool:
    """Whether a loss spreads output and target over each other."""
    try:
        whole = torch.broadcast_shapes(output.shape, y.shape)  # type: ignore[no-untyped-call]
    except RuntimeError:
        return False
    if prod(whole) <= max(output.numel(), y.numel()):
        return False
    # A node that gives the whole from something smaller; from two of different shapes, it is pairs that are compared.
    for node in nodes:
        shapes = {_shape(other) for other in made_of(node)}
        if _shape(node) == whole and len(shapes) == 1 and prod(*shapes) < prod(whole):
            return True
    return False


def _shape(node: Any) -> tuple[int, ...]:
    """Of what a node gave."""
    return tuple(node._input_metadata[0].shape)
