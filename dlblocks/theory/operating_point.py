"""Where on its curve an activation should work so that deep nets of it pass signals and gradients.

A layer is taken as `h = W (phi(h') - a m) + mu` with `m = E[phi]`, random W, and h of mean mu and variance q.
Three things are free: mu, q and a, the share of the activation's mean that the biases take away. They are chosen
so that a layer changes nothing in the mean: not the size of gradients (chi), not the size of a signal that is a
little too large or too small, not the angle of two inputs. `a = 0`, `mu = 0` and `q = 1` is what `he_normal` does,
and right for relu. Without biases a sigmoid's mean, being most of its output, makes all inputs alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import inf, log, pi

import torch
from torch import Tensor

from dlblocks.activations.width import width_ratio
from dlblocks.registry import Spec
from dlblocks.theory.means import BySamples, is_elementwise, plain_function
from dlblocks.theory.quadrature import Function, slope

_MEANS = (0.0, -0.5, 0.5, -1.0, 1.0, -2.0, 2.0, -3.0, 3.0)
_VARIANCES = (0.0005, 0.002, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.5, 2.0, 4.0, 9.0, 25.0)
# What a unit of distance from (0, 1) may cost in distortion.
_NEARNESS = 0.02
# Angles are followed at this correlation.
_ALIKE = 0.9
# A signal so many times larger in variance, as outliers of the data are, must not grow further.
_FAR = 16.0
# Terms of the Hermite series; what is left out has at most 0.9^64 = 0.1 % of the variance.
_TERMS = 64


@dataclass(frozen=True)
class OperatingPoint:
    """Where pre-activations should lie, and what biases do about the activation's mean.

    Args:
        mean: mu, of the pre-activations.
        variance: q, of the pre-activations.
        centring: a, the share of the activation's mean that the biases of the next layer take away.
        distortion: the largest of |log chi|, the log of the growth of a signal of variance 16 q, and the log of the
            growth of the distance of two inputs of correlation 0.9, for each layer; 0 is best.
    """

    mean: float
    variance: float
    centring: float
    distortion: float


def operating_point(activation: Spec, tolerance: float = 0.02) -> OperatingPoint:
    """The point nearest to `(0, 1)` at which a layer distorts little enough, or the one that distorts least.

    Found on a grid of means and variances, to about a percent.

    Args:
        activation: a name, a `{name: ..., params}` mapping, or a module.
        tolerance: how much distortion is little: with 0.02, a factor of e in 50 layers.

    >>> point = operating_point("relu")
    >>> point.mean, point.variance, round(point.centring, 2)
    (0.0, 1.0, 0.0)
    """
    function = plain_function(activation)
    q = torch.tensor(_VARIANCES, dtype=torch.float64)
    if is_elementwise(function):
        return _nearest(_MEANS, _on_a_line(function, q), tolerance)
    # Of activations of several features (maxout, GLU, softmax) samples tell, which takes longer.
    ratio = float(width_ratio(activation))
    centred = _nearest((0.0,), [_from_samples(BySamples(function, ratio), q)], tolerance)
    if centred.distortion <= tolerance:
        return centred
    rows = [_from_samples(BySamples(_plus(function, mean), ratio), q) for mean in _MEANS]
    return _nearest(_MEANS, rows, tolerance)


def _nearest(means: Sequence[float], rows: Sequence[Sequence[Tensor]], tolerance: float) -> OperatingPoint:
    """The best point, from what each mean gives at each variance."""
    best, least = OperatingPoint(0.0, 1.0, 0.0, inf), inf
    tried = [
        (abs(mean) + abs(log(q)), row, i) for row, mean in enumerate(means) for i, q in enumerate(_VARIANCES)
    ]
    for distance, row, i in sorted(tried):
        share, distortion = _best_share([float(values[i]) for values in rows[row]], _VARIANCES[i])
        point = OperatingPoint(means[row], _VARIANCES[i], share, distortion)
        if distortion <= tolerance:
            return point
        if distortion + _NEARNESS * distance < least:
            best, least = point, distortion + _NEARNESS * distance
    return best


def _on_a_line(function: Function, q: Tensor) -> list[tuple[Tensor, ...]]:
    """For each mean: E[phi], E[phi^2], E[phi'^2] at each q, the first two at 16 q, and E[phi(u) phi(v)] at
    correlation 0.9, of an elementwise activation."""
    z = _line()
    mean = torch.tensor(_MEANS, dtype=torch.float64)[:, None, None]
    x = mean + q.sqrt()[:, None] * z
    values, slopes = function(x).detach(), slope(function, x)
    far = function(mean + (_FAR * q).sqrt()[:, None] * z).detach()
    density = torch.exp(-z.square() / 2) / (2 * pi) ** 0.5 * (z[1] - z[0])
    series = (values * density) @ _hermite().T
    rest = ((values.square() @ density) - series.square().sum(-1)).clamp(min=0.0)
    powers = _ALIKE ** torch.arange(_TERMS, dtype=torch.float64)
    return list(
        zip(
            values @ density,
            values.square() @ density,
            slopes.square() @ density,
            far @ density,
            far.square() @ density,
            series.square() @ powers + _ALIKE**_TERMS * rest,
            strict=True,
        )
    )


def _from_samples(means: BySamples, q: Tensor) -> tuple[Tensor, ...]:
    """The same of an activation of several features."""
    at, far = means.moments(q), means.moments(_FAR * q)
    products = torch.tensor([means.products(float(one), _ALIKE)[0] for one in q], dtype=torch.float64)
    return at.mean, at.square, at.slope, far.mean, far.square, products


def _plus(function: Function, mean: float) -> Function:
    return lambda x: function(x + mean)


def _best_share(found: Sequence[float], q: float) -> tuple[float, float]:
    """The share of the mean to take away, and the distortion with it."""
    mean, square, steep, far_mean, far_square, product = found
    spread = square - mean**2
    if not (1e-12 < spread < inf and 1e-12 < steep < inf):
        return 0.0, inf
    shares = [0.0, 1.0]
    if mean and spread < q * steep < square:
        shares.append(1 - ((q * steep - spread) / mean**2) ** 0.5)  # chi is 1 here

    def distortion(share: float) -> float:
        off = share * mean
        scale = q / (spread + (mean - off) ** 2)
        growth = scale / (_FAR * q) * (far_square - 2 * off * far_mean + off**2)
        alike = scale / q * (product - 2 * off * mean + off**2)
        apart = (1 - alike) / (1 - _ALIKE)
        return max(abs(log(scale * steep)), *(log(max(value, 1.0)) for value in (growth, apart)))

    return min(((share, distortion(share)) for share in shares), key=lambda found: found[1])


@cache
def _line() -> Tensor:
    """Middles of cells of a standard normal's range."""
    cell = 2.0**-7
    return torch.arange(-8, 8, cell, dtype=torch.float64) + cell / 2


@cache
def _hermite() -> Tensor:
    """The normalised Hermite polynomials on the line: (terms, points)."""
    z = _line()
    found = [torch.ones_like(z), z]
    for k in range(1, _TERMS - 1):
        found.append((z * found[k] - k**0.5 * found[k - 1]) / (k + 1) ** 0.5)
    return torch.stack(found)
