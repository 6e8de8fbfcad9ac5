"""Does the loss fit what the net gives, and do the labels fit the loss? Found by following a batch's graph."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from dlblocks.diagnosis.batch import output_of
from dlblocks.diagnosis.report import Finding
from dlblocks.diagnosis.signal import LossFunction
from dlblocks.errors import UserError
from dlblocks.losses.combined import Sum
from dlblocks.losses.terms import contract
from dlblocks.module import LitModule
from dlblocks.probing import probed
from dlblocks.records import Block
from dlblocks.registry import REGISTRY

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
_SHAPING = frozenset(
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
# How far probabilities may be off after a guard against 0 and 1; and the logarithm of their sum.
_GUARD, _UNNORMALISED = 0.01, 0.1
# Characters of somebody else's message.
_BRIEF = 160


def findings(net: nn.Module, x: Any, y: Tensor, loss: LossFunction) -> Iterator[Finding]:
    """What does not fit, for a batch of inputs and targets.

    Found: an output that is squashed twice (double sigmoid or softmax), both times by the net, or by the net and
    again by the loss; negative log-likelihood of what is no log-probability; a squared or absolute error of shapes
    that broadcast; labels outside the classes, other than 0 and 1 for a binary loss, or than -1 and 1 for a margin;
    targets of a shape or type that the loss refuses. Functions called in the code are seen as well as modules, since
    it is the graph of the computation that is followed, from the last weights to the loss. Our own losses say what
    they take.

    Args:
        net: any module that gives a tensor (or has `.logits` in what it gives).
        x: a batch of inputs.
        y: its targets.
        loss: `loss(output, y)`, a number. What it raises is told as a finding.

    Raises:
        UserError: the net gives no tensor.
    """
    with probed(net, training=True, gradients=True):
        output = output_of(net, x)
        found = list(_found(output, y, loss)) if y.numel() else []
    yield from found


@dataclass(frozen=True)
class _End:
    """What lies between the last weights and the end of a net.

    Args:
        squashed: by what the output is squashed, `sigmoid` or `softmax`; empty if not, or not any more.
        twice: the squashing whose result is squashed again, and the one that does; empty if none.
        logarithm: whether the output is a logarithm of what is squashed.
    """

    squashed: str
    twice: tuple[str, ...]
    logarithm: bool


@dataclass(frozen=True)
class _Contract:
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


def _found(output: Tensor, y: Tensor, loss: LossFunction) -> Iterator[Finding]:
    end = _end(output)
    if end.twice:
        first, second = end.twice
        yield Finding(
            "model",
            f"the net ends in a {second} of what a {first} has squashed already: a double {first} trains badly without"
            " any message. Leave one of them out.",
        )
    outside = _outside(output, y, _ignored(loss))
    if outside and output.device.type != "cpu":
        # There a wrong label ends all work on the device; here the loss itself is asked, which may know better.
        yield outside
        return
    known = _contract(loss)
    free = output.detach().requires_grad_()
    nodes: list[Any] = []
    try:
        value = loss(free, y)
        if lacking := _lacking(value):
            yield lacking
            return
        nodes = _nodes(value)
        (slope,) = torch.autograd.grad(value, free, retain_graph=True)
    except Exception as error:  # a loss may raise anything; the user is to read what does not fit
        yield _refusal(known, output.detach(), y, outside, nodes, error)
        return
    again = sorted({kind for node in nodes if (kind := _squashes(node, free))})
    if end.squashed and (known.expects == "logits" if known.expects else again):
        how = (
            f"the loss applies a {' and a '.join(again)} once more: a double {end.squashed} trains badly without any"
            " message"
            if again
            else f"{known.name} takes logits: of what is squashed already it learns badly without any message"
        )
        yield Finding(
            "loss",
            f"the net ends in a {end.squashed}, and {how}. Let the net end before its {end.squashed}.",
        )
    # Some losses weigh log-probabilities before they give them on; what counts is that of the net.
    likelihoods = [node for node in nodes if _kind(node) in ("NllLoss", "NllLoss2D")]
    given = [node._saved_self for node in likelihoods if _reaches(node, free, _SHAPING)]
    if any(map(_unnormalised, given)) or (known.expects == "log_probabilities" and end.squashed):
        before = f" Let the net end before its {end.squashed}." if end.squashed else ""
        yield Finding(
            "loss",
            "takes log-probabilities, which the net does not give. Use cross-entropy, which takes logits."
            + before,
        )
    if _spreads(nodes, output, y):
        yield Finding(
            "loss",
            f"compares outputs {tuple(output.shape)} with targets {tuple(y.shape)} by spreading one over the other: each"
            " output meets each target. Give both the same shape.",
        )
    if wrong := _labels(loss, known, free, y, value, slope, nodes, end):
        yield wrong


def _kind(node: Any) -> str:
    """`SigmoidBackward0` -> `Sigmoid`."""
    name: str = node.name()
    return name.partition("Backward")[0]


def _before(node: Any) -> list[Any]:
    """The nodes whose results a node took."""
    return [other for other, _ in node.next_functions if other is not None]


def _nodes(value: Tensor) -> list[Any]:
    """All nodes of a graph."""
    found: dict[Any, None] = {}
    todo = [value.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in found:
            found[node] = None
            todo.extend(_before(node))
    return list(found)


def _end(output: Tensor) -> _End:
    """Follow an output back through changes of shape and guards, to what joins weights or two paths."""
    node: Any = output.grad_fn
    path: list[tuple[str, int]] = []  # each squashing, and how often the logarithm of its result was taken
    logarithms = 0
    while node is not None:
        kind = _kind(node)
        if kind not in _SQUASHING and kind not in _SHAPING | _GUARDING | {"Log", "Exp"}:
            break
        logarithms += (kind in _LOGARITHMS) - (kind == "Exp")
        if kind in _SQUASHING:
            path.append((_SQUASHING[kind], logarithms))
            logarithms = 0
        before = _before(node)
        node = before[0] if len(before) == 1 else None
    values = output.detach()
    if not path and _distributed(values):  # a softmax written out
        path.append(("softmax", 0))
    if not path:
        return _End("", (), False)
    last, logarithms = path[0]
    bounded = bool(((values >= -_GUARD) & (values <= 1 + _GUARD)).all())
    twice = next(((inner, outer) for (outer, _), (inner, logs) in pairwise(path) if logs <= 0), ())
    return _End(last if logarithms == 0 and bounded else "", twice, logarithms > 0)


def _distributed(values: Tensor) -> bool:
    """Whether each instance's numbers are the probabilities of classes."""
    if values.ndim < 2 or values.shape[1] < 2:
        return False
    return bool((values >= 0).all() and ((values.float().sum(1) - 1).abs() < 1e-3).all())


