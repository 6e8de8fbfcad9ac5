"""Mean-field theory against closed forms, sums over fine grids, and wide random nets."""

from __future__ import annotations

from collections.abc import Callable
from math import acos, asin, erf, exp, inf, isinf, pi, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import dlblocks
from dlblocks.errors import UserError
from dlblocks.registry import REGISTRY, names
from dlblocks.theory.mean_field import gain, mean_field
from dlblocks.theory.means import BySamples, means_of
from dlblocks.theory.quadrature import breakpoints

ELEMENTWISE = [n for n in names("activation") if REGISTRY.get("activation", n).tags["elementwise"]]
OTHERS = [n for n in names("activation") if n not in ELEMENTWISE]
VARIANCES = [1e-12, 0.01, 0.7, 1.0, 3.0, 50.0]


def gelu_square(q: float) -> float:
    # Integrating by parts: E[x^2 P^2] = q (E[P^2] + 2 E[x P p]), E[x P p] = q / (1 + q) E[p^2].
    return q / 4 + q * asin(q / (1 + q)) / (2 * pi) + q * q / (pi * (1 + q) * sqrt(1 + 2 * q))


def gelu_slope(q: float) -> float:
    square = 0.25 + asin(q / (1 + q)) / (2 * pi)
    return square + q / (1 + q) / (pi * sqrt(1 + 2 * q)) + q / (2 * pi * (1 + 2 * q) ** 1.5)


# Activation -> E[phi], E[phi^2], E[phi'^2] at variance q.
CLOSED: dict[str, tuple[object, Callable[[float], tuple[float, float, float]]]] = {
    "linear": ("linear", lambda q: (0.0, q, 1.0)),
    "relu": ("relu", lambda q: (sqrt(q / (2 * pi)), q / 2, 0.5)),
    "leaky_relu": (
        {"name": "leaky_relu", "negative_slope": 0.3},
        lambda q: (0.7 * sqrt(q / (2 * pi)), q * 1.09 / 2, 1.09 / 2),
    ),
    "erf": (torch.erf, lambda q: (0.0, 2 / pi * asin(2 * q / (1 + 2 * q)), 4 / pi / sqrt(1 + 4 * q))),
    "gelu": ("gelu", lambda q: (q / sqrt(2 * pi * (1 + q)), gelu_square(q), gelu_slope(q))),
    "squared_relu": ("squared_relu", lambda q: (q / 2, 1.5 * q * q, 2 * q)),
    "sin": (torch.sin, lambda q: (0.0, (1 - exp(-2 * q)) / 2, (1 + exp(-2 * q)) / 2)),
    "exponential": ("exponential", lambda q: (exp(q / 2), exp(2 * q), exp(2 * q))),
    "step": (lambda x: (x > 0.25).to(x.dtype), lambda q: (*2 * ((1 - erf(0.25 / sqrt(2 * q))) / 2,), 0.0)),
}


