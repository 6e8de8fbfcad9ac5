"""The signal of a net and its gradients, followed from call to call; see `prediction`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from dlblocks.theory.chain import CONVOLUTIONS, LAYERS, Call, link, plain, shares
from dlblocks.theory.checks import DROPOUTS
from dlblocks.theory.mean_field import Norm
from dlblocks.theory.means import Means
from dlblocks.theory.module_means import table_of
from dlblocks.theory.structure import directions, structure_of

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
FEATURE_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm)
WINDOWS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
ADAPTIVE = (
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
POOLINGS: tuple[type[nn.Module], ...] = (*WINDOWS, *ADAPTIVE)
DROPPING = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)

# A norm over fewer features than this is not that of a wide layer.
_FEW = 8
# Of fewer rows, or of rows that differ in fewer directions, batch norm lets gradients of instances depend on each other.
_INSTANCES, _LEAST_DIRECTIONS, _COMPARED = 16, 1.3, 256
# Biases below this share of q don't matter, nor what they depend on.
_SMALL = 0.01
# Sums of independent draws that are off by more than this many deviations are not of such.
_DEVIATIONS = 4.0

_ELSE = (
    "is not what the module called before gave: something is done outside of modules, such as a sum or a function, or the"
    " net has branches."
)

# The mean square of a gradient, for each instance and place, on its way back through a step.
Pull: TypeAlias = Callable[[Tensor], Tensor]


class NotModelledError(Exception):
    """Where the theory ends, in words."""


@dataclass(frozen=True)
class Signal:
    """What is expected of the numbers between two calls.

    Args:
        square: their second moment, `(instances, *places)` with size 1 along the features.
        mean: their mean over the features, of the same shape.
        noise: what dropout adds to `square`, which a run without it does not show.
        axis: of the features.
        gaussian: whether they are nearly Gaussian, as behind a layer.
        offset: why the biases don't look like independent draws; empty if they do.
    """

    square: Tensor
    mean: Tensor
    noise: Tensor
    axis: int
    gaussian: bool = False
    offset: str = ""


@dataclass
class Segment:
    """A layer, and what follows it up to the next one.

    Args:
        call: of the layer.
        weight: of the layer.
        square: q, for each instance and place.
        axis: of its units.
        back: from the layer's pre-activations to its inputs.
        pulls: from each later step's outputs to its inputs.
        kept: product of what dropout keeps in it.
        extra: by what dropout multiplies a gradient's mean square in it so far, which a run without it does not show.
        means: of its activation.
        norm: before its activation.
        usual: whether it is norm, activation, dropout, as `MeanField` takes it.
        measured: whether what follows the layer is taken from the batch, but for dropout.
        each_dropped: whether single numbers, not whole channels, are dropped.
    """

    call: Call
    weight: Tensor
    square: Tensor
    axis: int
    back: Pull
    pulls: list[Pull] = field(default_factory=list)
    kept: float = 1.0
    extra: float = 1.0
    means: Means | None = None
    norm: Norm = "none"
    usual: bool = True
    measured: bool = False
    each_dropped: bool = False


def walk(calls: Sequence[Call], output: Any, dropout: bool, segments: list[Segment]) -> None:
    """Follow the signal from the first layer to the last, adding a segment for each.

    Args:
        calls, output: of a run.
        dropout: whether it acts.
        segments: empty; where the signal can't be followed further, it holds those that it came through.

    Raises:
        NotModelledError: where it can't be followed further.
    """
    start = _start(calls)
    signal = _given(calls[start])
    if dropout:
        for call in calls[:start]:
            if isinstance(call.module, DROPOUTS):
                signal = _dropped(signal, call)
    final = max(place for place, call in enumerate(calls) if plain(call.module, LAYERS))
    weights: set[int] = set()
    previous: Call | None = None
    for place, call in enumerate(calls[start:], start):
        if not call.single:
            raise NotModelledError(f"{call.where}: takes or gives something else than one tensor.")
        if call.given.ndim < 2:
            raise NotModelledError(f"{call.where}: is given one vector in place of a batch.")
        if previous is not None:
            if not shares(previous.made, call.given) or previous.after != call.before:
                raise NotModelledError(f"{call.where}: what it is given {_ELSE}")
            if place <= final:
                signal = _linked(signal, previous.made, call, segments[-1])
        if plain(call.module, LAYERS):
            own = {id(parameter) for parameter in call.module.parameters()}
            if own & weights:
                raise NotModelledError(f"{call.where}: its weights are used several times.")
            weights |= own
            if place < final and call.made.shape[_axis(call)] < _FEW:
                raise NotModelledError(f"{call.where}: has too few outputs for a theory of wide layers.")
            signal, segment = _through_layer(signal, call)
            segments.append(segment)
        elif place < final:
            signal = _through(signal, call, segments[-1], dropout)
        previous = call
    assert previous is not None
    if not (isinstance(output, Tensor) and shares(previous.made, output)):
        raise NotModelledError(f"After {previous.where}: what the net gives {_ELSE}")


def _start(calls: Sequence[Call]) -> int:
    """The place of the first layer."""
    for place, call in enumerate(calls):
        if plain(call.module, LAYERS):
            return place
        weighs = any(parameter.ndim > 1 for parameter in call.module.parameters())
        if weighs and not isinstance(call.module, (nn.Embedding, nn.EmbeddingBag)):
            raise NotModelledError(
                f"{call.where}: has weights, but is neither a linear layer nor a convolution."
            )
    raise NotModelledError("The net calls no linear layer and no convolution.")


def _given(call: Call) -> Signal:
    """The input of the first layer, as it is."""
    if not call.single:
        raise NotModelledError(f"{call.where}: takes something else than one tensor.")
    axis = _axis(call)
    square = _square(call.given, axis)
    if not square.isfinite().all() or not square.numel():
        raise NotModelledError(f"{call.where}: its inputs are not finite, or there are none.")
    return Signal(square, torch.zeros_like(square), torch.zeros_like(square), axis)


def _axis(call: Call) -> int:
    """Of the features that a layer takes."""
    if not isinstance(call.module, CONVOLUTIONS):
        return call.given.ndim - 1
    if call.given.ndim != len(call.module.kernel_size) + 2:
        raise NotModelledError(f"{call.where}: takes a single instance, not a batch.")
    return 1


def _linked(signal: Signal, last: Tensor, call: Call, segment: Segment) -> Signal:
    """The signal as the next call gets it."""
    how = link(last, call.given, signal.axis)
    if how is None:
        raise NotModelledError(
            f"{call.where}: takes what the module before gave in an order of dimensions that is not modelled, or detached."
        )
    if how == "flat":
        return _flattened(signal, segment)
    if how == "same":
        return signal
    place = call.given.ndim - 1 if how == "last" else 1
    axis = signal.axis
    segment.pulls.append(lambda g: g.movedim(place, axis))
    square, mean, noise = (part.movedim(axis, place) for part in (signal.square, signal.mean, signal.noise))
    return replace(signal, square=square, mean=mean, noise=noise, axis=place)


def _flattened(signal: Signal, segment: Segment) -> Signal:
    """All numbers of an instance in one row."""
    shape = signal.square.shape
    segment.pulls.append(lambda g: g.reshape(-1, *[1] * (len(shape) - 1)).expand(shape))
    square, mean, noise = (
        part.expand(shape).flatten(1).mean(1, keepdim=True)
        for part in (signal.square, signal.mean, signal.noise)
    )
    return replace(signal, square=square, mean=mean, noise=noise, axis=1)


def _through_layer(signal: Signal, call: Call) -> tuple[Signal, Segment]:
    layer: Any = call.module
    weight: Tensor = layer.weight.detach()
    bias: Tensor | None = layer.bias
    if (axis := _axis(call)) != signal.axis:
        raise NotModelledError(
            f"{call.where}: takes another dimension for its features than the layer before."
        )
    if getattr(layer, "groups", 1) != 1:
        raise NotModelledError(
            f"{call.where}: a convolution in groups, each of few channels, is not modelled."
        )
    if (why := structure_of(weight)) is not None:
        raise NotModelledError(f"{call.where}: {why}.")
    shift = 0.0 if bias is None else float(bias.detach().double().square().mean())
    if not isfinite(shift):
        raise NotModelledError(f"{call.where}: its biases are not finite.")
    outputs, inputs = weight.shape[:2]
    # For each place of a kernel.
    size = weight.double().square().mean((0, 1), keepdim=True).cpu()

    def through(moment: Tensor) -> Tensor:
        if isinstance(layer, CONVOLUTIONS):
            made: Tensor = layer._conv_forward(moment, size * inputs, None)
            return made
        return moment * (float(size) * inputs)

    def back(g: Tensor) -> Tensor:
        if not isinstance(layer, CONVOLUTIONS):
            return g * (float(size) * outputs)
        with torch.enable_grad():
            given = torch.zeros_like(signal.square, requires_grad=True)
            (pulled,) = torch.autograd.grad((through(given) * g).sum(), given)
        return pulled * (outputs / inputs)

    with torch.no_grad():
        square, noise = through(signal.square) + shift, through(signal.noise)
    if not bool(square.isfinite().all()):
        raise NotModelledError(f"{call.where}: what it gives is expected to overflow.")
    offset = "" if bias is None else _offset(bias, shift, call.made, axis, float(square.mean()))
    made = Signal(square, torch.zeros_like(square), noise, axis, gaussian=True, offset=offset)
    return made, Segment(call, weight, square, axis, back)


def _offset(bias: Tensor, square: float, made: Tensor, axis: int, q: float) -> str:
    """Why biases don't look like independent draws of mean 0; empty if they do, or are small."""
    values, count = bias.detach().double().cpu(), len(bias)
    if not square > _SMALL * q or count < _FEW:
        return ""
    if count * float(values.mean()) ** 2 > min(_DEVIATIONS**2, 0.9 * count) * square:
        return "its biases don't have mean 0"
    rest = made.detach().double().movedim(axis, -1).flatten(0, -2).mean(0).cpu() - values
    together = torch.corrcoef(torch.stack([rest, values]))[0, 1]
    if count * float(together) ** 2 > min(_DEVIATIONS**2, 0.9 * count):
        return "its biases depend on what its weights give"
    return ""


