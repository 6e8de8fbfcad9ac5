"""What one batch shows of a net: the signal that reaches each layer, and the gradient that comes back.

Beside the gradient of the loss g, two more are pulled back: `J^T u`, where u is the loss's gradient at the net's
outputs less its mean over the batch, and `J^T u'` with u shuffled over the instances. The first is what the net can
learn of how inputs differ: with `Theta = J J^T` (the neural tangent kernel, Jacot et al. 2018, arXiv:1806.07572),
`|J^T u|^2 / |u|^2` is the speed at which gradient descent reduces u. The second is what it would learn of labels
drawn at random: where both are alike, inputs of one class have nothing in common for the net (chaos).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, hypot, log10, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from dlblocks.diagnosis.batch import output_of
from dlblocks.errors import UserError, first_line
from dlblocks.probing import probed
from dlblocks.surgery import find_activations
from dlblocks.theory.structure import directions

LossFunction = Callable[[Tensor, Tensor], Tensor]


class LossError(UserError):
    """The loss does not take what the net gives, or the targets."""


# A local slope below this is saturated.
_FLAT = 0.01
_SAME = 1e-6
# So many instances and units tell in how many directions inputs differ.
_ROWS, _COLUMNS = 64, 4096
# Weights of these do not pass a signal on from units to units.
_NO_LAYERS = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm, ParametrizationList)


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
        output: root mean square of what it gives, which is what an activation behind it takes.
        weight: norm of its weights.
        gradient: norm of the loss's gradient by its weights; None if they are not trained.
        useful: norm of the part of that gradient that tells inputs apart; None if they are not trained.
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
    output: float
    weight: float
    gradient: float | None
    useful: float | None
    update: float | None = None


@dataclass(frozen=True)
class Signal:
    """What one batch shows of a net.

    Args:
        layers: in the order in which the batch meets them.
        output_mean_square, output_variation: of what the net gives; the share that differs between inputs.
        loss: of the batch.
        finite: whether all outputs and gradients are finite numbers.
        useful: norm of `J^T u` over the number of instances, by all that is trained: what can be learnt of how inputs
            differ.
        speed: `|J^T u|^2 / |u|^2` over the number of instances: what gradient descent takes off the error for
            each unit of learning rate.
        alignment: log10 of `|J^T u|^2 / |J^T u'|^2`; about 0 if the labels might as well be random.
    """

    layers: tuple[Layer, ...]
    output_mean_square: float
    output_variation: float
    loss: float
    finite: bool
    useful: float
    speed: float
    alignment: float


@dataclass
class _Seen:
    """What hooks saw of a layer."""

    name: str
    module: nn.Module
    given: Tensor
    made: Tensor | None = None
    slopes: Tensor | None = None


def measure(net: nn.Module, x: Any, y: Tensor, loss: LossFunction) -> Signal:
    """Run a batch through a net and back. Weights, buffers, modes and random states stay as they were.

    Args:
        net: any module that gives a tensor for `net(x)`.
        x: a batch of inputs.
        y: its targets.
        loss: `loss(output, y)`, a number.

    Raises:
        UserError: the net gives no tensor, has no layer with weights, or nothing in it can be trained.
        LossError: the loss does not take what it gives.
    """
    with probed(net, training=True, gradients=True):
        seen, output = _run(net, x)
        parameters = [p for p in net.parameters() if p.requires_grad]
        value = _loss_of(output, y, loss)
        (slope,) = torch.autograd.grad(value, output, retain_graph=True)
        rows = output.shape[0]
        error = slope.detach() * rows
        apart = error - error.mean(0)
        shuffled = apart[torch.randperm(rows, generator=torch.Generator().manual_seed(0)).to(apart.device)]
        whole = _pulled(output, slope, parameters)
        useful = _pulled(output, apart / rows, parameters)
        noise = _pulled(output, shuffled / rows, parameters)
        place = {id(parameter): index for index, parameter in enumerate(parameters)}
        layers = [_layer(part, rows, place, whole, useful) for part in seen]
    strength, by_chance = (sum(norm**2 for norm in norms) for norms in (useful, noise))
    of_error = float(apart.double().square().sum())
    mean_square, variation = _spread(_by_instance(output.detach(), rows))
    everything = torch.tensor([mean_square, *whole], dtype=torch.float64)
    return Signal(
        layers=tuple(layers),
        output_mean_square=mean_square,
        output_variation=variation,
        loss=float(value.detach()),
        finite=bool(everything.isfinite().all()),
        useful=sqrt(strength),
        speed=strength * rows / of_error if of_error > 0 else 0.0,
        alignment=log10(strength / by_chance) if strength > 0 and by_chance > 0 else 0.0,
    )


def _loss_of(output: Tensor, y: Tensor, loss: LossFunction) -> Tensor:
    try:
        value = loss(output, y)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shapes = f"outputs {tuple(output.shape)} and targets {tuple(y.shape)}"
        raise LossError(f"loss: does not take {shapes}: {first_line(error)}") from error
    if value.numel() != 1:
        raise LossError(f"loss: gives {tuple(value.shape)} numbers, and one is needed: reduction=mean.")
    return value.reshape(())


def _run(net: nn.Module, x: Any) -> tuple[list[_Seen], Tensor]:
    """A forward pass with its graph, and what the layers saw, in the order in which they were called."""
    seen: list[_Seen] = []
    names = {module: name for name, module in net.named_modules()}
    activations = {net.get_submodule(item.name) for item in find_activations(net) if item.how == "module"}

    def called(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = first_tensor((*args, *kwargs.values()))
        if given is not None and all(part.module is not module for part in seen):
            seen.append(_Seen(names[module], module, given.detach()))

    def gave(module: nn.Module, _: Any, made: Any) -> None:
        part = next((part for part in seen if part.module is module), None)
        if part is not None and part.made is None:
            made = first_tensor(made)
            part.made = None if made is None else made.detach()

    def sloped(_: nn.Module, inputs: tuple[Any, ...], made: Any) -> None:
        given = first_tensor(inputs)
        if given is not None and isinstance(made, Tensor) and seen and seen[-1].slopes is None:
            seen[-1].slopes = _slopes(given, made)

    layers = [module for module in net.modules() if weighs(module) and module not in activations]
    hooks = [
        *(layer.register_forward_pre_hook(called, with_kwargs=True) for layer in layers),
        *(layer.register_forward_hook(gave) for layer in layers),
        *(activation.register_forward_hook(sloped) for activation in activations),
    ]
    # An activation that writes over its inputs has no slope to be seen afterwards.
    writing = [activation for activation in activations if getattr(activation, "inplace", None) is True]
    for activation in writing:
        activation.inplace = False  # type: ignore[assignment]
    try:
        output = output_of(net, x)
    finally:
        for activation in writing:
            activation.inplace = True  # type: ignore[assignment]
        for hook in hooks:
            hook.remove()
    seen = [part for part in seen if part.made is not None]
    if not seen:
        raise UserError(f"diagnosis: {type(net).__name__} calls no layer with weights for this batch.")
    if not output.requires_grad:
        raise UserError(
            f"diagnosis: {type(net).__name__} has nothing to train: its output depends on no parameter."
        )
    return seen, output


def first_tensor(values: Any) -> Tensor | None:
    """The first tensor of floating-point numbers among values, as layers take and give them."""
    if isinstance(values, Tensor):
        return values if values.is_floating_point() and values.ndim else None
    found = (first_tensor(value) for value in values) if isinstance(values, (tuple, list)) else iter(())
    return next((value for value in found if value is not None), None)


def weighs(module: nn.Module) -> bool:
    """Whether a module is a layer: it has weights of two or more dimensions, and no layer inside. Those of an
    embedding or a norm are none."""
    if isinstance(module, _NO_LAYERS) or not matrices(module):
        return False
    inside = (part for part in module.modules() if part is not module)
    return isinstance(module, nn.MultiheadAttention) or not any(weighs(part) for part in inside)


def matrices(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of two or more dimensions that are a module's own, or that its own are computed from."""
    own = list(module.parameters(recurse=False))
    parametrized = getattr(module, "parametrizations", None)
    if isinstance(parametrized, nn.Module):
        own += parametrized.parameters()
    return [parameter for parameter in own if parameter.ndim > 1]


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