@pytest.mark.parametrize("q", VARIANCES)
@pytest.mark.parametrize("name", CLOSED)
def test_moments_are_the_closed_forms(name: str, q: float) -> None:
    activation, expected = CLOSED[name]
    moments = mean_field(activation).moments(q)
    got = (float(moments.mean), float(moments.square), float(moments.slope))
    if name == "sin" and q == 1e-12:
        assert got[1] == pytest.approx(q, rel=1e-9)  # 1 - exp(-2 q) has lost its digits
        got = (got[0], expected(q)[1], got[2])
    assert got == pytest.approx(expected(q), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("q", [0.01, 1.0, 9.0])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_moments_are_the_sums_over_a_fine_grid(name: str, q: float) -> None:
    activation = dlblocks.activation(name).double().eval()
    # Cells that end at each multiple of 2^-20, where the kinks of the catalogue are.
    cell = 2.0**-16 if q > 1 else 2.0**-18
    reach = np.ceil(13 * sqrt(q))
    if name == "exponential":
        reach += 2 * q  # exp(2 x) has moved the weight there
    x = torch.arange(-reach, reach, cell, dtype=torch.float64) + cell / 2
    x.requires_grad_()
    y = activation(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    weight = np.exp(-(x.detach().numpy() ** 2) / (2 * q)) * cell / sqrt(2 * pi * q)
    y, slope = y.detach().numpy(), slope.numpy()
    moments = mean_field(name).moments(q)
    assert float(moments.mean) == pytest.approx((weight * y).sum(), rel=1e-8, abs=1e-9)
    assert float(moments.square) == pytest.approx((weight * y**2).sum(), rel=1e-8, abs=1e-12)
    assert float(moments.slope) == pytest.approx((weight * slope**2).sum(), rel=1e-8)
    above, below = (float(mean_field(name).moments(q * (1 + sign * 1e-5)).square) for sign in (1, -1))
    assert float(moments.growth) == pytest.approx((above - below) / (2e-5 * q), rel=1e-6, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-4, 4), min_size=1, max_size=3, unique_by=lambda k: round(k, 1)),
    st.lists(st.floats(-2, 2), min_size=4, max_size=4),
    st.lists(st.floats(-2, 2), min_size=4, max_size=4),
    st.floats(0.05, 20),
)
def test_any_lines_in_pieces_are_integrated(
    ends: list[float], slopes: list[float], offsets: list[float], q: float
) -> None:
    ends = sorted(ends)
    cuts = torch.tensor(ends, dtype=torch.float64)
    slope, offset = torch.tensor(slopes, dtype=torch.float64), torch.tensor(offsets, dtype=torch.float64)

    def lines(x: Tensor) -> Tensor:
        piece = torch.bucketize(x.detach(), cuts)
        return slope[piece] * x + offset[piece]

    square = steep = 0.0
    edges = [-inf, *ends, inf]
    for a, b, m, t in zip(edges[:-1], edges[1:], slopes, offsets, strict=False):
        low, high = a / sqrt(q), b / sqrt(q)

        def density(z: float) -> float:
            return exp(-z * z / 2) / sqrt(2 * pi)

        def moved(z: float) -> float:
            return 0.0 if isinf(z) else z * exp(-z * z / 2) / sqrt(2 * pi)

        mass = (erf(high / sqrt(2)) - erf(low / sqrt(2))) / 2
        first, second = density(low) - density(high), mass + moved(low) - moved(high)
        square += m * m * q * second + 2 * m * t * sqrt(q) * first + t * t * mass
        steep += m * m * mass
    moments = mean_field(lines).moments(q)
    assert float(moments.square) == pytest.approx(square, rel=1e-7, abs=1e-8)
    assert float(moments.slope) == pytest.approx(steep, rel=1e-7, abs=1e-8)


def test_breakpoints_are_where_the_kinks_are() -> None:
    third = breakpoints(lambda x: (x - 1 / 3).abs() + (x > 700.1).to(x.dtype))
    for kink in (1 / 3, 700.1):
        assert float((third - kink).abs().min()) < 1e-12 * max(1, kink)
    assert len(third) < 60


def arc_cosine(c: float) -> float:
    """Cho & Saul 2009: the correlation after a relu layer that keeps the variance."""
    return (sqrt(1 - c * c) + (pi - acos(c)) * c) / pi


@pytest.mark.parametrize("c", [-0.9, 0.0, 0.3, 0.9, 0.9999])
def test_correlations_are_the_closed_forms(c: float) -> None:
    assert mean_field("relu", 2.0).correlation(c, 3.0) == pytest.approx(arc_cosine(c), abs=1e-9)
    assert mean_field("linear").correlation(c, 1.0) == pytest.approx(c, abs=1e-12)
    q = 0.8
    erf_after = asin(2 * q * c / (1 + 2 * q)) / asin(2 * q / (1 + 2 * q))
    assert mean_field(torch.erf, 1.7).correlation(c, q) == pytest.approx(erf_after, abs=1e-9)
    both = 4 / pi / sqrt((1 + 2 * q) ** 2 - (2 * q * c) ** 2)
    assert means_of(torch.erf).products(q, c)[1] == pytest.approx(both, abs=1e-9)


