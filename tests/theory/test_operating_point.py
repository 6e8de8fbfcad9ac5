"""Where activations should work, against the theory of one layer and against layers of random weights."""

from __future__ import annotations

import math

import pytest
import torch

import dlblocks
from dlblocks.registry import REGISTRY, names
from dlblocks.theory.mean_field import mean_field
from dlblocks.theory.operating_point import operating_point

ELEMENTWISE = [n for n in names("activation") if REGISTRY.get("activation", n).tags["elementwise"]]


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "prelu", "linear", "maxout", "crelu"])
def test_activations_that_scale_stay_where_he_normal_puts_them(name: str) -> None:
    point = operating_point(name)
    assert (point.mean, point.variance) == (0.0, 1.0)
    assert point.centring == pytest.approx(0.0, abs=1e-6)


TURNING = ["exponential", "squared_relu", "star_relu"]


def test_what_outgrows_every_line_turns() -> None:
    assert [name for name in ELEMENTWISE if operating_point(name).turns is not None] == sorted(TURNING)


@pytest.mark.parametrize("name", TURNING)
def test_layers_that_turn_keep_spread_and_slope_and_hold_back_what_is_large(name: str) -> None:
    depth = 30
    point = operating_point(name, tolerance=0.6 / depth)
    function = dlblocks.activation(name).double().requires_grad_(False)
    draw = torch.Generator().manual_seed(0)
    u = math.sqrt(point.variance) * torch.randn(4096, generator=draw, dtype=torch.float64)
    u[0] = 12 * math.sqrt(point.variance)
    start = u.clone().requires_grad_()
    h = point.mean + start
    for _ in range(depth):
        made = function(h)
        gain = point.turns * math.sqrt(point.variance / float(made.detach().var()))
        h = point.mean + gain * (made - float(made.detach().mean()))
    assert (h - point.mean).abs().max() < 12 * math.sqrt(point.variance)
    (slopes,) = torch.autograd.grad(h.sum(), start)
    # A factor of e for all layers is what the tolerance allows.
    assert 1 / math.e < float(slopes.square().mean()) < math.e


def test_two_turned_exponentials_leave_a_cube() -> None:
    s = 0.1
    u = torch.linspace(-1, 1, 9, dtype=torch.float64)

    def turned(u: torch.Tensor) -> torch.Tensor:
        return -torch.expm1(s * u) / s

    # a = -s/2 and b = -s^2/6, so that two layers are u - 2 (a^2 + b) u^3 = u - s^2/6 u^3.
    expected = u - s**2 / 6 * u**3
    assert torch.allclose(turned(turned(u)), expected, atol=3e-4, rtol=0)
    assert not torch.allclose(turned(turned(u)), u, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", [name for name in ELEMENTWISE if name not in TURNING])
def test_a_layer_at_the_point_keeps_gradients(name: str) -> None:
    point = operating_point(name)
    function = dlblocks.activation(name).double().eval().requires_grad_(False)
    means = mean_field(lambda x: function(x + point.mean)).moments(point.variance)
    first, second, slope = (float(value) for value in (means.mean, means.square, means.slope))
    left = second - first**2 + (1 - point.centring) ** 2 * first**2
    chi = point.variance / left * slope
    assert abs(math.log(chi)) <= point.distortion + 4e-3
    assert point.distortion <= 0.02


@pytest.mark.parametrize("name", ["sigmoid", "softplus", "gelu"])
def test_random_layers_do_at_the_point_what_theory_says(name: str) -> None:
    point = operating_point(name)
    width, depth = 2048, 6
    function = dlblocks.activation(name).double()
    draw = torch.Generator().manual_seed(0)
    h = point.mean + math.sqrt(point.variance) * torch.randn(16, width, generator=draw, dtype=torch.float64)
    for _ in range(depth):
        values = function(h)
        mean, spread = float(values.mean()), float(values.var())
        scale = math.sqrt(point.variance / (spread + (1 - point.centring) ** 2 * mean**2))
        weight = torch.randn(width, width, generator=draw, dtype=torch.float64) / math.sqrt(width)
        h = point.mean + scale * ((values - point.centring * mean) @ weight)
    assert float((h - point.mean).square().mean()) == pytest.approx(point.variance, rel=0.2)


def test_a_looser_tolerance_stays_nearer_to_the_usual_point() -> None:
    assert operating_point("gelu").mean != 0.0
    near = operating_point("gelu", tolerance=0.3)
    assert (near.mean, near.variance) == (0.0, 1.0)
