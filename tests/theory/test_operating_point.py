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


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_a_layer_at_the_point_keeps_gradients(name: str) -> None:
    point = operating_point(name)
    function = dlblocks.activation(name).double().eval().requires_grad_(False)
    means = mean_field(lambda x: function(x + point.mean)).moments(point.variance)
    first, second, slope = (float(value) for value in (means.mean, means.square, means.slope))
    left = second - first**2 + (1 - point.centring) ** 2 * first**2
    chi = point.variance / left * slope
    assert abs(math.log(chi)) <= point.distortion + 4e-3
    assert point.distortion <= 0.02


@pytest.mark.parametrize("name", ["sigmoid", "softplus", "gelu", "squared_relu"])
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