def test_order_and_chaos_of_tanh() -> None:
    # Without biases the border is at a weight variance of 1 (Poole et al. 2016).
    order, chaos = mean_field("tanh", 0.9), mean_field("tanh", 2.5)
    assert [point.q for point in order.fixed_points()] == [0.0]
    assert order.limit(1.0) == 0.0
    zero, high = chaos.fixed_points()
    assert (zero.q, zero.stable, high.stable) == (0.0, False, True)
    assert chaos.variance(high.q) == pytest.approx(high.q, rel=1e-9)
    assert chaos.limit(1e-3) == chaos.limit(100.0) == high.q
    assert chaos.chi(high.q) > 1
    assert chaos.fixed_correlation(high.q) == pytest.approx(0.0, abs=1e-9)
    biased = mean_field("tanh", 2.5, 0.1)
    q = biased.limit()
    c = biased.fixed_correlation(q)
    assert 0 < c < 1
    assert biased.correlation(c, q) == pytest.approx(c, abs=1e-8)
    assert biased.correlation(c + 0.01, q) < c + 0.01


def test_erf_has_its_fixed_point_and_depth_scales() -> None:
    theory = mean_field(torch.erf, 0.6, 0.2)
    q = theory.limit()
    assert q == pytest.approx(0.6 * 2 / pi * asin(2 * q / (1 + 2 * q)) + 0.2, rel=1e-9)
    growth = 0.6 * 4 / pi / ((1 + 2 * q) * sqrt(1 + 4 * q))
    chi = 0.6 * 4 / pi / sqrt(1 + 4 * q)
    assert theory.chi(q) == pytest.approx(chi, rel=1e-9)
    assert chi < 1
    assert theory.fixed_correlation(q) == 1.0
    assert theory.depth_scales(q) == pytest.approx((-1 / np.log(growth), -1 / np.log(chi)), rel=1e-8)


@pytest.mark.parametrize(("weights", "expected"), [(1.9, 0.0), (2.0, 0.5), (2.1, inf)])
def test_relu_keeps_any_variance_or_none(weights: float, expected: float) -> None:
    assert mean_field("relu", weights).limit(0.5) == expected


def test_a_jump_pulls_the_nearest_inputs_apart() -> None:
    theory = mean_field(torch.sign, 1.0)
    assert theory.means.jumps
    assert theory.chi(1.0) == 0.0  # what backpropagation sees
    assert theory.correlation(0.5, 1.0) == pytest.approx(2 / pi * asin(0.5), abs=1e-9)
    assert theory.fixed_correlation(1.0) == pytest.approx(0.0, abs=1e-8)
    assert theory.depth_scales(1.0)[1] == pytest.approx(-1 / np.log(2 / pi), rel=1e-6)


def test_the_gain_of_sigmoid_keeps_the_size_but_not_the_angle() -> None:
    theory = mean_field("sigmoid", gain("sigmoid") ** 2)
    assert theory.variance(1.0) == pytest.approx(1.0, rel=1e-12)
    assert theory.fixed_correlation(1.0) == 1.0
    assert theory.depth_scales(1.0)[1] < 1


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_gains_keep_the_variance(name: str) -> None:
    assert mean_field(name, gain(name) ** 2).variance(1.0) == pytest.approx(1.0, rel=1e-12)


def layers(name: str, width: int, weights: float, biases: float, x: Tensor, depth: int) -> list[Tensor]:
    """The pre-activations of a random net, each with its gradient kept."""
    ratio = dlblocks.activations.width.width_ratio(name)
    activation = dlblocks.activation(name).double().eval()
    signals = []
    for _ in range(depth):
        size = round(width * ratio)
        weight = torch.randn(size, x.shape[-1], dtype=torch.float64) * sqrt(weights / x.shape[-1])
        h = x @ weight.T + sqrt(biases) * torch.randn(size, dtype=torch.float64)
        h.requires_grad_()
        h.retain_grad()
        signals.append(h)
        x = activation(h)
    (signals[-1] * torch.randn_like(signals[-1])).sum().backward()
    return signals


