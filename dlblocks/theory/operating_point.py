"""Where on its curve an activation should work so that deep nets of it pass signals and gradients.

A layer is taken as `h = W (phi(h') - a m) + mu` with `m = E[phi]`, random W, and h of mean mu and variance q.
Three things are free: mu, q and a, the share of the activation's mean that the biases take away. They are chosen
so that a layer changes nothing in the mean: not the size of gradients (chi), not the size of a signal that is a
little too large or too small, not the angle of two inputs. `a = 0`, `mu = 0` and `q = 1` is what `he_normal` does,
and right for relu. Without biases a sigmoid's mean, being most of its output, makes all inputs alike.

Where an activation outgrows every line, as exp and relu^2 do, random layers make what is large larger, whatever their
scale. There each unit is passed on by itself, with its sign turned: `h = mu - g (phi(h') - m)`. For a small signal u
such a layer is `-u + a u^2 + b u^3`, and two of them `u - 2 (a^2 + b) u^3`: the squares cancel, and what is left holds
back what is large, since `a^2 + b` is -1/6 of phi's Schwarzian derivative, which is negative for powers and exponentials.
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
# What relu gives in the mean after he_normal: rates that suit it suit others of this mean.
_USUAL_MEAN = (2 * pi) ** -0.5
# Larger than the log of any mean output, so that points that distort too much come last.
_WORSE = 1e3
# So many times may one layer make it larger that turns, of which the next takes back most: else nothing but outliers is
# seen of the batch.
_ONCE = 3.0
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
            growth of the distance of two inputs of correlation 0.9, for each layer; 0 is best. Of activations
            that turn, half of that of two layers, without angles.
        turns: 1 or -1, by which a layer between two of the activation should multiply each unit, in place of random
            weights; None where those do.
    """

    mean: float
    variance: float
    centring: float
    distortion: float
    turns: int | None = None


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
    if is_elementwise(function) and _outgrows_lines(function):
        return _turning(function, q, tolerance)
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


def _outgrows_lines(function: Function) -> bool:
    """Whether the activation grows more than threefold faster than a line between 100 and 10,000."""
    near, far = (
        float(function(torch.tensor([-x, x], dtype=torch.float64)).detach().abs().max()) for x in (1e2, 1e4)
    )
    return far > 300 * near


def _turning(function: Function, q: Tensor, tolerance: float) -> OperatingPoint:
    """Of the largest variance at each mean that distorts little enough, the one whose mean output is nearest to the
    usual one; where all distort more, the point that distorts least."""
    outputs, turns, distortions = (values.tolist() for values in _two_turned(function, q))
    best, least = OperatingPoint(0.0, 1.0, 1.0, inf), inf
    for row, mean in enumerate(_MEANS):
        for i, variance in sorted(enumerate(_VARIANCES), reverse=True):
            distortion = distortions[row][i]
            little = distortion <= tolerance
            unusual = abs(log(max(abs(outputs[row][i]), 1e-12) / _USUAL_MEAN))
            order = unusual if little else _WORSE + distortion
            if order < least:
                best, least = OperatingPoint(mean, variance, 1.0, distortion, int(turns[row][i])), order
            if little:
                break
    return best


def _two_turned(function: Function, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """At each mean and q: E[phi], the turn, and the distortion of each of two layers that turn."""
    z, density = _line(), _density()
    mean = torch.tensor(_MEANS, dtype=torch.float64)[:, None, None]
    x = mean + q.sqrt()[:, None] * z
    values = function(x).detach()
    given = values @ density
    turns = -torch.sign(slope(function, x) @ density)

    def spread(values: Tensor) -> Tensor:
        return values.square() @ density - (values @ density).square()

    gain = turns * (q / spread(values).clamp(min=1e-300)).sqrt()

    def twice(x: Tensor) -> Tensor:
        return function(mean + gain[..., None] * (function(x) - given[..., None]))

    far = mean + (_FAR * q).sqrt()[:, None] * z
    kept = spread(twice(x).detach())
    chi = (q * (slope(twice, x).square() @ density) / kept).log().abs()
    growth = (spread(twice(far).detach()) / (_FAR * kept)).log().clamp(min=0.0)
    distortion = torch.maximum(chi, growth) / 2
    distortion[spread(function(far).detach()) > _ONCE * _FAR * spread(values)] = inf
    return given, turns, torch.nan_to_num(distortion, nan=inf, posinf=inf)


def _on_a_line(function: Function, q: Tensor) -> list[tuple[Tensor, ...]]:
    """For each mean: E[phi], E[phi^2], E[phi'^2] at each q, the first two at 16 q, and E[phi(u) phi(v)] at
    correlation 0.9, of an elementwise activation."""
    z = _line()
    mean = torch.tensor(_MEANS, dtype=torch.float64)[:, None, None]
    x = mean + q.sqrt()[:, None] * z
    values, slopes = function(x).detach(), slope(function, x)
    far = function(mean + (_FAR * q).sqrt()[:, None] * z).detach()
    density = _density()
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
def _density() -> Tensor:
    """What each cell has of a standard normal."""
    z = _line()
    density: Tensor = torch.exp(-z.square() / 2) / (2 * pi) ** 0.5 * (z[1] - z[0])
    return density


@cache
def _hermite() -> Tensor:
    """The normalised Hermite polynomials on the line: (terms, points)."""
    z = _line()
    found = [torch.ones_like(z), z]
    for k in range(1, _TERMS - 1):
        found.append((z * found[k] - k**0.5 * found[k - 1]) / (k + 1) ** 0.5)
    return torch.stack(found)
