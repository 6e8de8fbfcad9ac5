"""What a loss takes for targets, and what is wrong with those it got, in words."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dlblocks.diagnosis.graph import End, kind_of
from dlblocks.diagnosis.report import Finding
from dlblocks.diagnosis.signal import LossFunction
from dlblocks.errors import UserError, first_line
from dlblocks.losses.combined import Sum
from dlblocks.losses.terms import contract
from dlblocks.module import LitModule
from dlblocks.records import Block
from dlblocks.registry import REGISTRY

_BINARY = frozenset({"BinaryCrossEntropy", "BinaryCrossEntropyWithLogits"})
_OF_VALUES = frozenset({"HuberLoss", "MseLoss", "SmoothL1Loss"})

# What torch's losses take for targets, in the words of our own losses' tag `target`.
_TARGETS = {
    "binary_cross_entropy": "indicators",
    "binary_cross_entropy_with_logits": "indicators",
    "cross_entropy": "indices",
    "huber_loss": "values",
    "kl_div": "distribution",
    "l1_loss": "values",
    "mse_loss": "values",
    "multi_margin_loss": "indices",
    "multilabel_soft_margin_loss": "indicators",
    "nll_loss": "indices",
    "poisson_nll_loss": "values",
    "smooth_l1_loss": "values",
    "soft_margin_loss": "signs",
}
# Losses of -1 and 1 in which a 0 has a gradient, though a senseless one.
_OF_SIGNS = ("hinge_embedding_loss", "HingeEmbeddingLoss", "hinge_embedding")
# Characters of somebody else's message.
_BRIEF = 160


@dataclass(frozen=True)
class Contract:
    """What a loss says of itself.

    Args:
        name: of its entry, its function or its class.
        expects, target: the tags of its entry; empty if it has none. Of torch's, the target is known by name.
        converts: whether targets are put into the loss's format before it sees them.
    """

    name: str
    expects: str = ""
    target: str = ""
    converts: bool = False


def contract_of(loss: LossFunction) -> Contract:
    owner = getattr(loss, "__self__", None)
    converts = isinstance(owner, LitModule)
    module = owner.loss if isinstance(owner, LitModule) else loss
    block = _entry(module)
    if block is None:
        function = loss.func if isinstance(loss, partial) else module
        name = getattr(function, "__name__", type(function).__name__)
        return Contract(
            "the loss" if name == "<lambda>" else name, "", _TARGETS.get(name, ""), converts=converts
        )
    known = {key: getattr(module, key) for key in block.tags.get("expects_by", {})}
    tags = contract({"name": block.name, **known})
    expects, target = tags.get("expects") or "", tags.get("target") or ""
    if converts and expects in ("probabilities", "log_probabilities"):
        expects = "logits"  # of which the module makes them
    return Contract(block.name, expects, target, converts)


def _entry(loss: Any) -> Block | None:
    """The registry's entry of a loss; of a sum, that of a term, since all take the same."""
    if isinstance(loss, Sum):
        loss = next(iter(loss.terms.values()))
    cls = type(loss)
    place = f"{cls.__module__}:{cls.__qualname__}"
    blocks = (REGISTRY.get("loss", name) for name in REGISTRY.names("loss"))
    return next((block for block in blocks if block.target in (cls, place)), None)


def ignored_by(loss: LossFunction) -> int:
    """The label that does not count; torch's own default where the loss does not say."""
    if isinstance(loss, partial):
        return int(loss.keywords.get("ignore_index", -100))
    owner = getattr(loss, "__self__", None)
    return int(getattr(owner.loss if isinstance(owner, LitModule) else loss, "ignore_index", -100))


def beyond_classes(output: Tensor, y: Tensor, ignored: int) -> Finding | None:
    """Class numbers beyond the classes that the net tells apart."""
    if y.is_floating_point() or y.dtype == torch.bool or output.ndim < 2 or output.shape[1] < 2:
        return None
    counted = y[y != ignored]
    if y.shape != _numbers(output) or not counted.numel():
        return None
    low, high, classes = int(counted.min()), int(counted.max()), output.shape[1]
    if low >= 0 > high - classes:
        return None
    return Finding(
        "data",
        f"labels go from {low} to {high}, but the net tells {classes} classes apart: 0 to {classes - 1}.",
    )


