"""Does the loss fit what the net gives, and do the labels fit the loss? Found by following a batch's graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dlblocks.diagnosis.batch import output_of
from dlblocks.diagnosis.report import Finding
from dlblocks.diagnosis.signal import LossFunction
from dlblocks.probing import probed

# Names of autograd's nodes: what squashes an output, and what only changes its shape or type.
_SQUASHING = {
    "SigmoidBackward0": "sigmoid",
    "SoftmaxBackward0": "softmax",
    "LogSoftmaxBackward0": "log_softmax",
}
_SHAPING = (
    "View",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Permute",
    "Alias",
    "ToCopy",
    "Clone",
    "Slice",
    "Select",
    "T",
)
# What losses on logits are made of, and losses on probabilities.
_OF_LOGITS = {
    "LogSoftmaxBackward0": "softmax",
    "SoftmaxBackward0": "softmax",
    "BinaryCrossEntropyWithLogitsBackward0": "sigmoid",
    "LogSigmoidBackward0": "sigmoid",
    "SigmoidBackward0": "sigmoid",
}
_OF_DIFFERENCES = ("MseLoss", "SmoothL1Loss", "HuberLoss", "Sub", "Abs", "Expand")


def findings(net: nn.Module, x: Any, y: Tensor, loss: LossFunction) -> Iterator[Finding]:
    """What does not fit, for a batch of inputs and targets.

    Found: an output that is squashed before a loss that squashes it again (double sigmoid or softmax); negative
    log-likelihood of what is no log-probability; a squared or absolute error of shapes that broadcast; labels
    outside the classes. Functions called in the code are seen as well as modules, since it is the graph of the
    computation that is followed.
    """
    with probed(net, training=True, gradients=True):
        output = output_of(net, x)
        last = _squashed(output)
        if wrong := _labels(output, y):
            yield wrong
            return
        free = output.detach().requires_grad_()
        value = loss(free, y)
        kinds = _kinds(value)
    again = {_OF_LOGITS[kind] for kind in kinds if kind in _OF_LOGITS}
    if last in ("sigmoid", "softmax") and again:
        yield Finding(
            "loss",
            f"the net ends in a {last}, and the loss applies a {' and a '.join(sorted(again))} once more: a double"
            f" {last} trains badly without any message. Let the net end before its {last}.",
        )
    likelihood = any(kind.startswith("NllLoss") for kind in kinds)
    normalised = "LogSoftmaxBackward0" in kinds or last == "log_softmax"
    if likelihood and not normalised and (last == "softmax" or float(output.detach().max()) > 0):
        yield Finding(
            "loss",
            "takes log-probabilities, which the net does not give. Use cross-entropy, which takes logits.",
        )
    if output.shape != y.shape and _broadcasts(kinds, output, y):
        yield Finding(
            "loss",
            f"compares outputs {tuple(output.shape)} with targets {tuple(y.shape)} by spreading one over the other: each"
            " output meets each target. Give both the same shape.",
        )


def _squashed(output: Tensor) -> str | None:
    """What the output was squashed by, seen through changes of shape."""
    node = output.grad_fn
    while node is not None and node.name().startswith(_SHAPING):
        node = node.next_functions[0][0] if node.next_functions else None
    return None if node is None else _SQUASHING.get(node.name())


def _labels(output: Tensor, y: Tensor) -> Finding | None:
    if (
        y.is_floating_point()
        or output.ndim < 2
        or output.shape[1] < 2
        or y.dtype == torch.bool
        or not y.numel()
    ):
        return None
    low, high, classes = int(y.min()), int(y.max()), output.shape[1]
    if y.shape == output.shape or low >= 0 > high - classes:
        return None
    if y.ndim != output.ndim - 1:
        return None
    return Finding(
        "data",
        f"labels go from {low} to {high}, but the net tells {classes} classes apart: 0 to {classes - 1}.",
    )


def _kinds(value: Tensor) -> set[str]:
    """The names of all nodes of a graph."""
    found: set[str] = set()
    seen: set[Any] = set()
    todo = [value.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found.add(node.name())
        todo.extend(other for other, _ in node.next_functions)
    return found


def _broadcasts(kinds: set[str], output: Tensor, y: Tensor) -> bool:
    """Whether a loss of differences spreads one shape over the other."""
    if not any(kind.startswith(_OF_DIFFERENCES) for kind in kinds) or kinds & set(_OF_LOGITS):
        return False
    try:
        whole: int = (output.detach() != y).numel()
    except RuntimeError:
        return False
    return whole > max(output.numel(), y.numel())