def _unnormalised(logarithms: Tensor) -> bool:
    """Whether logarithms `(N, C, *)` are not those of probabilities."""
    return float(logarithms.detach().float().logsumexp(1).abs().mean()) > _UNNORMALISED


def _squashes(node: Any, output: Tensor) -> str:
    """By what a node of a loss squashes the output itself; not a product or a difference that it made of it."""
    squashing = _OF_LOGITS.get(_kind(node), "")
    passing = _SHAPING | _GUARDING | _SCALING
    if squashing == "sigmoid":
        passing -= _DIFFERENCES
    return squashing if squashing and _reaches(node, output, passing) else ""


def _reaches(node: Any, output: Tensor, passing: frozenset[str]) -> bool:
    """Whether a node takes an output, with nothing but these in between."""
    todo = _before(node)
    while todo:
        other = todo.pop()
        if getattr(other, "variable", None) is output:
            return True
        if _kind(other) in passing:
            todo.extend(_before(other))
    return False


def _contract(loss: LossFunction) -> _Contract:
    owner = getattr(loss, "__self__", None)
    converts = isinstance(owner, LitModule)
    module = owner.loss if isinstance(owner, LitModule) else loss
    block = _entry(module)
    if block is None:
        function = loss.func if isinstance(loss, partial) else module
        name = getattr(function, "__name__", type(function).__name__)
        return _Contract(
            "the loss" if name == "<lambda>" else name, "", _TARGETS.get(name, ""), converts=converts
        )
    known = {key: getattr(module, key) for key in block.tags.get("expects_by", {})}
    tags = contract({"name": block.name, **known})
    expects, target = tags.get("expects") or "", tags.get("target") or ""
    if converts and expects in ("probabilities", "log_probabilities"):
        expects = "logits"  # of which the module makes them
    return _Contract(block.name, expects, target, converts)


