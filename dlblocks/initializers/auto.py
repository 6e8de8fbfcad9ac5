"""Weights and biases that let signal and gradient pass through any net, set on one batch: `init=auto`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any, Literal

from torch import Tensor, nn

from dlblocks.errors import UserError
from dlblocks.initializers.fans import CONVOLUTIONS, TRANSPOSED
from dlblocks.initializers.structured import identity
from dlblocks.probing import probed
from dlblocks.surgery import find_activations
from dlblocks.theory.operating_point import OperatingPoint, operating_point

_LAYERS = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)
# Standard deviation of what the net gives: small, so that no class is believed in before the first step.
_OUTPUT = 0.1
# What all layers together may distort a signal or gradient, as the log of a factor.
_DISTORTION = 0.6
_PLAIN = OperatingPoint(mean=0.0, variance=1.0, centring=0.0, distortion=0.0)


@dataclass(frozen=True)
class _Call:
    """A call of a module that has no others inside, or is an activation."""

    module: nn.Module
    given: Tensor
    made: Tensor
    kind: Literal["layer", "norm", "activation", "other"]


def adjust(model: nn.Module, batch: Tensor) -> None:
    """Scale the weights and set the biases of each layer, in the order in which data meets them, so that its
    outputs lie where the activation that follows passes signal and gradient on.

    With `u = W x` over the batch, m its mean for each unit, `(mu, q)` the operating point of the activation
    that follows, and a the share of its mean that the one before wants taken away:

        W <- s W,  b <- mu - a s m,  s^2 = q / mean over units of (Var[u] + (1 - a)^2 m^2)

    Taking the layer's own variance as the measure follows Mishkin & Matas 2016 (arXiv:1511.06422), biases
    from the batch Salimans & Kingma 2016 (arXiv:1602.07868). A layer before a norm layer gets variance 1 and
    no bias. One that meets no activation, as before the sum with a skip connection, gets variance
    1 / (number of such layers). The last one gives a standard deviation of 0.1. A layer that is called
    several times is set at its first call.

    Between two activations that outgrow every line (exp, relu^2), a layer of as many outputs as inputs passes each unit on
    by itself with its sign turned: `W = -s I` (`theory.operating_point`).

    Args:
        model: any module, its weights filled with random values of any scale.
        batch: inputs, as the model takes them.

    Raises:
        UserError: the model can't be run on the batch, or a layer gives the same for all inputs.
    """
    found = find_activations(model)
    activations = {model.get_submodule(item.name) for item in found if item.how == "module"}
    hidden_calls = any(item.how != "module" for item in found)
    with probed(model, training=True):
        calls = _calls(model, batch, activations)
        layers = list(dict.fromkeys(call.module for call in calls if call.kind == "layer"))
        if not layers:
            return
        points = _points(calls, _DISTORTION / len(layers))
        before, after = _neighbours(calls)
        open_ends = sum(after[layer] is None for layer in layers[:-1])

        def target(layer: nn.Module) -> OperatingPoint:
            follower = after[layer]
            if follower is not None:
                return points.get(follower, _PLAIN)
            if layer is layers[-1]:
                return OperatingPoint(0.0, _OUTPUT**2, 0.0, 0.0)
            # A function in the code may be the activation that was not seen.
            return _PLAIN if hidden_calls else OperatingPoint(0.0, 1 / open_ends, 0.0, 0.0)

        for layer in layers:
            ends = before[layer], after[layer]
            turns = [points[end].turns for end in ends if end is not None and end in points]
            if len(turns) == 2 and turns[0] is not None and turns[1] is not None:
                _turn(layer, turns[0])
        todo = set(layers)

        def at_first_call(layer: nn.Module, _: Any, output: Tensor) -> Tensor | None:
            if layer not in todo:
                return None
            todo.discard(layer)
            last = before[layer]
            share = points[last].centring if last is not None else 0.0
            return _set(layer, output, target(layer), share)

        hooks = [layer.register_forward_hook(at_first_call) for layer in layers]
        try:
            model(batch)
        finally:
            for hook in hooks:
                hook.remove()


def _turn(layer: nn.Module, turns: int) -> None:
    """Let a layer with as many inputs as outputs pass each unit on by itself."""
    weight, groups = layer.weight, getattr(layer, "groups", 1)
    assert isinstance(weight, Tensor)
    if weight.shape[0] == weight.shape[1] * groups:
        identity(weight, gain=turns, groups=groups)


def _set(layer: nn.Module, output: Tensor, point: OperatingPoint, share: float) -> Tensor:
    """Scale the weights, set the bias, and give what the layer then gives."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    assert bias is None or isinstance(bias, Tensor)
    channel = output.ndim - 1 if isinstance(layer, nn.Linear) else output.ndim + 1 - weight.ndim
    shape = [-1 if axis == channel else 1 for axis in range(output.ndim)]
    free = output if bias is None else output - bias.reshape(shape)
    units = free.movedim(channel, -1).flatten(0, -2).double()
    centre = units.mean(0)
    if bias is None:
        share = 0.0
    size = float(units.var(0, correction=0).mean() + (1 - share) ** 2 * centre.square().mean())
    if not 1e-30 < size < inf:
        what = "the same for all inputs of the batch" if size < 1 else "numbers that are not finite"
        raise UserError(f"init=auto: {type(layer).__name__}{tuple(weight.shape)} gives {what}.")
    scale = sqrt(point.variance / size)
    weight.mul_(scale)
    if bias is None:
        return free * scale
    bias.copy_(point.mean - share * scale * centre)
    return free * scale + bias.reshape(shape)