def _layer(part: _Seen, rows: int, place: dict[int, int], whole: list[float], useful: list[float]) -> Layer:
    given, made = _by_instance(part.given, rows), part.made
    assert made is not None
    mean_square, variation = _spread(given)
    mean = float(given.double().mean())
    dead = saturated = None
    if part.slopes is not None:
        dead = float((_units(part.slopes, part.module) == 0).all(0).double().mean())
        saturated = float((part.slopes.abs() < _FLAT).double().mean())
    weights = matrices(part.module)
    trained = [place[id(weight)] for weight in weights if id(weight) in place]
    return Layer(
        name=part.name,
        kind=type(part.module).__name__,
        mean=mean,
        deviation=sqrt(max(mean_square - mean**2, 0.0)),
        variation=variation,
        correlation=_correlation(given),
        dimensions=_dimensions(given),
        identical=_identical(_units(made, part.module)),
        dead=dead,
        saturated=saturated,
        output=float(made.double().square().mean().sqrt()),
        weight=norm_of(weights),
        gradient=hypot(*(whole[index] for index in trained)) if trained else None,
        useful=hypot(*(useful[index] for index in trained)) if trained else None,
    )


def norm_of(tensors: Sequence[Tensor]) -> float:
    """The norm of all numbers in some tensors."""
    return hypot(*(float(torch.linalg.vector_norm(t.detach(), dtype=torch.float64)) for t in tensors))


def _by_instance(values: Tensor, rows: int) -> Tensor:
    """As `(instances, numbers)`, of a batch of so many: what one layer takes may have its time first, or no instances
    at all."""
    if values.ndim == 1:
        return values[:, None] if len(values) == rows else values[None]
    if values.shape[0] != rows and values.ndim > 2 and values.shape[1] == rows:
        values = values.movedim(1, 0)
    return values.flatten(1)


def _spread(values: Tensor) -> tuple[float, float]:
    """The mean square, and the share of it that differs between instances."""
    flat = values.double()
    square = float(flat.square().mean())
    if not square > 0:
        return square, 0.0
    return square, float(flat.var(0, correction=0).mean()) / square


def _correlation(values: Tensor) -> float:
    """Mean cosine of all pairs of instances, from the sum of their directions."""
    flat = values.double()
    directions = flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-300)
    rows = len(flat)
    if rows < 2:
        return 1.0
    return float((directions.sum(0).square().sum() - directions.square().sum()) / (rows * (rows - 1)))


def _dimensions(values: Tensor) -> float:
    """In how many directions instances differ, by some of them and of their numbers."""
    flat = values[:_ROWS]
    flat = flat[:, :: max(1, ceil(flat.shape[1] / _COLUMNS))].double()
    return directions(flat)


def _units(values: Tensor, layer: nn.Module) -> Tensor:
    """As `(instances and places, units)`."""
    if isinstance(layer, nn.modules.conv._ConvNd) and values.ndim > 2:
        values = values.movedim(1, -1)
    return values.reshape(-1, values.shape[-1])


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