def _numbers(output: Tensor) -> tuple[int, ...]:
    """The shape of the class numbers of outputs `(N, C, *)`."""
    return (output.shape[0], *output.shape[2:])


def refusal(
    known: Contract,
    output: Tensor,
    y: Tensor,
    outside: Finding | None,
    nodes: Sequence[Any],
    error: Exception,
) -> Finding:
    """Why a loss raised, in words: what it takes where that is known, else what it said."""
    if isinstance(error, UserError):
        return Finding("loss", str(error))
    name, target = known.name, known.target
    if not target:
        # The function of torch that refused, whatever called it.
        for frame in traceback.extract_tb(error.__traceback__):
            if frame.filename == nn.functional.__file__ and frame.name in _TARGETS:
                name, target = frame.name, _TARGETS[frame.name]
    if not target and any(kind_of(node) in _OF_VALUES for node in nodes):
        target = "values"
    cure = ""
    if not known.converts and known.expects != "mean_log_variance":
        if target == "indices":
            cure = _cure_of_indices(name, output, y)
        elif target in ("indicators", "signs", "values", "distribution"):
            cure = _cure_of_values(name, target, output, y)
    if cure:
        return Finding("data", cure)
    if outside and target in ("indices", ""):
        return outside
    said = first_line(error)
    return Finding("loss", f"{name} can't compare {_described(output, y)}: {said[:_BRIEF].rstrip('.')}.")


def _described(output: Tensor, y: Tensor) -> str:
    return f"outputs {tuple(output.shape)} of {_type(output)} with targets {tuple(y.shape)} of {_type(y)}"


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _cure_of_indices(name: str, output: Tensor, y: Tensor) -> str:
    """What is wrong with the targets of a loss of class numbers; nothing if they have their format."""
    if output.ndim < 2 or output.shape[1] < 2:
        return (
            f"{name} chooses among classes, and the net gives one number for each instance: {_described(output, y)}."
            " For labels 0 and 1 use"
            " binary_cross_entropy_with_logits, for values mse_loss, both with y.float() in the outputs' shape; for"
            " classes give the net one output each."
        )
    numbers = _numbers(output)
    takes = f"{name} takes class numbers {numbers} of int64, not targets {tuple(y.shape)} of {_type(y)}"
    if y.shape == output.shape:
        if y.is_floating_point():
            return ""
        if bool((y.sum(1) == 1).all()):
            return f"{takes}: give y.argmax(1) of these one-hot ones."
        return f"{takes}: for several labels at once use binary_cross_entropy_with_logits with y.float()."
    if y.shape == (numbers[0], 1, *numbers[1:]):
        return f"{takes}: give y.squeeze(1){'' if y.dtype == torch.int64 else '.long()'}."
    if y.shape == output.shape[:-1] and y.shape != numbers:
        return (
            f"{name} takes classes in the second dimension of the outputs, which are {tuple(output.shape)} for targets"
            f" {tuple(y.shape)}: give output.movedim(-1, 1)."
        )
    if y.shape != numbers:
        return f"{takes}."
    if y.is_floating_point() and bool((y != y.round()).any()):
        return f"{takes}: for values use mse_loss and a net with one output."
    return f"{takes}: give y.long()." if y.dtype not in (torch.int64, torch.uint8) else ""


def _cure_of_values(name: str, target: str, output: Tensor, y: Tensor) -> str:
    """What is wrong with targets that should be as the outputs are; nothing if they are."""
    wanted = f"{tuple(output.shape)} of {_type(output)}"
    takes = f"{name} takes targets {wanted}, as the outputs are, not {tuple(y.shape)} of {_type(y)}"
    cast = ".float()" if output.dtype == torch.float32 else f".to({output.dtype})"
    cast = "" if y.dtype == output.dtype else cast
    if y.shape != output.shape:
        if y.numel() == output.numel():
            return f"{takes}: give y.reshape({', '.join(map(str, output.shape))}){cast}."
        if output.ndim >= 2 and y.shape == _numbers(output) and not y.is_floating_point():
            return f"{takes}: for class numbers use cross_entropy."
        return f"{takes}."
    if cast:
        return f"{takes}: give y{cast}."
    if name == "binary_cross_entropy" and not bool(((output >= 0) & (output <= 1)).all()):
        return (
            f"{name} takes probabilities, and the net gives {float(output.min()):.3g} to {float(output.max()):.3g}: use"
            " binary_cross_entropy_with_logits, or let the net end in a sigmoid."
        )
    return _other_than_indicators(name, y) if target == "indicators" and _beyond(y) else ""


