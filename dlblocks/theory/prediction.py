"""What mean-field theory expects of a net as it is: the signal's size at each layer, and the gradient's.

It walks a net whose modules are called one after the other, with the actual mean squares of weights and biases, and
follows the second moment of each instance, and of each place of a picture, through

    q = w E[x^2] + b        w = fan_in * mean(W^2), b = mean(bias^2); a convolution sums over its window
    E[x^2] = E[phi(sqrt(q) z)^2]

and the mean square of a gradient back through `fan_out * mean(W^2) * E[phi'(sqrt(q) z)^2]`. Layer, RMS and group norms
divide by what is expected. Where a batch norm or pooling stands between two layers, what lies between them is taken from
this batch, since it depends on how its instances and places lie to one another.

Sources: Poole et al. 2016, arXiv:1606.05340; Schoenholz et al. 2017, arXiv:1611.01232; Xiao et al. 2018,
arXiv:1806.05393, for convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite, isnan, log, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dlblocks.errors import UserError
from dlblocks.probing import probed
from dlblocks.theory.chain import LAYERS, Call, calls_of_run, plain
from dlblocks.theory.mean_field import MeanField
from dlblocks.theory.means import BySamples, means_of
from dlblocks.theory.walk import BATCH_NORMS, POOLINGS, NotModelledError, Segment, walk

# Nearer to 1 than this, a factor counts as 1.
_SAME = 1e-8
# Where chi is taken if variances grow for ever.
_LARGEST = 1e30


@dataclass(frozen=True)
class LayerPrediction:
    """What is expected of a layer with weights.

    Args:
        name: dotted.
        kind: its class.
        weight_variance: mean square of its weights, times fan_in.
        bias_variance: mean square of its biases.
        variance: q, the expected mean square of its pre-activations over instances, places and units.
        gradient: the expected mean square of a gradient at its pre-activations, for one of 1 at those of the last layer:
            the product of chi of the layers between, for the numbers of units they have. None where not known.
    """

    name: str
    kind: str
    weight_variance: float
    bias_variance: float
    variance: float | None = None
    gradient: float | None = None


@dataclass(frozen=True)
class Prediction:
    """What theory expects of a net; see `predict`.

    Args:
        modelled: whether all of it could be followed.
        reason: where and why not, a sentence; empty if it could.
        layers: in the order in which they are called.
        scatter: standard deviation, over the drawing of weights, of the log of what is measured about the log of what is
            expected, in nets that neither shrink nor grow what differs: `sqrt(5 sum 1 / width)` over hidden layers, for
            relu; less for smoother activations (Hanin & Nica 2018, arXiv:1812.05994). None if not modelled.
        fixed_variance: q*, the variance after very many of the net's hidden layers: 0 where the signal dies out,
            infinite where it grows for ever. None, as the next two, where hidden layers differ in activation, norm,
            dropout or variances, or there are none between the first and the last layer.
        chi: the factor on a gradient's mean square of one hidden layer of equal width, at q*.
        depth_scale: layers over which a gradient's mean square shrinks or grows e-fold at q*, `1 / |log chi|`.
    """

    modelled: bool
    reason: str
    layers: tuple[LayerPrediction, ...]
    scatter: float | None = None
    fixed_variance: float | None = None
    chi: float | None = None
    depth_scale: float | None = None


def predict(net: nn.Module, x: Any, *, dropout: bool = True) -> Prediction:
    """What mean-field theory expects of a net's signal and gradients, for independent random weights.

    Modelled are nets that call their modules one after the other: linear layers and convolutions, activations (of single
    numbers or, as GLU and maxout, of several features), batch, layer, RMS and group norms, dropout, pooling, flattening.
    Not modelled, and told in `reason`, are sums and other functions outside of modules, attention, recurrence,
    layers called twice, and weights that don't look like independent draws: equal, structured, or trained.

    The net is run once on x, with the batch statistics of training and without dropout, whose effect is calculated.
    Weights, buffers, modes and random state stay as they were.

    Args:
        net: any module.
        x: a batch of inputs, as the net takes it.
        dropout: as in training; False for the net without its dropout, as a diagnosis measures it.

    Raises:
        UserError: the net can't be run on x, or has lazy layers.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(1000, 1000, bias=False), nn.ReLU(), nn.Linear(1000, 1000, bias=False))
    >>> for layer in (net[0], net[2]):
    ...     _ = nn.init.kaiming_normal_(layer.weight, generator=torch.Generator().manual_seed(0))
    >>> found = predict(net, torch.ones(1, 1000))
    >>> [round(layer.variance, 1) for layer in found.layers], round(found.layers[0].gradient, 1)
    ([2.0, 2.0], 1.0)
    """
    if any(is_lazy(parameter) for parameter in net.parameters()):
        raise UserError(
            f"{type(net).__name__} has lazy layers without weights; run a batch through it first."
        )
    if not any(plain(part, LAYERS) for part in net.modules()):
        return Prediction(False, f"{type(net).__name__} has no linear layer and no convolution.", ())
    relations = any(isinstance(part, (*BATCH_NORMS, *POOLINGS)) for part in net.modules())
    inplace = [part for part in net.modules() if getattr(part, "inplace", False)]
    with probed(net, training=True, gradients=relations):
        for part in inplace:
            setattr(part, "inplace", False)  # noqa: B010 - not every module has it
        try:
            calls, output = calls_of_run(net, x)
            return _predicted(calls, output, dropout)
        finally:
            for part in inplace:
                setattr(part, "inplace", True)  # noqa: B010


def _predicted(calls: Sequence[Call], output: Any, dropout: bool) -> Prediction:
    segments: list[Segment] = []
    reason = ""
    try:
        walk(calls, output, dropout, segments)
    except NotModelledError as error:
        reason = str(error)
    gradients: list[float | None] = [None] * len(segments)
    if not reason:
        gradients = _gradients(segments)
    done = {segment.call.module: index for index, segment in enumerate(segments)}
    layers = []
    for module, call in {call.module: call for call in calls if plain(call.module, LAYERS)}.items():
        index = done.get(module)
        known = (None, None) if index is None else (_known(segments[index].square), gradients[index])
        layers.append(_layer(call, *known))
    if reason:
        return Prediction(False, reason, tuple(layers))
    scatter = sqrt(5 * sum(1 / segment.weight.shape[0] for segment in segments[:-1]))
    return Prediction(True, "", tuple(layers), scatter, *_at_depth(segments, layers))


def _gradients(segments: Sequence[Segment]) -> list[float | None]:
    """The mean square at each layer's pre-activations, of one of 1 at the last."""
    g = torch.ones_like(segments[-1].square)
    found = [_known(g)]
    for before, after in zip(segments[-2::-1], segments[:0:-1], strict=True):
        g = after.back(g)
        for pull in reversed(before.pulls):
            g = pull(g)
        found.append(_known(g))
    return found[::-1]


