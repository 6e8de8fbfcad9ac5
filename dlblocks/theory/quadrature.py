"""Gaussian means of functions with kinks and jumps, to nearly the last digit.

Gauss-Hermite quadrature takes its function for a polynomial: with 20 nodes it gives relu's `E[phi'^2]` at a
gain of sqrt(2) as 0.87 or 1.13, not 1. Here the line is cut where the function is not smooth, which is found
from the function itself, and each piece is integrated by Gauss-Legendre.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import inf, pi, sqrt
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

Function: TypeAlias = Callable[[Tensor], Tensor]

_NODES = 16
# A piece is smooth enough when the last Legendre coefficients are this small a part of its largest value ...
_TOLERANCE = 1e-10
# ... or this small at all: 1 + erf(x) and the like have lost their digits where they are near zero.
_NOISE = 1e-13
# The narrowest piece, as a part of its distance from 0, or of 1.
_FINEST = 2.0**-44
# Beyond, the normal density underflows.
_EDGE = 38.0


def breakpoints(function: Function) -> Tensor:
    """The ends of the pieces between which a function and its derivative are smooth, ascending, with 0.

    Pieces are halved until a polynomial of degree 15 fits. Where that never happens is a kink or a jump; the
    pieces are then made anew from there. Beyond +-1024 nothing is looked for, nor between the nodes: the
    function must be smooth there on the scale of its distance from 0.

    >>> kinks = breakpoints(torch.nn.functional.relu6)
    >>> [point in kinks for point in (0.0, 6.0)]
    [True, True]
    """
    powers = 2.0 ** torch.arange(-1, 11, dtype=torch.float64)
    start = torch.cat([-powers.flip(0), torch.zeros(1, dtype=torch.float64), powers])
    # A kink close to an end has no node between: a second cut of the line has its ends elsewhere.
    other = 1.37 * start + 0.1
    found = torch.cat([_run_middles(_refined(function, ends)) for ends in (start, other)]).sort().values
    # Kinks are round numbers mostly; hit exactly, they leave nothing to cut again.
    round_ = (found * 2**20).round() / 2**20
    found = torch.where((found - round_).abs() <= 1e-12 * found.abs().clamp(min=1.0), round_, found)
    own = (found[:, None] - start).abs().amin(1) <= 1e-12 * found.abs().clamp(min=1.0)
    twice = found.diff(prepend=found.new_full((1,), -inf)) <= 1e-12 * found.abs().clamp(min=1.0)
    return _refined(function, torch.cat([start, found[~own & ~twice]]))


def kinks(function: Function, breaks: Tensor) -> Tensor:
    """Those of the breakpoints at which the function or its derivative is not smooth."""
    width = 2.0**-10 * breaks.abs().clamp(min=1.0)
    at, _ = _legendre()
    ends = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    return breaks[
        _rough(function, breaks[:, None] + width[:, None] * at, breaks[:, None] + width[:, None] * ends)
    ]


def nodes(breaks: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes `z` and weights of the mean `E[f(scale * z)]` over a standard normal z.

    Args:
        breaks: ends of the pieces of f.
        scale: standard deviations, of any shape `(*)`, above 0.

    Returns:
        Both `(*, nodes)`; a weight of 0 where a piece is beyond the reach of the normal density.
    """
    return _between(breaks / scale[..., None])


def conditional_nodes(breaks: Tensor, scale: float, mean: Tensor, deviation: float) -> tuple[Tensor, Tensor]:
    """Nodes and weights of `E[f(scale * (mean + deviation * z))]`, for each `mean` of `(*)`: `(*, nodes)`."""
    return _between((breaks / scale - mean[..., None]) / deviation)


