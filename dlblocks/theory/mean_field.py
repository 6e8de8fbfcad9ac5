"""Mean-field theory: what wide random layers do to the size of a signal, of a gradient, and to angles.

A layer is `h = W phi(h') + b` with independent weights of variance `weight_variance / fan_in` and biases of
variance `bias_variance`; q is the variance of h, c the correlation between the h of two inputs. For an
activation of several features (maxout, GLU, CReLU, softmax), `fan_in` counts what it gives.

It holds where pre-activations are nearly Gaussian and independent: wide layers of random weights. It says
nothing of weights that are equal, structured or trained, nor of normalisation, skips and attention, which
are left to the probe. Sources: Poole et al. 2016, arXiv:1606.05340; Schoenholz et al. 2017,
arXiv:1611.01232; convolutions follow the same maps, place by place: Xiao et al. 2018, arXiv:1806.05393.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isfinite, log, sqrt

import torch
from torch import Tensor

from dlblocks.errors import UserError
from dlblocks.registry import Spec, name_of
from dlblocks.theory.means import Means, Moments, means_of

# Where fixed points are looked for: this many variances over 60 decades.
_GRID = torch.logspace(-30, 30, 241, dtype=torch.float64)
# Nearer to 1 than this, a factor counts as 1: quadrature is good to about 1e-9.
_SAME = 1e-8


@dataclass(frozen=True)
class FixedPoint:
    """A variance that a layer keeps.

    Args:
        q: the variance; 0 where the signal dies out.
        slope: derivative of the variance map there; below 1 in size, variances nearby move to it.
    """

    q: float
    slope: float

    @property
    def stable(self) -> bool:
        return abs(self.slope) < 1 - _SAME


@dataclass(frozen=True)
class MeanField:
    """The maps of one layer of an activation; see `mean_field`."""

    means: Means
    weight_variance: float
    bias_variance: float

    def moments(self, q: float = 1.0) -> Moments:
        """The means of the activation for pre-activations of variance q, as tensors of one number."""
        return self.means.moments(torch.tensor(q, dtype=torch.float64))

    def variance(self, q: float) -> float:
        """The variance after a layer: `V(q) = weight_variance E[phi(sqrt(q) z)^2] + bias_variance`."""
        return self.weight_variance * float(self.moments(q).square) + self.bias_variance

    def chi(self, q: float) -> float:
        """The factor by which a layer multiplies the mean square of a gradient on its way back, and the
        distance of two nearby inputs on its way forward: `weight_variance E[phi'(sqrt(q) z)^2]`.

        At a jump the slope is taken as backpropagation takes it, from the two sides: gradients follow this
        factor there, while the distance of nearby inputs grows without bound.
        """
        return self.weight_variance * float(self.moments(q).slope)

    def fixed_points(self) -> tuple[FixedPoint, ...]:
        """The variances that a layer keeps, ascending, between 1e-30 and 1e30, and 0 if it keeps that.

        None besides 0 for activations such as relu, whose map is a multiple of q: `limit` says where their
        variance goes.
        """
        grid, ratio = _GRID, self._ratio(_GRID)
        found = []
        if float(ratio[0] * grid[0]) < 1e-20:
            found.append(FixedPoint(0.0, float(ratio[0])))
        # Where the ratio is 1 but for rounding, as for relu everywhere, its sign says nothing.
        moving = (ratio - 1).abs() > _SAME
        grid, above = grid[moving], ratio[moving] > 1
        for index in (above[:-1] != above[1:]).nonzero().flatten().tolist():
            found.append(self._between(float(grid[index]), float(grid[index + 1])))
        return tuple(found)

    def limit(self, q: float = 1.0) -> float:
        """The variance after very many layers, from q: a fixed point, q itself, 0, or infinity.

        Taken to go to the next fixed point on its way, as it does where the variance map rises with q.
        """
        ratio = self.variance(q) / q
        if abs(ratio - 1) <= _SAME:
            return q
        points = [point.q for point in self.fixed_points()]
        if ratio > 1:
            return min((point for point in points if point > q), default=inf)
        return max((point for point in points if point < q), default=0.0)

    def correlation(self, c: float, q: float) -> float:
        """The correlation after a layer of two inputs of variance q and correlation c:
        `C(c) = (weight_variance E[phi(u) phi(v)] + bias_variance) / V(q)`."""
        return (self.weight_variance * self.means.products(q, c)[0] + self.bias_variance) / self.variance(q)

    def fixed_correlation(self, q: float) -> float:
        """The correlation at which two inputs of variance q end: 1 where all inputs become alike (order),
        below where the nearest drift apart (chaos).

        The map is convex for c in [0, 1] and keeps 1, so it has at most one fixed point below, which then
        draws all others; one above 1 - 1e-6 is taken for 1.
        """
        variance = self.variance(q)
        if not self.means.jumps and self.chi(q) * q / variance <= 1 + _SAME:
            return 1.0
        c = 0.0
        for _ in range(100):
            # Newton's steps from 0 stay below the root of a convex map.
            value, slope = self.means.products(q, c)
            rest = (self.weight_variance * value + self.bias_variance) / variance - c
            step = rest / (1 - self.weight_variance * slope * q / variance)
            if abs(step) < 1e-10:
                return c
            c += step
            if not c < 1 - 1e-6:
                return 1.0
        return c

    def depth_scales(self, q: float) -> tuple[float, float]:
        """Layers over which a difference shrinks e-fold, near the fixed point q: that of the variance
        (xi_q), and that of the correlation (xi_c). Infinite where it does not shrink at all."""
        c = self.fixed_correlation(q)
        if self.means.jumps and c < 1:
            step = 1e-5
            along = (self.correlation(c + step, q) - self.correlation(c - step, q)) / (2 * step)
        else:
            along = self.weight_variance * self.means.products(q, c)[1]
        return _depth(self.weight_variance * float(self.moments(q).growth)), _depth(along)

    def _ratio(self, q: Tensor) -> Tensor:
        """V(q) / q; infinite where the mean overflows."""
        square = self.means.moments(q).square
        return ((self.weight_variance * square + self.bias_variance) / q).nan_to_num(inf, inf, inf)

    def _between(self, low: float, high: float) -> FixedPoint:
        rises = self.variance(low) > low
        for _ in range(60):
            middle = sqrt(low * high)
            low, high = (middle, high) if (self.variance(middle) > middle) == rises else (low, middle)
        q = sqrt(low * high)
        return FixedPoint(q, self.weight_variance * float(self.moments(q).growth))


def mean_field(
    activation: Spec | Callable[[Tensor], Tensor],
    weight_variance: float = 1.0,
    bias_variance: float = 0.0,
) -> MeanField:
    """The theory of a layer.

    Args:
        activation: a name, a `{name: ..., params}` mapping, a module, or a function of tensors. A function
            that maps each number by itself is integrated to about 1e-9; for others (maxout, GLU, softmax)
            the means come from samples, to about a percent.
        weight_variance: of the weights, times fan_in: 1 for `lecun_*`, 2 for `he_*`.
        bias_variance: of the biases.

    Raises:
        UserError: a variance is negative or not finite.

    >>> relu = mean_field("relu", weight_variance=2.0)
    >>> round(relu.variance(1.0), 9), round(relu.chi(1.0), 9)
    (1.0, 1.0)
    """
    for name, value in (("weight_variance", weight_variance), ("bias_variance", bias_variance)):
        if not (isfinite(value) and value >= 0):
            raise UserError(f"{name}={value}: must be a number of at least 0.")
    return MeanField(means_of(activation), weight_variance, bias_variance)


def gain(activation: Spec | Callable[[Tensor], Tensor], q: float = 1.0) -> float:
    """The standard deviation of weights, times the root of fan_in, that keeps pre-activations at variance q:
    `sqrt(q / E[phi(sqrt(q) z)^2])`.

    That keeps the size of the signal, not its content: of sigmoid and softplus, whose mean is far from 0,
    inputs still become alike with depth (`MeanField.fixed_correlation`).

    Raises:
        UserError: the activation is 0 everywhere at this variance, or overflows.

    >>> round(gain("relu") ** 2, 9)
    2.0
    """
    square = float(means_of(activation).moments(torch.tensor(q, dtype=torch.float64)).square)
    if not (isfinite(square) and square > 0):
        raise UserError(
            f"activation={name_of(activation)}: no gain keeps variance {q}: E[phi^2] is {square}."
        )
    return sqrt(q / square)


def _depth(factor: float) -> float:
    if abs(abs(factor) - 1) <= _SAME or abs(factor) > 1:
        return inf
    return -1 / log(abs(factor)) if factor else 0.0
