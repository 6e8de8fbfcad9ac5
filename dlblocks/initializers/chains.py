"""Calls of functions and modules that follow one another in a run, tried on other numbers: are they an activation?"""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from dlblocks.theory.means import is_elementwise, plain_function

# What is nearer to a line, as a share, is taken for one.
_STRAIGHT = 0.01
# Features on which functions that mix them are tried, as in theory.
_FEATURES = 64

Kind: TypeAlias = Literal["line", "curve", "neither"]


@dataclass(frozen=True)
class Chain:
    """Calls that lead from one tensor of a run to another; none, to the tensor itself.

    Args:
        key: equal for chains that compute the same.
        function, args, kwargs: the last call; slots in its arguments hold the calls before.
        in_place: whether the last call works in place.
        length: how many calls.
        curved: whether it is an activation.
        ratio: features that it takes for each that it gives.
    """

    key: Hashable = None
    function: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    in_place: bool = False
    length: int = 0
    curved: bool = False
    ratio: float = 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """The same calls on other numbers, which stay as they are."""
        return self._repeated(x).to(x.dtype)

    def _repeated(self, x: Tensor) -> Tensor:
        if self.function is None:
            return x

        def filled(value: Any) -> Any:
            if not isinstance(value, Slot):
                return value
            given = value.chain._repeated(x)
            return given.clone() if self.in_place else given

        named = {name: filled(value) for name, value in self.kwargs.items()}
        made: Tensor = self.function(*map(filled, self.args), **named)
        # Parameters of channels may bring dimensions of their own.
        if made.numel() == x.numel():
            made = made.reshape(x.shape)
        return made.to(x.dtype) if made.is_floating_point() else made


@dataclass(frozen=True)
class Slot:
    """Stands for a tensor of the run in the arguments of a call."""

    chain: Chain


class Activation(nn.Module):
    """A chain as theory takes it."""

    def __init__(self, chain: Chain) -> None:
        super().__init__()
        self.chain = chain
        self.width_ratio = chain.ratio

    def forward(self, x: Tensor) -> Tensor:
        return self.chain(x)


def kind_of(chain: Chain) -> Kind:
    """Whether it maps each number by itself, always to the same, and then whether along a line or a curve."""
    row = torch.linspace(-2.5, 2.5, 256, dtype=torch.float64)[None]
    far = torch.tensor([[-128.0, -32.0, -8.0, 8.0, 32.0, 128.0]], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            made = chain(row)
            if not torch.equal(made, chain(row)) or not made.isfinite().all() or not is_elementwise(chain):
                return "neither"
            y, x = torch.cat([made, chain(far)], -1), torch.cat([row, far], -1)
        except Exception:  # functions that take no row of numbers fail each in its own way
            return "neither"
    slope = (made[0, -1] - made[0, 0]) / 5
    line = made.mean() + slope * x
    near = (y - line).abs() <= _STRAIGHT * torch.maximum((slope * x).abs(), line.abs())
    return "line" if bool(near.all()) else "curve"


def maps_features(chain: Chain) -> bool:
    """Whether it takes rows of features, and gives rows of as many as its ratio says."""
    try:
        made = chain(torch.zeros(2, round(_FEATURES * chain.ratio), dtype=torch.float64))
    except Exception:  # as of a softmax over places
        return False
    return made.shape == (2, _FEATURES)


def number(constant: Tensor) -> Tensor | None:
    """What a constant is to a single number: the mean of its own; None of indices and masks."""
    values = constant.detach().cpu()
    if constant.is_floating_point():
        return values.double().mean()
    return values.reshape(()) if constant.numel() == 1 and not constant.is_complex() else None


def look(module: nn.Module) -> Hashable:
    """Equal for modules that compute the same."""
    parts = [repr(type(module)), repr(module)]
    for part in module.modules():
        settings = vars(part).items()
        parts += [f"{name}={value}" for name, value in settings if isinstance(value, (bool, int, float, str))]
    parts += [str(float(tensor.double().mean())) for tensor in (*module.parameters(), *module.buffers())]
    return tuple(parts)


def copied(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """A module as a function of double numbers; parameters that differ between channels have their mean."""
    bare = copy.copy(module)
    bare._forward_hooks, bare._forward_pre_hooks = OrderedDict(), OrderedDict()
    function = plain_function(bare)
    assert isinstance(function, nn.Module)
    for tensor in (*function.cpu().parameters(), *function.buffers()):
        if tensor.is_floating_point() and tensor.numel() > 1:
            tensor.data = tensor.data.mean().reshape([1] * tensor.ndim)
    return function
