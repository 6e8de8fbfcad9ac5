"""Does the loss fit what the net gives, and do the labels fit the loss? Found by following a batch's graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dlblocks.diagnosis.batch import output_of
from dlblocks.diagnosis.graph import (
    SHAPING,
    end_of,
    kind_of,
    nodes_of,
    reaches,
    spreads,
    squashes,
    unnormalised,
)
from dlblocks.diagnosis.report import Finding
from dlblocks.diagnosis.signal import LossFunction
from dlblocks.diagnosis.targets import beyond_classes, contract_of, ignored_by, mislabelled, refusal
from dlblocks.probing import probed


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


def _found(output: Tensor, y: Tensor, loss: LossFunction) -> Iterator[Finding]:
    end = end_of(output)
    if end.twice:
        first, second = end.twice
        yield Finding(
            "model",
            f"the net ends in a {second} of what a {first} has squashed already: a double {first} trains badly without"
            " any message. Leave one of them out.",
        )
    outside = beyond_classes(output, y, ignored_by(loss))
    if outside and output.device.type != "cpu":
        # There a wrong label ends all work on the device; here the loss itself is asked, which may know better.
        yield outside
        return
    if len(y) > 1 and bool((y == y[:1]).all()):
        yield Finding("data", "all targets are the same: there is nothing to learn from the inputs.")
    known = contract_of(loss)
    free = output.detach().requires_grad_()
    nodes: list[Any] = []
    try:
        value = loss(free, y)
        if lacking := _lacking(value):
            yield lacking
            return
        nodes = nodes_of(value)
        (slope,) = torch.autograd.grad(value, free, retain_graph=True)
    except Exception as error:  # a loss may raise anything; the user is to read what does not fit
        yield refusal(known, output.detach(), y, outside, nodes, error)
        return
    again = sorted({kind for node in nodes if (kind := squashes(node, free))})
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
    likelihoods = [node for node in nodes if kind_of(node) in ("NllLoss", "NllLoss2D")]
    given = [node._saved_self for node in likelihoods if reaches(node, free, SHAPING)]
    if any(map(unnormalised, given)) or (known.expects == "log_probabilities" and end.squashed):
        before = f" Let the net end before its {end.squashed}." if end.squashed else ""
        yield Finding(
            "loss",
            "takes log-probabilities, which the net does not give. Use cross-entropy, which takes logits."
            + before,
        )
    if spreads(nodes, output, y):
        yield Finding(
            "loss",
            f"compares outputs {tuple(output.shape)} with targets {tuple(y.shape)} by spreading one over the other: each"
            " output meets each target. Give both the same shape.",
        )
    if wrong := mislabelled(loss, known, free, y, value, slope, nodes, end):
        yield wrong


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
