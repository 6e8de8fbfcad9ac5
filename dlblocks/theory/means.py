"""The Gaussian means that mean-field theory asks of an activation: by quadrature where each number is
mapped by itself, else from samples."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from math import sqrt
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from dlblocks.activations.width import width_ratio
from dlblocks.factory import activation as build_activation
from dlblocks.registry import Spec, name_of
from dlblocks.theory.checks import check_behaviour, check_parts
from dlblocks.theory.quadrature import (
    Function,
    breakpoints,
    conditional_nodes,
    kinks,
    nodes,
    slope,
    weighted,
)

# Features on which activations of several are tried and sampled.
_WIDTH = 64


class Moments(NamedTuple):
    """Of `phi(sqrt(q) z)`, z standard normal, for each q: `(*)`.

    Args:
        mean: `E[phi]`.
        square: `E[phi^2]`.
        slope: `E[phi'^2]`; for an activation of several features, the mean over its outputs of the squared
            norm of the output's gradient.
        growth: derivative of `square` with respect to q.
    """

    mean: Tensor
    square: Tensor
    slope: Tensor
    growth: Tensor


class Means(Protocol):
    """What theory asks of an activation."""

    def __hash__(self) -> int:
        """Of the object itself, so that what is found of it can be kept."""

    @property
    def jumps(self) -> bool:
        """Whether the function itself, not only its slope, jumps somewhere."""

    def moments(self, q: Tensor) -> Moments:
        """The means at each variance q."""

    def at_zero(self) -> tuple[float, float, float]:
        """`phi(0)`, its square, and `phi'(0)^2` as backpropagation takes it, where pre-activations are all 0; for an
        activation of several features, means over its outputs."""

    def products(self, q: float, c: float) -> tuple[float, float]:
        """`E[phi(u) phi(v)]` and `E[phi'(u) phi'(v)]` for u, v of variance q and correlation c."""


def means_of(
    activation: Spec | Callable[[Tensor], Tensor], features: int | None = None, count: int = 256
) -> Means:
    """By quadrature if each number is mapped by itself, which is tried out; else from samples.

    A module is taken as it is in evaluation, so rrelu has its mean slope.

    Args:
        activation: a name, a `{name: ..., params}` mapping, a module, or a function of tensors.
        features: how many it is given, if they act on one another; by default as many as for 64 outputs.
        count: a quarter of the samples.

    Raises:
        UserError: it holds a norm layer, dropout or weights, is random, or lets instances act on one another.
    """
    features = features or round(_WIDTH * width_ratio(activation))
    if callable(activation) and not isinstance(activation, (nn.Module, type)):
        function: Function = activation
        training = function
    else:
        function, training = plain_function(activation), _plain(activation)
        check_parts(training, name_of(activation))
    check_behaviour(function, training, features, name_of(activation))
    if is_elementwise(function):
        return ByQuadrature(function)
    return BySamples(function, 1.0, width=features, count=count)


def plain_function(activation: Spec) -> Function:
    """An activation as a function of double numbers, without gradients of its own, that leaves its input alone.

    Args:
        activation: a name, a `{name: ..., params}` mapping, or a module.
    """
    return _plain(activation).eval()


def _plain(activation: Spec) -> nn.Module:
    """A copy in double precision, in training, without gradients of its own, that leaves its input alone."""
    module = build_activation(activation).double().train().requires_grad_(False)
    for part in module.modules():
        if getattr(part, "inplace", False):
            setattr(part, "inplace", False)  # noqa: B010 - not every module has it
    return module


class ByQuadrature:
    """Of an elementwise function, to about 1e-9."""

    def __init__(self, function: Function) -> None:
        self._function = function
        self._breaks = breakpoints(function)
        self._kinks = kinks(function, self._breaks)

    @cached_property
    def jumps(self) -> bool:
        """Whether the function itself, not only its slope, jumps somewhere."""
        step = 1e-9 * self._kinks.abs().clamp(min=1.0)
        left, right = self._kinks - step, self._kinks + step
        rise = (self._function(right) - self._function(left)).detach().abs()
        steepest = torch.maximum(slope(self._function, left).abs(), slope(self._function, right).abs())
        return bool((rise > 1e-6 + 4 * step * steepest).any())

    def moments(self, q: Tensor) -> Moments:
        scale = q.sqrt()
        z, weights = nodes(self._breaks, scale)
        x = z * scale[..., None]
        values = self._function(x).detach()
        square = values.square()
        return Moments(
            weighted(values, weights),
            weighted(square, weights),
            weighted(slope(self._function, x).square(), weights),
            # The derivative of the normal density, so that it holds across jumps too.
            weighted(square * (z.square() - 1), weights) / (2 * q),
        )

    def at_zero(self) -> tuple[float, float, float]:
        zero = torch.zeros(1, dtype=torch.float64)
        value = float(self._function(zero).detach())
        return value, value**2, float(slope(self._function, zero)) ** 2

    def products(self, q: float, c: float) -> tuple[float, float]:
        scale = torch.tensor(q, dtype=torch.float64).sqrt()
        deviation = sqrt(max(0.0, 1 - c * c))
        # About a kink the mean over v changes within this deviation, narrow where c is near 1.
        about = self._kinks[:, None] + scale * deviation * torch.tensor([-8.0, -3, -1, 1, 3, 8])
        z, weights = nodes(torch.cat([self._breaks, about.flatten()]), scale)
        z, weights = z[weights > 1e-18], weights[weights > 1e-18]
        u = scale * z
        if deviation == 0.0:
            v, inner = c * u[:, None], torch.ones(len(u), 1, dtype=torch.float64)
        else:
            at, inner = conditional_nodes(self._breaks, float(scale), c * z, deviation)
            v = scale * (c * z[:, None] + deviation * at)
        first = self._function(u).detach() * weighted(self._function(v).detach(), inner)
        second = slope(self._function, u) * weighted(slope(self._function, v), inner)
        return float(weighted(first, weights)), float(weighted(second, weights))


class BySamples:
    """Of an activation of several features (maxout, GLU, softmax), from samples: to about a percent.

    For softmax and its kin the means depend on the number of features, which is 64 unless told.
    """

    jumps = False

    def __init__(self, function: Function, ratio: float, *, width: int = _WIDTH, count: int = 256) -> None:
        self._function = function
        draw = torch.Generator().manual_seed(0)
        shape = (2, count, round(width * ratio))
        first, second = torch.randn(shape, generator=draw, dtype=torch.float64)
        # Each sample with its mirror images, so that all odd means are 0, and of variance just 1.
        pairs = torch.stack(
            [torch.cat([first, -first, first, -first]), torch.cat([second, second, -second, -second])]
        )
        self._z = pairs / pairs.square().mean((1, 2), keepdim=True).sqrt()
        outputs = function(self._z[0, :1]).shape[-1]
        signs = torch.randint(0, 2, (4 * count, outputs), generator=draw, dtype=torch.float64)
        self._signs = 2 * signs - 1

    def moments(self, q: Tensor) -> Moments:
        rows = [torch.stack(self._moments(one)) for one in q.flatten()]
        return Moments(*torch.stack(rows, -1).reshape(4, *q.shape))

    def _moments(self, q: Tensor) -> tuple[Tensor, ...]:
        x = self._z[0] * q.sqrt()
        values, pulled = self._values(x)
        # d/dq of phi^2(sqrt(q) z) is phi * phi' z / sqrt(q); by a small step, as phi has several features.
        step = 1e-4
        later = self._function(x * sqrt(1 + step)).detach()
        return (
            values.mean(),
            values.square().mean(),
            pulled.square().sum(-1).mean() / values.shape[-1],
            (later.square().mean() - values.square().mean()) / (step * q),
        )

    def at_zero(self) -> tuple[float, float, float]:
        values, pulled = self._values(torch.zeros_like(self._z[0]))
        steep = pulled.square().sum(-1).mean() / values.shape[-1]
        return float(values.mean()), float(values.square().mean()), float(steep)

    def products(self, q: float, c: float) -> tuple[float, float]:
        deviation = sqrt(max(0.0, 1 - c * c))
        first, pulled_first = self._values(sqrt(q) * self._z[0])
        second, pulled_second = self._values(sqrt(q) * (c * self._z[0] + deviation * self._z[1]))
        slopes = (pulled_first * pulled_second).sum(-1).mean() / first.shape[-1]
        return float((first * second).mean()), float(slopes)

    def _values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The values, and random signs pulled back: the mean square of that is the squared norm of the
        Jacobian (Hutchinson 1990)."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = self._function(x)
            return y.detach(), torch.autograd.grad((y * self._signs).sum(), x)[0]


def is_elementwise(function: Function) -> bool:
    """Whether each number gives the same alone as among others."""
    x = torch.linspace(-2.5, 3.0, 12, dtype=torch.float64)[None]
    with torch.no_grad():
        try:
            alone = torch.cat([function(one) for one in torch.split(x, 1, dim=-1)], -1)
            among = function(x)
        except (ValueError, RuntimeError):  # maxout and GLU take no single number
            return False
    return alone.shape == among.shape and bool(torch.allclose(alone, among, rtol=1e-9, atol=1e-12))
