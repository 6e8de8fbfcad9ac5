"""What one batch shows of a net: the signal that reaches each layer, and the gradient that comes back.

Beside the gradient of the loss g, two more are pulled back: `J^T u`, where u is the loss's gradient at the net's
outputs less its mean over the batch, and `J^T u'` with u shuffled over the instances. The first is what the net can
learn of how inputs differ: with `Theta = J J^T` (the neural tangent kernel, Jacot et al. 2018, arXiv:1806.07572),
`|J^T u|^2 / |u|^2` is the speed at which gradient descent reduces u. The second is what it would learn of labels
drawn at random: where both are alike, inputs of one class have nothing in common for the net (chaos).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, log10, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from dlblocks.errors import UserError
from dlblocks.probing import probed
from dlblocks.surgery import find_activations

LossFunction = Callable[[Tensor, Tensor], Tensor]

# A local slope below this is saturated.
_FLAT = 0.01
_SAME = 1e-6
# So many instances and units tell in how many directions inputs differ.
_ROWS, _COLUMNS = 64, 4096


@dataclass(frozen=True)
class Layer:
    """A layer with weights, and what reaches it.

    Args:
        name: dotted.
        kind: its class.
        mean, deviation: of the numbers that reach it, over the batch.
        variation: the share of their mean square that differs between inputs; 0 if all inputs look alike here.
        correlation: mean cosine of what reaches it of two inputs.
        dimensions: in how many directions it differs between inputs: `(tr C)^2 / tr C^2` of its covariance C, over up
            to 64 instances and 4096 units; 0 if all inputs look alike here, 1 if they lie along a line. Depth may
            take it down to 1 (rank collapse; Daneshmand et al. 2020, arXiv:2003.01652).
        identical: share of its units that give the same as another of its units for every input.
        dead: share of the units of the activation behind it whose slope is 0 for every input; None if unknown.
        saturated: share of that activation's values at which its slope is below 0.01; None if unknown.
        weight: norm of its weights.
        gradient: norm of the loss's gradient by its weights.
        useful: norm of the part of that gradient that tells inputs apart.
        update: norm of the first update over that of the weights; None without an optimizer.
    """

    name: str
    kind: str
    mean: float
    deviation: float
    variation: float
    correlation: float
    dimensions: float
    identical: float
    dead: float | None
    saturated: float | None
    weight: float
    gradient: float
    useful: float
    update: float | None = None


@dataclass(frozen=True)
class Signal:
    """What one batch shows of a net.

    Args:
        layers: in the order in which the batch meets them.
        output_mean_square, output_variation: of what the net gives; the share that differs between inputs.
        loss: of the batch.
        finite: whether all outputs and gradients are finite numbers.
        speed: `|J^T u|^2 / |u|^2` over the number of instances: what gradient descent takes off the error for
            each unit of learning rate.
        alignment: log10 of `|J^T u|^2 / |J^T u'|^2`; about 0 if the labels might as well be random.
    """

    layers: tuple[Layer, ...]
    output_mean_square: float
    output_variation: float
    loss: float
    finite: bool
    speed: float
    alignment: float


@dataclass
class _Seen:
    """What a hook saw of a layer."""

    name: str
    module: nn.Module
    given: Tensor
    made: Tensor
    slopes: Tensor | None = None


def measure(net: nn.Module, x: Any, y: Tensor, loss: LossFunction) -> Signal:
    """Run a batch through a net and back. Weights, buffers, modes and random state stay as they were.

    Args:
        net: any module that gives a tensor for `net(x)`.
        x: a batch of inputs.
        y: its targets.
        loss: `loss(output, y)`, a number.

    Raises:
        UserError: the net gives no tensor, has no layer with weights, or nothing in it can be trained.
    """
    with probed(net, training=True, gradients=True):
        seen, output = _run(net, x)
        weights = [part.module.weight for part in seen]
        parameters = [p for p in net.parameters() if p.requires_grad]
        value = loss(output, y)
        (slope,) = torch.autograd.grad(value, output, retain_graph=True)
        rows = output.shape[0]
        error = slope.detach() * rows
        apart = error - error.mean(0)
        shuffled = apart[torch.randperm(rows, generator=torch.Generator().manual_seed(0)).to(apart.device)]
        whole = _pulled(output, slope, parameters)
        useful = _pulled(output, apart / rows, parameters)
        noise = _pulled(output, shuffled / rows, parameters)
    place = {id(parameter): index for index, parameter in enumerate(parameters)}
    layers = []
    for part, weight in zip(seen, weights, strict=True):
        index = place.get(id(weight))
        layers.append(_layer(part, *((whole[index], useful[index]) if index is not None else (0.0, 0.0))))
    strength, by_chance = (sum(norm**2 for norm in norms) for norms in (useful, noise))
    of_error = float(apart.double().square().sum())
    mean_square, variation = _spread(output.detach())
    everything = torch.tensor([mean_square, *whole], dtype=torch.float64)
    return Signal(
        layers=tuple(layers),
        output_mean_square=mean_square,
        output_variation=variation,
        loss=float(value.detach()),
        finite=bool(everything.isfinite().all()),
        speed=strength * rows / of_error if of_error > 0 else 0.0,
        alignment=log10(strength / by_chance) if strength > 0 and by_chance > 0 else 0.0,
    )


def _run(net: nn.Module, x: Any) -> tuple[list[_Seen], Tensor]:
    """A forward pass with its graph, and what the layers saw."""
    seen: list[_Seen] = []
    names = {module: name for name, module in net.named_modules()}
    activations = {net.get_submodule(item.name) for item in find_activations(net) if item.how == "module"}

    def note(module: nn.Module, inputs: tuple[Any, ...], made: Any) -> None:
        if not (inputs and isinstance(inputs[0], Tensor) and isinstance(made, Tensor)):
            return
        if module in activations:
            if seen and seen[-1].slopes is None and made is not inputs[0]:
                seen[-1].slopes = _slopes(inputs[0], made)
        elif all(part.module is not module for part in seen):
            seen.append(_Seen(names[module], module, inputs[0].detach(), made.detach()))

    hooked = [module for module in net.modules() if module in activations or weighs(module)]
    hooks = [module.register_forward_hook(note) for module in hooked]
    try:
        output = output_of(net, x)
    finally:
        for hook in hooks:
            hook.remove()
    if not seen or not output.requires_grad:
        raise UserError(f"diagnosis: {type(net).__name__} has no layer with weights that could be trained.")
    return seen, output


def output_of(net: nn.Module, x: Any) -> Tensor:
    """What a net gives: a tensor, or the `logits` in it.

    Raises:
        UserError: neither.
    """
    made = net(x)
    output = getattr(made, "logits", made)
    if not isinstance(output, Tensor):
        raise UserError(
            f"diagnosis: {type(net).__name__} gives {type(made).__name__}, not a tensor; wrap it in a module that"
            " gives its logits."
        )
    return output


def weighs(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim >= 2 and not isinstance(module, nn.Embedding)


def _slopes(given: Tensor, made: Tensor) -> Tensor | None:
    """The local slope of an elementwise activation; None where it is not to be had."""
    if given.shape != made.shape or not given.requires_grad:
        return None
    (slopes,) = torch.autograd.grad(made, given, torch.ones_like(made), retain_graph=True)
    return slopes


def _pulled(output: Tensor, direction: Tensor, parameters: list[nn.Parameter]) -> list[float]:
    """The norms of the direction's pull-back for each parameter."""
    found = torch.autograd.grad(output, parameters, direction, retain_graph=True, allow_unused=True)
    norms = [
        torch.zeros(()) if one is None else torch.linalg.vector_norm(one, dtype=torch.float64)
        for one in found
    ]
    return torch.stack([norm.double().cpu() for norm in norms]).tolist()