def slope(function: Function, x: Tensor) -> Tensor:
    """The derivative at each point, by autograd."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = function(x)
        if not y.requires_grad:
            return torch.zeros_like(x)
        return torch.autograd.grad(y.sum(), x)[0]


def weighted(values: Tensor, weights: Tensor) -> Tensor:
    """The sum over the last dimension; what has no weight is left out also where it overflows."""
    return torch.where(weights > 0, values * weights, 0.0).sum(-1)


def _between(cuts: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights of a standard normal on pieces that end at the cuts and are at most 2 wide."""
    own = torch.tensor([-_EDGE, -28, -20, *range(-14, 15, 2), 20, 28, _EDGE], dtype=torch.float64)
    ends = torch.cat([cuts.clamp(-_EDGE, _EDGE), own.expand(*cuts.shape[:-1], -1)], -1).sort(-1).values
    at, weight = _legendre()
    half = ends.diff(dim=-1)[..., None] / 2
    z = (ends[..., :-1, None] + half + half * at).flatten(-2)
    density = torch.exp(-z.square() / 2) / sqrt(2 * pi)
    return z, (half * weight).flatten(-2) * density


def _refined(function: Function, ends: Tensor) -> Tensor:
    """Halve all pieces that no polynomial fits, down to the finest width."""
    ends = ends.sort().values
    done = [ends]
    left, right = ends[:-1], ends[1:]
    while len(left):
        at, _ = _legendre()
        x = (left + right)[:, None] / 2 + (right - left)[:, None] / 2 * at
        finest = _FINEST * torch.maximum(left.abs(), right.abs()).clamp(min=1.0)
        # The outer nodes stand off the ends by half a percent of the piece, where a jump could hide.
        inside = torch.minimum(finest, (right - left) / 4)
        rough = _rough(function, x, torch.stack([left + inside, right - inside], -1))
        wide = right - left > finest
        left, right = left[rough & wide], right[rough & wide]
        middle = (left + right) / 2
        done.append(middle)
        left, right = torch.cat([left, middle]), torch.cat([middle, right])
    return torch.cat(done).sort().values


def _rough(function: Function, x: Tensor, ends: Tensor) -> Tensor:
    """Whether no polynomial fits the function or its derivative at the nodes x and the ends of each piece."""
    return ~(
        _smooth(function(x).detach(), function(ends).detach())
        & _smooth(slope(function, x), slope(function, ends))
    )


def _smooth(values: Tensor, ends: Tensor) -> Tensor:
    """Whether the values at the nodes of each piece are those of a polynomial that goes on to its ends;
    overflow is let be."""
    tail = (values @ _last_coefficients()).abs().amax(-1)
    off = (values @ _to_the_ends() - ends).abs().amax(-1)
    largest = values.abs().amax(-1)
    allowed = _TOLERANCE * largest + _NOISE
    return ~(largest.isfinite() & off.isfinite()) | ((tail <= allowed) & (off <= 100 * allowed))


def _run_middles(ends: Tensor) -> Tensor:
    """The middles of the runs of tiny pieces: as near to the kinks in them as can be."""
    tiny = ends.diff() <= 2 * _FINEST * ends[1:].abs().clamp(min=1.0)
    change = torch.cat([torch.zeros(1), tiny.float(), torch.zeros(1)]).diff()
    return (ends[change == 1] + ends[change == -1]) / 2


@cache
def _legendre() -> tuple[Tensor, Tensor]:
    at, weight = np.polynomial.legendre.leggauss(_NODES)
    return torch.from_numpy(at), torch.from_numpy(weight)


@cache
def _last_coefficients() -> Tensor:
    """From values at the nodes to the last four Legendre coefficients."""
    at, weight = np.polynomial.legendre.leggauss(_NODES)
    polynomials = np.polynomial.legendre.legvander(at, _NODES - 1)
    factors = (2 * np.arange(_NODES) + 1) / 2
    return torch.from_numpy((weight[:, None] * polynomials * factors)[:, -4:].copy())


@cache
def _to_the_ends() -> Tensor:
    """From values at the nodes to those of the same polynomial at -1 and 1."""
    at, weight = np.polynomial.legendre.leggauss(_NODES)
    factors = (2 * np.arange(_NODES) + 1) / 2
    at_ends = np.polynomial.legendre.legvander(np.array([-1.0, 1.0]), _NODES - 1)
    to_coefficients = (np.polynomial.legendre.legvander(at, _NODES - 1) * weight[:, None]) * factors
    return torch.from_numpy(to_coefficients @ at_ends.T)