def _through(signal: Signal, call: Call, segment: Segment, dropout: bool) -> Signal:
    """The signal behind a module that is no layer."""
    module = call.module
    if plain(module, (nn.Identity,)):
        return signal
    if plain(module, (nn.Flatten,)):
        return _through_flatten(signal, call, segment)
    if isinstance(module, DROPOUTS):
        return _through_dropout(signal, call, segment) if dropout else signal
    if plain(module, FEATURE_NORMS):
        return _through_feature_norm(signal, call, segment)
    if plain(module, BATCH_NORMS):
        return _through_batch_norm(signal, call, segment)
    if plain(module, POOLINGS):
        return _through_pooling(signal, call, segment)
    return _through_activation(signal, call, segment)


def _through_flatten(signal: Signal, call: Call, segment: Segment) -> Signal:
    if call.made.shape == call.given.shape:
        return signal
    if call.made.ndim != 2 or len(call.made) != len(call.given):
        raise NotModelledError(f"{call.where}: makes something else than one row of each instance.")
    return _flattened(signal, segment)


def _probability(call: Call) -> float:
    dropout: Any = call.module
    return float(dropout.p)


def _dropped(signal: Signal, call: Call) -> Signal:
    p = _probability(call)
    if not plain(call.module, DROPPING) and p > 0:
        raise NotModelledError(f"{call.where}: a dropout that keeps mean and variance is not modelled.")
    if p == 1:
        raise NotModelledError(f"{call.where}: drops everything.")
    noise = (signal.noise + p * signal.square) / (1 - p)
    return replace(signal, square=signal.square / (1 - p), noise=noise, gaussian=signal.gaussian and p == 0)