def _entry(loss: Any) -> Block | None:
    """The registry's entry of a loss; of a sum, that of a term, since all take the same."""
    if isinstance(loss, Sum):
        loss = next(iter(loss.terms.values()))
    cls = type(loss)
    place = f"{cls.__module__}:{cls.__qualname__}"
    blocks = (REGISTRY.get("loss", name) for name in REGISTRY.names("loss"))
    return next((block for block in blocks if block.target in (cls, place)), None)


def _ignored(loss: LossFunction) -> int:
    """The label that does not count; torch's own default where the loss does not say."""
    if isinstance(loss, partial):
        return int(loss.keywords.get("ignore_index", -100))
    owner = getattr(loss, "__self__", None)
    return int(getattr(owner.loss if isinstance(owner, LitModule) else loss, "ignore_index", -100))


def _outside(output: Tensor, y: Tensor, ignored: int) -> Finding | None:
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


def _lacking(value: Any) -> Finding | None:
    """What keeps a loss from being trained on."""
    if not isinstance(value, Tensor):
        what = f"a {type(value).__name__}"
    elif value.numel() != 1:
        what = f"numbers of shape {tuple(value.shape)}"
    elif not value.requires_grad:
        what = "a number without a gradient"
    else:
        return None
    return Finding("loss", f"gives {what}; training needs one number with a gradient, such as their mean.")


def _refusal(
    known: _Contract,
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
    if not target and any(_kind(node) in _OF_VALUES for node in nodes):
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
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
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


def _labels(
    loss: LossFunction,
    known: _Contract,
    output: Tensor,
    y: Tensor,
    value: Tensor,
    slope: Tensor,
    nodes: Sequence[Any],
    end: _End,
) -> Finding | None:
    """Labels of another format than the loss takes without a word."""
    binary = known.target == "indicators" or (known.target == "masks" and y.shape == output.shape)
    # Labels at which the loss has no slope are masked.
    counted = y[slope.reshape(y.shape) != 0] if y.numel() == slope.numel() else y
    # What reached torch's function counts, not what the loss was given and may have converted.
    mistaken = any(_beyond(node._saved_target) for node in nodes if _kind(node) in _BINARY)
    if _beyond(counted) and (mistaken or (binary and _misread(loss, output, y, value))):
        return Finding(
            "data", _other_than_indicators(known.name if binary else "binary cross-entropy", counted)
        )
    signs = [node._saved_target for node in nodes if _kind(node) == "SoftMarginLoss"]
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


def _spreads(nodes: Sequence[Any], output: Tensor, y: Tensor) -> bool:
    """Whether a loss spreads output and target over each other."""
    try:
        whole = torch.broadcast_shapes(output.shape, y.shape)  # type: ignore[no-untyped-call]
    except RuntimeError:
        return False
    if prod(whole) <= max(output.numel(), y.numel()):
        return False
    # A node that gives the whole from something smaller; from two of different shapes, it is pairs that are compared.
    for node in nodes:
        shapes = {_shape(other) for other in _before(node)}
        if _shape(node) == whole and len(shapes) == 1 and prod(*shapes) < prod(whole):
            return True
    return False


def _shape(node: Any) -> tuple[int, ...]:
    """Of what a node gave."""
    return tuple(node._input_metadata[0].shape)
