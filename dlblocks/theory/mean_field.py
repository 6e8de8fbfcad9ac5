"""Mean-field theory: what wide random layers do to the size of a signal, of a gradient, and to angles.

A layer is `h' = W x + b`, `x = dropout(phi(norm(h)))`, with independent weights of variance
`weight_variance / fan_in` and biases of variance `bias_variance`; q is the variance of h, c the correlation
between the h of two inputs. The order of blocks is that of our own nets: layer, norm, activation, dropout, next
layer. A skip connection goes around all of it, from one h to the next: `h' = h + branch_scale (W x + b)`, as in
He et al. 2016, arXiv:1603.05027 (before activation). For an activation of several features (maxout, GLU, CReLU,
softmax), `fan_in` counts what it gives.

It holds where pre-activations are nearly Gaussian and independent: wide layers of random weights. It says
nothing of weights that are equal, structured or trained, nor of attention and recurrence, which are left to the
probe. Sources: Poole et al. 2016, arXiv:1606.05340; Schoenholz et al. 2017, arXiv:1611.01232, also for dropout;
skip connections: Yang & Schoenholz 2017, arXiv:1712.08969; batch norm: Yang et al. 2019, arXiv:1902.08129;
convolutions follow the same maps, place by place: Xiao et al. 2018, arXiv:1806.05393.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import exp, inf, isfinite, log, sqrt
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from dlblocks.errors import UserError
from dlblocks.registry import Spec, name_of
from dlblocks.theory.means import Means, Moments, means_of

Norm: TypeAlias = Literal["none", "batch", "layer", "rms"]

# Where fixed points are looked for: this many variances over 60 decades.
_GRID = torch.logspace(-30, 30, 241, dtype=torch.float64)
_LEAST = 1e-30
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
    """The maps of one layer of an activation; see `mean_field`.

    In the formulas `s` is the branch scale, `p` the dropout, `w` and `b` the variances of weights and biases, `z`
    standard normal, and `n` the variance that reaches the activation: q, or 1 behind a norm. Terms in [ ] are those
    of the skip connection. A variance below 1e-30 counts as that.
    """

    means: Means
    weight_variance: float
    bias_variance: float
    dropout: float = 0.0
    residual: bool = False
    branch_scale: float = 1.0
    norm: Norm = "none"

    def moments(self, q: float = 1.0) -> Moments:
        """The means of the activation for pre-activations of variance q, as tensors of one number; behind a norm,
        those at variance 1."""
        return self._given_one if self.norm != "none" else self._moments(_checked(q))

    def variance(self, q: float) -> float:
        """The variance after a layer: `V(q) = [q +] s^2 (w E[phi(sqrt(n) z)^2] / (1 - p) + b)`."""
        return self._skipped(q) + self._branch(q)

    def chi(self, q: float, c: float | None = None) -> float:
        """The factor by which a layer multiplies the mean square of a gradient on its way back, and the distance
        of two nearby inputs, under the same dropout, on its way forward:
        `[1 +] s^2 w E[phi'(sqrt(n) z)^2] / (1 - p)`, over q behind a layer or RMS norm, over `q (1 - c)`, the
        variance over the batch, behind a batch norm.

        At a jump the slope is taken as backpropagation takes it, from the two sides: gradients follow this
        factor there, while the distance of nearby inputs grows without bound.

        Args:
            q: variance of the pre-activations.
            c: with batch norm, the correlation of the batch's inputs; by default the one at which they end.
        """
        steep = self._scale * float(self.moments(q).slope) / (1 - self.dropout)
        spread = 1.0 if self.norm == "none" else _checked(q)
        if self.norm == "batch":
            spread *= 1 - (self._batch_correlation if c is None else c)
        if steep > 0:
            steep = steep / spread if spread > 0 else inf
        return steep + self.residual

    def fixed_points(self) -> tuple[FixedPoint, ...]:
        """The variances that a layer keeps, ascending, between 1e-30 and 1e30, and 0 if it keeps that.

        None besides 0 for activations such as relu, whose map is a multiple of q, nor with a skip connection, which
        lets variances grow: `limit` says where their variance goes.
        """
        grid, ratio = _GRID, self._ratios()
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
        if self.residual:
            return inf if self._branch(q) > 0 else q
        q = _checked(q)
        ratio = self.variance(q) / q
        if abs(ratio - 1) <= _SAME:
            return q
        points = [point.q for point in self.fixed_points()]
        if ratio > 1:
            return min((point for point in points if point > q), default=inf)
        return max((point for point in points if point < q), default=0.0)

    def correlation(self, c: float, q: float) -> float:
        """The correlation after a layer of two inputs of variance q and correlation c, each with a dropout of its
        own: `C(c) = ([q c +] s^2 (w E[phi(u) phi(v)] + b)) / V(q)`.

        With dropout even the same input, twice, is not kept: `C(1) < 1`. Batch norm takes away what the batch has
        in common: u and v have the correlation `(c - c*) / (1 - c*)` in a batch whose inputs have correlation
        c* = `fixed_correlation`, as they do behind the first layers.

        Raises:
            UserError: c is not in [-1, 1], or no two inputs of such a batch have it, or the layer gives 0 only.
        """
        if not -1 <= c <= 1:
            raise UserError(f"c={c}: must be a correlation, in [-1, 1].")
        if not self.variance(q) > 0:
            raise UserError(f"q={q}: the layer gives 0 for every input, which has no correlation.")
        shared = self.weight_variance * self.means.products(self._given(q), self._within_batch(c))[0]
        return (self._skipped(q) * c + self._square * (shared + self.bias_variance)) / self.variance(q)

    def fixed_correlation(self, q: float) -> float:
        """The correlation at which two inputs of variance q end: 1 where all inputs become alike (order),
        below where the nearest drift apart (chaos), and always below with dropout (Schoenholz et al. 2017,
        section 5), so that order and chaos are no longer apart.

        Of batch norm, the one of all inputs of a large batch: `(w E[phi]^2 + b) / (w E[phi^2] / (1 - p) + b)`.
        A skip connection changes how fast inputs go there, not where, as long as q stays; without a norm it
        does not.

        The map is convex for c in [0, 1] and, without dropout, keeps 1, so it has at most one fixed point below,
        which then draws all others; one above 1 - 1e-6 is taken for 1.
        """
        if self.norm == "batch":
            return self._batch_correlation
        n = self._given(q)
        moments = self.moments(q)
        weights, size = self.weight_variance, self._branch(q) / self._square
        if size == 0:
            return 1.0
        keeps = self.dropout == 0 or weights * float(moments.square) == 0
        if keeps and not self.means.jumps and weights * float(moments.slope) * n / size <= 1 + _SAME:
            return 1.0
        c = 0.0
        for _ in range(100):
            # Newton's steps from 0 stay below the root of a convex map.
            value, slope = self.means.products(n, c)
            rest = (weights * value + self.bias_variance) / size - c
            step = rest / (1 - weights * slope * n / size)
            if abs(step) < 1e-10:
                return c
            c += step
            if not c < 1 - 1e-6:
                return 1.0
        return c

    def depth_scales(self, q: float) -> tuple[float, float]:
        """Layers over which a difference shrinks e-fold, at q: that of the variance (xi_q), and that of the
        correlation (xi_c), near a fixed point. Infinite where it does not shrink at all, or slower than any
        exponential, as with a skip connection it may."""
        c = self.fixed_correlation(q)
        if self.means.jumps and c < 1:
            step = 1e-5
            along = (self.correlation(c + step, q) - self.correlation(c - step, q)) / (2 * step)
        else:
            n, common = self._given(q), self._batch_correlation if self.norm == "batch" else 0.0
            along = self._skipped(q)
            if common < 1:
                slope = self.means.products(n, self._within_batch(c))[1]
                along += self._scale * slope * n / (1 - common)
            along /= self.variance(q) or 1.0
        return _depth(self._growth(q)), _depth(along)

    @property
    def _square(self) -> float:
        return self.branch_scale**2

    @property
    def _scale(self) -> float:
        return self._square * self.weight_variance

    @cached_property
    def _given_one(self) -> Moments:
        return self._moments(1.0)

    @cached_property
    def _batch_correlation(self) -> float:
        """Of all pairs in a large batch behind a layer with batch norm, whose inputs to the activation are
        independent of one another."""
        moments = self._given_one
        alike = self.weight_variance * float(moments.mean) ** 2 + self.bias_variance
        size = self.weight_variance * float(moments.square) / (1 - self.dropout) + self.bias_variance
        return alike / size if size > 0 else 1.0

    def _moments(self, q: float) -> Moments:
        return self.means.moments(torch.tensor(q, dtype=torch.float64))

    def _given(self, q: float) -> float:
        """The variance of what the activation is given."""
        return _checked(q) if self.norm == "none" else 1.0

    def _skipped(self, q: float) -> float:
        """What the skip connection brings of a variance."""
        return _checked(q) if self.residual else 0.0

    def _branch(self, q: float) -> float:
        square = float(self.moments(q).square) / (1 - self.dropout)
        return self._square * (self.weight_variance * square + self.bias_variance)

    def _growth(self, q: float) -> float:
        """The slope of the variance map."""
        along = self.residual + 0.0
        if self.norm == "none":
            along += self._scale * float(self.moments(q).growth) / (1 - self.dropout)
        return along

    def _within_batch(self, c: float) -> float:
        """The correlation of what the activation is given."""
        if self.norm != "batch":
            return c
        common = self._batch_correlation
        inside = (c - common) / (1 - common) if common < 1 else 0.0
        if inside < -1:
            raise UserError(
                f"c={c}: no two inputs have it in a batch with batch norm, whose inputs have correlation"
                f" {common:.3g}: at least {2 * common - 1:.3g}."
            )
        return inside

    def _ratios(self) -> Tensor:
        """V(q) / q on the grid; infinite where the mean overflows."""
        square = _squares(self.means) if self.norm == "none" else self._given_one.square
        branch = self.weight_variance * square / (1 - self.dropout) + self.bias_variance
        return (self.residual + self._square * branch / _GRID).nan_to_num(inf, inf, inf)

    def _between(self, low: float, high: float) -> FixedPoint:
        q = exp(_root(lambda x: log(self.variance(exp(x))) - x, log(low), log(high)))
        return FixedPoint(q, self._growth(q))


def mean_field(
    activation: Spec | Callable[[Tensor], Tensor],
    weight_variance: float = 1.0,
    bias_variance: float = 0.0,
    *,
    dropout: float = 0.0,
    residual: bool = False,
    branch_scale: float = 1.0,
    norm: Norm = "none",
) -> MeanField:
    """The theory of a layer: `h' = W dropout(phi(norm(h))) + b`, with a skip connection
    `h' = h + branch_scale (W dropout(phi(norm(h))) + b)`.

    Norms are taken before their learnt scale and shift have moved from 1 and 0, over many features or a large
    batch. Batch norm divides by what differs within the batch, so that without skip connections gradients grow
    with depth, for every activation but the linear one: `chi = E[phi'^2] / Var[phi] >= 1` where b and p are 0.

    Args:
        activation: a name, a `{name: ..., params}` mapping, a module, or a function of tensors. A function
            that maps each number by itself is integrated to about 1e-9; for others (maxout, GLU, softmax)
            the means come from samples, to about a percent.
        weight_variance: of the weights, times fan_in: 1 for `lecun_*`, 2 for `he_*`.
        bias_variance: of the biases.
        dropout: probability that a feature is zeroed behind the activation, the others being divided by the rest.
        residual: whether a skip connection leads around the layer.
        branch_scale: what it multiplies the layer's outputs by.
        norm: what pre-activations go through before the activation: `none`, `batch`, `layer` or `rms`. The last
            two are the same here: over many features of random weights the mean is 0.

    Raises:
        UserError: a number is out of its range, a branch scale is given without a skip connection, or the activation
            is none: it holds a norm layer, dropout or weights, is random, or lets instances act on one another.

    >>> relu = mean_field("relu", weight_variance=2.0)
    >>> round(relu.variance(1.0), 9), round(relu.chi(1.0), 9)
    (1.0, 1.0)
    >>> dropped = mean_field("relu", weight_variance=2.0, dropout=0.5)
    >>> round(dropped.variance(1.0), 9), round(dropped.chi(1.0), 9)
    (2.0, 2.0)
    """
    for name, value in (("weight_variance", weight_variance), ("bias_variance", bias_variance)):
        if not (isfinite(value) and value >= 0):
            raise UserError(f"{name}={value}: must be a number of at least 0.")
    if not 0 <= dropout < 1:
        raise UserError(f"dropout={dropout}: must be a probability in [0, 1).")
    if not (isfinite(branch_scale) and branch_scale > 0):
        raise UserError(f"branch_scale={branch_scale}: must be a number above 0.")
    if branch_scale != 1 and not residual:
        raise UserError(f"branch_scale={branch_scale}: is of skip connections; add residual=True.")
    if norm not in get_args(Norm):
        raise UserError(f"norm={norm!r}: must be one of {', '.join(get_args(Norm))}.")
    means = means_of(activation)
    return MeanField(means, weight_variance, bias_variance, dropout, bool(residual), branch_scale, norm)


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


def _checked(q: float) -> float:
    if not (isfinite(q) and q >= 0):
        raise UserError(f"q={q}: a variance must be a number of at least 0.")
    return max(q, _LEAST)


@lru_cache(maxsize=32)
def _squares(means: Means) -> Tensor:
    """E[phi^2] on the grid: of the activation alone, so that other variances of weights need it no more."""
    return means.moments(_GRID).square


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that changes its sign between two points is 0, by the Illinois variant of regula falsi
    (Dowell & Jarratt 1971)."""
    at_low, at_high = function(low), function(high)
    x, side = low, 0
    for _ in range(100):
        steady = isfinite(at_low) and isfinite(at_high)
        x = (low * at_high - high * at_low) / (at_high - at_low) if steady else (low + high) / 2
        value = function(x)
        if abs(value) < 1e-13 or high - low < 1e-13:
            break
        # An end that stays twice is taken for nearer to the root than it is.
        if (value > 0) == (at_low > 0):
            low, at_low, at_high, side = x, value, at_high / (2 if side > 0 else 1), 1
        else:
            high, at_high, at_low, side = x, value, at_low / (2 if side < 0 else 1), -1
    return x