def _through_dropout(signal: Signal, call: Call, segment: Segment) -> Signal:
    kept = 1 - _probability(call)
    signal = _dropped(signal, call)
    segment.kept *= kept
    segment.extra /= kept
    segment.each_dropped |= kept < 1 and plain(call.module, (nn.Dropout,))
    segment.pulls.append(lambda g: g / kept)
    return signal


def _check_norm(signal: Signal, call: Call) -> float:
    """The square of what a norm multiplies by.

    Raises:
        NotModelledError: its scale or shift has been trained, or the biases before it are no random ones.
    """
    if signal.offset:
        raise NotModelledError(f"Before {call.where}: of the layer, {signal.offset}.")
    norm: Any = call.module
    weight, bias = norm.weight, getattr(norm, "bias", None)
    scale = 1.0
    if isinstance(weight, Tensor):
        scale = float(weight.detach().flatten()[0])
        if not bool((weight == scale).all()):
            raise NotModelledError(f"{call.where}: its scales differ, as after training.")
    if isinstance(bias, Tensor) and bool(bias.any()):
        raise NotModelledError(f"{call.where}: it adds shifts, as after training.")
    return scale**2


def _through_feature_norm(signal: Signal, call: Call, segment: Segment) -> Signal:
    norm: Any = call.module
    axis, scale = signal.axis, _check_norm(signal, call)
    dims = call.given.ndim
    if isinstance(norm, nn.GroupNorm):
        over, features = range(1, dims), norm.num_channels // norm.num_groups
        across = axis == 1
    else:
        over = range(dims - len(norm.normalized_shape), dims)
        features, across = call.given.shape[axis], axis in over
    if not across or features < _FEW:
        raise NotModelledError(f"{call.where}: does not divide by the size of many features of an instance.")
    eps = norm.eps if norm.eps is not None else torch.finfo(call.given.dtype).eps
    places = list(over)
    square = signal.square.mean(places, keepdim=True)
    mean = torch.zeros_like(square)
    if not isinstance(norm, nn.RMSNorm):
        mean = signal.mean.mean(places, keepdim=True)
    variance = square - mean.square() + eps
    factor = scale / variance
    segment.pulls.append(lambda g: g * factor)
    segment.extra *= 1 - float((signal.noise.mean(places, keepdim=True) / variance).mean())
    if signal.gaussian and segment.norm == "none" and segment.means is None:
        segment.norm = "layer"
    else:
        segment.usual = False
    return replace(
        signal,
        square=factor * (signal.square - 2 * mean * signal.mean + mean.square()),
        mean=factor.sqrt() * (signal.mean - mean),
        noise=torch.zeros_like(signal.noise),
    )