def _known(values: Tensor) -> float | None:
    mean = float(values.mean())
    return None if isnan(mean) else mean


def _layer(call: Call, variance: float | None, gradient: float | None) -> LayerPrediction:
    weight, bias = call.module.weight, call.module.bias
    assert isinstance(weight, Tensor)
    return LayerPrediction(
        name=call.name,
        kind=type(call.module).__name__,
        weight_variance=float(weight.detach().double().square().mean()) * weight[0].numel(),
        bias_variance=float(bias.detach().double().square().mean()) if isinstance(bias, Tensor) else 0.0,
        variance=variance,
        gradient=gradient,
    )


def _at_depth(
    segments: Sequence[Segment], layers: Sequence[LayerPrediction]
) -> tuple[float | None, float | None, float | None]:
    """q*, chi and the depth scale of hidden layers that are all alike."""
    unknown = (None, None, None)
    if len(segments) < 3:
        return unknown
    first, hidden, alike = segments[0], layers[1:-1], segments[:-1]
    sampled = isinstance(first.means, BySamples) and first.norm == "none"
    if sampled or not all(
        (one.usual, one.means, one.norm, one.kept) == (True, first.means, first.norm, first.kept)
        for one in alike
    ):
        return unknown
    numbers = [one.weight.numel() for one in segments[1:-1]]
    units = [one.weight.shape[0] for one in segments[1:-1]]
    weights = _common([layer.weight_variance for layer in hidden], numbers)
    biases = _common([layer.bias_variance for layer in hidden], units)
    if weights is None or biases is None:
        return unknown
    means = first.means or means_of(nn.Identity())
    theory = MeanField(means, weights, biases, dropout=1 - first.kept, norm=first.norm)
    start = float(segments[1].square.mean())
    if not isfinite(start):
        return unknown
    q = theory.limit(start)
    chi = theory.chi(min(q, _LARGEST))
    if isnan(chi):
        return q, None, None
    rate = abs(log(chi)) if 0 < chi < inf else inf
    return q, chi, 1 / rate if rate > _SAME else inf


def _common(values: Sequence[float], counts: Sequence[int]) -> float | None:
    """The mean of values that differ no more than mean squares of so many draws do; None if they differ more."""
    mean = sum(value * count for value, count in zip(values, counts, strict=True)) / sum(counts)
    off = (
        abs(value - mean) / (0.01 + 6 * sqrt(2 / count)) for value, count in zip(values, counts, strict=True)
    )
    return mean if max(off) <= mean else None