def _layer(part: _Seen, gradient: float, useful: float) -> Layer:
    mean_square, variation = _spread(part.given)
    mean = float(part.given.double().mean())
    dead = saturated = None
    if part.slopes is not None:
        dead = float((_units(part.slopes, part.module) == 0).all(0).double().mean())
        saturated = float((part.slopes.abs() < _FLAT).double().mean())
    weight = part.module.weight
    assert isinstance(weight, Tensor)
    return Layer(
        name=part.name,
        kind=type(part.module).__name__,
        mean=mean,
        deviation=sqrt(max(mean_square - mean**2, 0.0)),
        variation=variation,
        correlation=_correlation(part.given),
        dimensions=_dimensions(part.given),
        identical=_identical(_units(part.made, part.module)),
        dead=dead,
        saturated=saturated,
        weight=float(torch.linalg.vector_norm(weight.detach(), dtype=torch.float64)),
        gradient=gradient,
        useful=useful,
    )


def _spread(values: Tensor) -> tuple[float, float]:
    """The mean square, and the share of it that differs between instances."""
    flat = values.flatten(1).double()
    square = float(flat.square().mean())
    if not square > 0:
        return square, 0.0
    return square, float(flat.var(0, correction=0).mean()) / square


def _correlation(values: Tensor) -> float:
    """Mean cosine of all pairs of instances, from the sum of their directions."""
    flat = values.flatten(1).double()
    directions = flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-300)
    rows = len(flat)
    if rows < 2:
        return 1.0
    return float((directions.sum(0).square().sum() - directions.square().sum()) / (rows * (rows - 1)))


def _dimensions(values: Tensor) -> float:
    """The participation ratio of the directions in which instances differ."""
    flat = values[:_ROWS].flatten(1)
    flat = flat[:, :: max(1, ceil(flat.shape[1] / _COLUMNS))].double()
    flat = flat - flat.mean(0)
    products = flat @ flat.T
    total, squares = float(products.trace()), float(products.square().sum())
    return total**2 / squares if squares > 0 else 0.0


def _units(values: Tensor, layer: nn.Module) -> Tensor:
    """As `(instances and places, units)`."""
    if isinstance(layer, nn.modules.conv._ConvNd) and values.ndim > 2:
        values = values.movedim(1, -1)
    return values.flatten(0, -2)


def _identical(values: Tensor) -> float:
    """The share of units that equal another one for all inputs, to rounding."""
    if values.shape[1] < 2:
        return 0.0
    draw = torch.Generator().manual_seed(0)
    probe = torch.rand(len(values), generator=draw, dtype=torch.float64).to(values.device)
    prints = (probe @ values.double()).sort().values
    scale = float(values.double().abs().mean()) * sqrt(len(values)) + 1e-300
    same = prints.diff().abs() <= _SAME * scale
    none = same.new_zeros(1)
    return float((torch.cat([none, same]) | torch.cat([same, none])).double().mean())
