"""Weights and biases that let signal and gradient pass through any net, set on one batch: `init=auto`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from math import inf, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from dlblocks.errors import UserError
from dlblocks.initializers.chains import Activation, Chain
from dlblocks.initializers.sequences import set_attention, set_recurrent
from dlblocks.initializers.structured import identity
from dlblocks.initializers.trace import trace
from dlblocks.probing import probed
from dlblocks.theory.operating_point import OperatingPoint, operating_point

# Standard deviation of what the net gives: small, so that no class is believed in before the first step.
_OUTPUT = 0.1
# What all layers together may distort a signal or gradient, as the log of a factor.
_DISTORTION = 0.6
_PLAIN = OperatingPoint(mean=0.0, variance=1.0, centring=0.0, distortion=0.0)


def adjust(model: nn.Module, batch: Tensor) -> None:
    """Scale the weights and set the biases of each layer, in the order in which data meets them, so that its
    outputs lie where the activation that follows passes signal and gradient on.

    With `u = W x` over the batch, m its mean for each unit, `(mu, q)` the operating point of the activation
    that follows, and a the share of its mean that the one before wants taken away:

        W <- s W,  b <- mu - a s m,  s^2 = q / mean over units of (Var[u] + (1 - a)^2 m^2)

    Taking the layer's own variance as the measure follows Mishkin & Matas 2016 (arXiv:1511.06422), biases
    from the batch Salimans & Kingma 2016 (arXiv:1602.07868). Activations may be modules, or functions called
    in the code; they are found by what they do (`trace`). A layer before a norm or another layer gets variance 1
    and no bias; one before a sum, as with a skip connection, 1 / (number of such layers). The last one gives a
    standard deviation of 0.1. A layer that is called several times is set at its first call.

    An attention's queries, keys and values get variance 1 each, and its output is set as that of any layer; of
    recurrent layers `sequences.set_recurrent` tells.

    Between two activations that outgrow every line (exp, relu^2), a layer of as many outputs as inputs passes each unit on
    by itself with its sign turned: `W = -s I` (`theory.operating_point`).

    Args:
        model: any module, its weights filled with random values of any scale.
        batch: inputs, as the model takes them.

    Raises:
        UserError: the batch is no tensor, the model can't be run on the batch, or a layer gives the same for all inputs.
    """
    if not isinstance(batch, Tensor):
        raise UserError(f"init=auto: batch: give a tensor of inputs, not {type(batch).__name__}.")
    with probed(model, training=True), _uncompiled():
        seen = trace(model, batch)
        layers = seen.layers
        points: dict[Hashable, OperatingPoint] = {}

        def point_of(activation: Chain) -> OperatingPoint:
            if activation.key not in points:
                points[activation.key] = operating_point(Activation(activation), _DISTORTION / len(layers))
            return points[activation.key]

        sums = sum(seen.after[layer] == "sum" for layer in layers[:-1])

        def target(layer: nn.Module) -> OperatingPoint:
            use = seen.after[layer]
            if isinstance(use, Chain):
                return point_of(use)
            if layer is layers[-1] and use != "layer":
                return replace(_PLAIN, variance=_OUTPUT**2)
            return replace(_PLAIN, variance=1 / sums) if use == "sum" else _PLAIN

        for layer in layers:
            before, after = seen.before[layer], seen.after[layer]
            if before is not None and isinstance(after, Chain):
                turns = point_of(before).turns
                if turns is not None and point_of(after).turns is not None:
                    _turn(layer, turns)
        todo = {*layers, *seen.recurrent}

        def before_first_call(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if layer in todo:
                given = inspect.signature(layer.forward).bind(*args, **kwargs).arguments
                if isinstance(layer, nn.MultiheadAttention):
                    set_attention(layer, given["query"], given["key"], given["value"])
                else:
                    todo.discard(layer)
                    set_recurrent(layer, given["input"], seen.recurrent[layer])

        def at_first_call(layer: nn.Module, _: Any, output: Any) -> Any:
            if layer not in todo:
                return None
            todo.discard(layer)
            last = seen.before[layer]
            share = point_of(last).centring if last is not None else 0.0
            name = type(layer).__name__
            if isinstance(layer, nn.MultiheadAttention):
                return _set(layer.out_proj, output[0], target(layer), share, name), *output[1:]
            return _set(layer, output, target(layer), share, name)

        hooks = [layer.register_forward_hook(at_first_call) for layer in layers]
        hooks += [
            layer.register_forward_pre_hook(before_first_call, with_kwargs=True)
            for layer in todo
            if layer in seen.recurrent or isinstance(layer, nn.MultiheadAttention)
        ]
        try:
            model(batch)
        finally:
            for hook in hooks:
                hook.remove()


def _uncompiled() -> AbstractContextManager[Any]:
    """Run what is compiled as it was written: nothing is seen inside of what torch has compiled."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled; to import it takes seconds
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _turn(layer: nn.Module, turns: int) -> None:
    """Let a layer with as many inputs as outputs pass each unit on by itself."""
    weight, groups = layer.weight, getattr(layer, "groups", 1)
    assert isinstance(weight, Tensor)
    if weight.shape[0] == weight.shape[1] * groups:
        identity(weight, gain=turns, groups=groups)


def _set(layer: nn.Module, output: Tensor, point: OperatingPoint, share: float, name: str) -> Tensor:
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
        raise UserError(f"init=auto: {name}{tuple(weight.shape)} gives {what}.")
    scale = sqrt(point.variance / size)
    weight.mul_(scale)
    if bias is None:
        return free * scale
    bias.copy_(point.mean - share * scale * centre)
    return free * scale + bias.reshape(shape)