def _beyond(target: Tensor) -> bool:
    """Whether targets are not all from 0 to 1."""
    return bool(((target < 0) | (target > 1)).any())


def _other_than_indicators(name: str, y: Tensor) -> str:
    low, high = float(y.min()), float(y.max())
    if low < high and bool(((y == low) | (y == high)).all()):
        return f"labels are {low:g} and {high:g}, but {name} takes 0 and 1: give (y == {high:g}).float()."
    told = f"labels go from {low:g} to {high:g}, but {name} takes 0 and 1"
    if low >= 0 and bool((y == y.round()).all()):
        return f"{told}: for classes use cross_entropy and a net with one output for each."
    return f"{told}, or what lies between: for values use mse_loss."


def mislabelled(
    loss: LossFunction,
    known: Contract,
    output: Tensor,
    y: Tensor,
    value: Tensor,
    slope: Tensor,
    nodes: Sequence[Any],
    end: End,
) -> Finding | None:
    """Labels of another format than the loss takes without a word."""
    binary = known.target == "indicators" or (known.target == "masks" and y.shape == output.shape)
    # Labels at which the loss has no slope are masked.
    counted = y[slope.reshape(y.shape) != 0] if y.numel() == slope.numel() else y
    # What reached torch's function counts, not what the loss was given and may have converted.
    mistaken = any(_beyond(node._saved_target) for node in nodes if kind_of(node) in _BINARY)
    if _beyond(counted) and (mistaken or (binary and _misread(loss, output, y, value))):
        return Finding(
            "data", _other_than_indicators(known.name if binary else "binary cross-entropy", counted)
        )
    signs = [node._saved_target for node in nodes if kind_of(node) == "SoftMarginLoss"]
    unsigned = any(bool((target.abs() != 1).any()) for target in signs) or known.name in _OF_SIGNS
    if unsigned and y.min() == 0:
        told = "are 0 and 1" if y.max() <= 1 else f"go from 0 to {float(y.max()):g}"
        cure = ": give 2 * y - 1." if y.max() <= 1 else "."
        return Finding("data", f"labels {told}, but the loss takes -1 and 1{cure}")
    if not end.logarithm and _zeros_are_silent(loss, output, y, slope, bool(end.squashed)):
        return Finding(
            "data",
            "labels are 0 and 1, but whatever the net gives for label 0 makes no difference to the loss, which seems to"
            " take -1 and 1: give 2 * y - 1.",
        )
    return None


def _misread(loss: LossFunction, output: Tensor, y: Tensor, value: Tensor) -> bool:
    """Whether labels beyond 0 and 1 are misread: above 1, or below 0 by a loss that does not take -1 for 0."""
    return bool(y.max() > 1) or bool(loss(output, y.clamp(min=0)) != value)


def _zeros_are_silent(loss: LossFunction, output: Tensor, y: Tensor, slope: Tensor, squashed: bool) -> bool:
    """Whether of labels 0 and 1 only the ones pull at the output, here and on the other side of zero.

    So it is where a margin `y x` is computed of them.
    """
    if y.numel() != output.numel() or not bool(((y == 0) | (y == 1)).all()):
        return False
    zeros = (y == 0).reshape(output.shape)
    one_hot = output.ndim > 1 and output.shape[1] > 1 and bool(((~zeros).sum(1) == 1).all())
    if one_hot or not bool(zeros.any()) or bool(slope[zeros].any()) or not bool(slope[~zeros].any()):
        return False
    point = output.detach()
    turned = (1 - point if squashed else -point).requires_grad_()
    (other,) = torch.autograd.grad(loss(turned, y), turned)
    return not bool(other[zeros].any())