WIDE = ["tanh", "relu", "gelu", "sigmoid", "hard_shrink", "elu", "maxout", "glu", "crelu"]


@pytest.mark.parametrize("name", WIDE)
def test_wide_random_nets_do_what_theory_says(name: str) -> None:
    width, weights, biases = 1500, 1.3, 0.2
    inputs = torch.randn(2, width, dtype=torch.float64)
    inputs[1] = 0.6 * inputs[0] + 0.8 * inputs[1]
    first, second, third = layers(name, width, weights, biases, inputs, depth=3)
    theory = mean_field(name, weights, biases)
    for before, after in ((first, second), (second, third)):
        sizes = before.detach().square().mean(-1).tolist()
        q = sum(sizes) / 2
        expected = sum(theory.variance(size) for size in sizes) / 2
        assert float(after.detach().square().mean()) == pytest.approx(expected, rel=0.12)
        assert before.grad is not None
        assert after.grad is not None
        backward = float(before.grad.square().mean() / after.grad.square().mean())
        assert backward == pytest.approx(theory.chi(q), rel=0.12)
        c, got = (float(torch.cosine_similarity(*signal.detach(), dim=0)) for signal in (before, after))
        assert got == pytest.approx(theory.correlation(c, q), abs=0.08)


def test_samples_agree_with_quadrature() -> None:
    relu, sampled = means_of("relu"), BySamples(torch.relu, 1.0)
    q = torch.tensor([0.5, 2.0], dtype=torch.float64)
    for exact, rough in zip(relu.moments(q), sampled.moments(q), strict=True):
        torch.testing.assert_close(rough, exact, rtol=0.02, atol=0)
    assert sampled.products(1.0, 0.5) == pytest.approx(relu.products(1.0, 0.5), rel=0.03)


@pytest.mark.parametrize("q", [0.3, 1.0])
@pytest.mark.parametrize(
    ("name", "gate"), [("glu", "sigmoid"), ("swiglu", "silu"), ("geglu", "gelu"), ("reglu", "relu")]
)
def test_gated_units_are_the_product_of_their_halves(name: str, gate: str, q: float) -> None:
    """`E[(g(a) b)^2] = q E[g^2]`, and the squared norm of its gradient is `E[g^2] + q E[g'^2]`."""
    gated, own = mean_field(name).moments(q), mean_field(gate).moments(q)
    assert float(gated.square) == pytest.approx(q * float(own.square), rel=0.05)
    assert float(gated.slope) == pytest.approx(float(own.square) + q * float(own.slope), rel=0.05)


def test_maxout_of_two_pieces_keeps_variance_and_gradient_at_a_weight_variance_of_1() -> None:
    theory = mean_field("maxout")
    assert theory.variance(1.0) == pytest.approx(1.0, rel=0.02)  # E[max(a, b)^2] = 1
    assert theory.chi(1.0) == pytest.approx(1.0, rel=0.02)
    assert float(theory.moments().mean) == pytest.approx(1 / sqrt(pi), rel=0.02)


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_activation_has_its_moments(name: str) -> None:
    means = means_of(name)
    assert isinstance(means, BySamples)
    moments = means.moments(torch.tensor([0.5, 1.0], dtype=torch.float64))
    assert all(part.isfinite().all() and part.shape == (2,) for part in moments)
    assert (moments.square >= moments.mean.square()).all()


def test_modules_and_functions_are_left_as_they_are() -> None:
    module = nn.PReLU().train()
    mean_field(module).variance(1.0)
    assert module.training
    assert module.weight.dtype is torch.float32
    assert module.weight.requires_grad


@pytest.mark.parametrize("value", [-1.0, inf, float("nan")])
def test_variances_are_checked(value: float) -> None:
    with pytest.raises(UserError, match="weight_variance"):
        mean_field("relu", value)
    with pytest.raises(UserError, match="bias_variance"):
        mean_field("relu", 1.0, value)


def test_an_activation_that_is_0_has_no_gain() -> None:
    with pytest.raises(UserError, match="no gain"):
        gain(torch.zeros_like)