def _calls(model: nn.Module, batch: Tensor, activations: set[nn.Module]) -> list[_Call]:
    """The calls of a run on the batch, in order."""
    calls: list[_Call] = []

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            calls.append(_Call(module, inputs[0], output, _kind(module, activations)))

    ends = [module for module in model.modules() if module in activations or not list(module.children())]
    hooks = [module.register_forward_hook(note) for module in ends]
    try:
        model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _kind(module: nn.Module, activations: set[nn.Module]) -> Literal["layer", "norm", "activation", "other"]:
    if module in activations:
        return "activation"
    if isinstance(module, _LAYERS):
        return "layer"
    return "norm" if isinstance(module, _NORMS) else "other"


def _points(calls: Sequence[_Call], tolerance: float) -> dict[nn.Module, OperatingPoint]:
    """The operating point of each activation; activations that look the same have the same."""
    of_kind: dict[str, OperatingPoint] = {}
    points = {}
    for call in calls:
        if call.kind == "activation":
            look = f"{type(call.module)} {call.module!r}"
            if look not in of_kind:
                of_kind[look] = operating_point(call.module, tolerance)
            points[call.module] = of_kind[look]
    return points


def _neighbours(
    calls: Sequence[_Call],
) -> tuple[dict[nn.Module, nn.Module | None], dict[nn.Module, nn.Module | None]]:
    """For each layer: the activation that its inputs come from, and the activation, norm or layer that takes its
    outputs, through pooling, dropout and the like; None where there is none."""
    before: dict[nn.Module, nn.Module | None] = {}
    after: dict[nn.Module, nn.Module | None] = {}
    for place, call in enumerate(calls):
        if call.kind != "layer" or call.module in before:
            continue
        before[call.module] = after[call.module] = None
        tensor = call.given
        for other in reversed(calls[:place]):
            if other.made is tensor:
                if other.kind == "activation":
                    before[call.module] = other.module
                if other.kind != "other":
                    break
                tensor = other.given
        tensor = call.made
        for other in calls[place + 1 :]:
            if other.given is tensor:
                if other.kind != "other":
                    after[call.module] = other.module
                    break
                tensor = other.made
    return before, after