def _through_batch_norm(signal: Signal, call: Call, segment: Segment) -> Signal:
    norm: Any = call.module
    _check_norm(signal, call)
    if signal.axis != 1:
        raise NotModelledError(f"{call.where}: normalises another dimension than the features.")
    values = call.given.detach().double().movedim(1, -1).flatten(0, -2)
    if len(values) < _INSTANCES or directions(values[:_COMPARED]) < _LEAST_DIRECTIONS:
        raise NotModelledError(
            f"{call.where}: the batch has too few instances, or they differ in one direction only."
        )
    if signal.gaussian and segment.norm == "none" and segment.means is None:
        segment.norm = "batch"
    else:
        segment.usual = False
    if bool(signal.noise.any()):
        if not signal.gaussian:
            raise NotModelledError(f"{call.where}: a batch norm behind dropout is not modelled.")
        spread = values.var(0, correction=0).cpu() + norm.eps
        segment.extra *= float((1 / (spread + signal.noise.mean())).mean() / (1 / spread).mean())
    segment.measured = True
    _measure(segment, call.made)
    # With dropout before it as without, what it gives has variance 1 times its scale.
    zero = torch.zeros_like(signal.square)
    return replace(signal, square=_square(call.made, 1), mean=zero, noise=zero)


def _through_pooling(signal: Signal, call: Call, segment: Segment) -> Signal:
    if segment.each_dropped:
        raise NotModelledError(f"{call.where}: pooling behind a dropout of single numbers is not modelled.")
    if signal.axis != 1:
        raise NotModelledError(f"{call.where}: pools over something else than places.")
    if _overlaps(call):
        raise NotModelledError(f"{call.where}: pooling over windows that overlap is not modelled.")
    before = float(call.given.detach().double().square().mean())
    growth = float(signal.square.mean()) / before if before > 0 else 0.0
    square = growth * _square(call.made, 1)
    mean = growth**0.5 * _mean(call.made, 1)
    noise = torch.full_like(square, float(signal.noise.mean() / signal.square.mean()) if growth else 0.0)
    segment.usual, segment.measured = False, True
    _measure(segment, call.made)
    return replace(signal, square=square, mean=mean, noise=noise * square, gaussian=False)


def _square(values: Tensor, axis: int) -> Tensor:
    return values.detach().double().square().mean(axis, keepdim=True).cpu()


def _mean(values: Tensor, axis: int) -> Tensor:
    return values.detach().double().mean(axis, keepdim=True).cpu()


def _overlaps(call: Call) -> bool:
    """Whether pooling takes some place into several windows, whose gradients would add up."""
    pooling: Any = call.module
    places = call.given.shape[2:]
    if isinstance(pooling, ADAPTIVE):
        return any(size % made for size, made in zip(places, call.made.shape[2:], strict=True))
    sizes, strides = (
        value if isinstance(value, tuple) else (value,) * len(places)
        for value in (pooling.kernel_size, pooling.stride)
    )
    return any(size > stride for size, stride in zip(sizes, strides, strict=True))


def _measure(segment: Segment, made: Tensor) -> None:
    """Pull gradients back to the layer as this batch does, in place of all steps so far but dropout.

    Of a gradient of random signs, the mean square is that of the Jacobian's rows (Hutchinson 1990).
    """
    layer, axis, extra = segment.call.made, segment.axis, segment.extra
    draw = torch.Generator().manual_seed(0)
    signs = (2 * torch.randint(0, 2, made.shape, generator=draw) - 1).to(made)

    def pull(g: Tensor) -> Tensor:
        size = float(g.mean()) or 1.0
        direction = signs * (g / size).sqrt().to(made)
        (pulled,) = torch.autograd.grad((made * direction).sum(), layer, retain_graph=True)
        return pulled.double().square().mean(axis, keepdim=True).cpu() * (size * extra)

    segment.pulls[:] = [pull]


def _through_activation(signal: Signal, call: Call, segment: Segment) -> Signal:
    axis = signal.axis
    table = table_of(call.module, call.given.shape, call.made.shape, axis)
    if table is None:
        raise NotModelledError(
            f"{call.where}: is none of the modules that the theory models, or not along the features."
        )
    if not signal.gaussian:
        raise NotModelledError(
            f"{call.where}: what it is given is not nearly Gaussian; only a norm may lie between a layer and its"
            " activation."
        )
    if signal.offset:
        raise NotModelledError(f"Before {call.where}: of the layer, {signal.offset}.")
    segment.means = table.means
    if segment.measured:
        _measure(segment, call.made)
        made = call.made
        return Signal(_square(made, axis), _mean(made, axis), torch.zeros_like(signal.noise), axis)
    mean, square, slope = table.at(signal.square)
    share = call.made.shape[axis] / call.given.shape[axis]
    segment.pulls.append(lambda g: g * slope * share)
    noise = torch.zeros_like(square)
    if bool(signal.noise.any()):
        _, quiet, quiet_slope = table.at(signal.square - signal.noise)
        noise = (square - quiet).clamp(min=0.0)
        segment.extra *= float(slope.mean() / quiet_slope.mean())
    return Signal(square, mean, noise, axis)
