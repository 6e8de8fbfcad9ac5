"""Each initialiser of the registry against its exact distribution."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any

import pytest
import torch
from scipy import stats
from torch import nn

import dlblocks
from dlblocks.errors import UserError
from dlblocks.initializers.fans import Fans, fans_of
from dlblocks.registry import REGISTRY, names

NAMES = names("initializer")

LAYERS: dict[str, nn.Module] = {
    "linear": nn.Linear(300, 200),
    "conv": nn.Conv2d(40, 80, 5),
    "grouped": nn.Conv2d(120, 60, (3, 5), groups=3),
    "transposed": nn.ConvTranspose2d(60, 90, 4, groups=2),
}


def truncated(variance: float) -> Any:
    return stats.truncnorm(-2, 2, scale=sqrt(variance) / stats.truncnorm(-2, 2).std())


def uniform(variance: float) -> Any:
    bound = sqrt(3 * variance)
    return stats.uniform(-bound, 2 * bound)


# Name -> cases of parameters and the distribution that the paper or library states.
DISTRIBUTIONS: dict[str, list[tuple[dict[str, object], Callable[[Fans], Any]]]] = {
    "normal": [({}, lambda _: stats.norm(0, 0.05)), ({"mean": 1, "std": 2}, lambda _: stats.norm(1, 2))],
    "uniform": [
        ({}, lambda _: stats.uniform(-0.05, 0.1)),
        ({"low": 1, "high": 3}, lambda _: stats.uniform(1, 2)),
    ],
    "truncated_normal": [
        ({}, lambda _: stats.truncnorm(-2, 2, scale=0.05)),
        ({"mean": 3, "std": 2}, lambda _: stats.truncnorm(-2, 2, loc=3, scale=2)),
    ],
    "lecun_normal": [({}, lambda f: truncated(1 / f.fan_in))],
    "lecun_uniform": [({}, lambda f: uniform(1 / f.fan_in))],
    "he_normal": [({}, lambda f: truncated(2 / f.fan_in))],
    "he_uniform": [({}, lambda f: uniform(2 / f.fan_in))],
    "glorot_normal": [({}, lambda f: truncated(2 / (f.fan_in + f.fan_out)))],
    "glorot_uniform": [({}, lambda f: uniform(2 / (f.fan_in + f.fan_out)))],
    "xavier_normal": [
        ({}, lambda f: stats.norm(0, sqrt(2 / (f.fan_in + f.fan_out)))),
        ({"gain": 2}, lambda f: stats.norm(0, 2 * sqrt(2 / (f.fan_in + f.fan_out)))),
    ],
    "xavier_uniform": [
        ({}, lambda f: uniform(2 / (f.fan_in + f.fan_out))),
        ({"gain": 0.5}, lambda f: uniform(0.5 / (f.fan_in + f.fan_out))),
    ],
    "variance_scaling": [
        ({}, lambda f: truncated(1 / f.fan_in)),
        (
            {"scale": 3, "mode": "fan_out", "distribution": "normal"},
            lambda f: stats.norm(0, sqrt(3 / f.fan_out)),
        ),
        (
            {"scale": 2, "mode": "fan_avg", "distribution": "uniform"},
            lambda f: uniform(2 / ((f.fan_in + f.fan_out) / 2)),
        ),
        ({"mode": "fan_geo_avg"}, lambda f: truncated(1 / sqrt(f.fan_in * f.fan_out))),
    ],
    "kaiming_normal": [
        ({}, lambda f: stats.norm(0, sqrt(2 / f.fan_in))),
        ({"a": 1.0, "mode": "fan_out"}, lambda f: stats.norm(0, sqrt(1 / f.fan_out))),
        ({"nonlinearity": "tanh"}, lambda f: stats.norm(0, 5 / 3 / sqrt(f.fan_in))),
    ],
    "kaiming_uniform": [
        ({}, lambda f: uniform(2 / f.fan_in)),
        ({"nonlinearity": "linear", "mode": "fan_out"}, lambda f: uniform(1 / f.fan_out)),
    ],
}
FIXED: dict[str, tuple[dict[str, object], float]] = {
    "zeros": ({}, 0.0),
    "ones": ({}, 1.0),
    "constant": ({"value": 0.3}, 0.3),
}
# Held in test_structured.py.
STRUCTURED = {"identity", "delta_orthogonal", "sparse"}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_initialiser_has_its_reference_here() -> None:
    assert {*DISTRIBUTIONS, *FIXED, *STRUCTURED, "orthogonal", "default"} == set(NAMES)


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("layer", LAYERS)
def test_values_follow_the_distribution(name: str, layer: str) -> None:
    weight = LAYERS[layer].weight
    fans = fans_of(weight, LAYERS[layer])
    for params, distribution in DISTRIBUTIONS[name]:
        expected = distribution(fans)
        drawn = dlblocks.initializer(name, **params)(torch.empty_like(weight), fans=fans, generator=seeded())
        values = drawn.flatten().double().numpy()
        assert stats.kstest(values, expected.cdf).pvalue > 1e-4
        # Five standard errors of a variance; no distribution here has heavier tails than the normal.
        assert values.var() == pytest.approx(expected.var(), rel=5 * sqrt(2 / values.size))
        low, high = expected.support()
        assert values.min() >= low - 1e-6
        assert values.max() <= high + 1e-6


@pytest.mark.parametrize("name", FIXED)
def test_fixed_values(name: str) -> None:
    params, value = FIXED[name]
    assert torch.equal(dlblocks.initializer(name, **params)(torch.empty(3, 2)), torch.full((3, 2), value))


def test_default_leaves_the_tensor() -> None:
    tensor = torch.randn(3, 2)
    assert torch.equal(dlblocks.initializer("default")(tensor.clone()), tensor)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (8, 2, 3, 3), (3, 8, 2, 2)])
@pytest.mark.parametrize("gain", [1.0, 2.5])
def test_orthogonal_has_orthonormal_rows_or_columns(shape: tuple[int, ...], gain: float) -> None:
    tensor = torch.empty(shape, dtype=torch.float64)
    matrix = dlblocks.initializer("orthogonal", gain=gain)(tensor, generator=seeded()).flatten(1)
    matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    assert torch.allclose(matrix @ matrix.T, gain**2 * torch.eye(len(matrix), dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("xavier_normal", {"gain": 1.5}),
        ("xavier_uniform", {"gain": 1.5}),
        ("kaiming_normal", {"a": 0.2, "mode": "fan_out", "nonlinearity": "leaky_relu"}),
        ("kaiming_uniform", {"a": 0.2, "mode": "fan_in", "nonlinearity": "leaky_relu"}),
        ("orthogonal", {"gain": 1.5}),
        ("zeros", {}),
        ("ones", {}),
    ],
)
@pytest.mark.parametrize("shape", [(30, 20), (8, 4, 3, 3)])
def test_torchs_names_give_torchs_numbers(
    name: str, params: dict[str, object], shape: tuple[int, ...]
) -> None:
    draw = {} if name in ("zeros", "ones") else {"generator": seeded(3)}
    theirs = getattr(nn.init, f"{name}_")(torch.empty(shape), **params, **draw)
    assert torch.equal(dlblocks.initializer(name, **params)(torch.empty(shape), generator=seeded(3)), theirs)


@pytest.mark.parametrize("name", NAMES)
def test_a_generator_decides_everything(name: str) -> None:
    initialiser = dlblocks.initializer(name)
    before = torch.get_rng_state()
    first, second, other = (initialiser(torch.zeros(9, 7), generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)
    assert torch.equal(first, other) == (name in (*FIXED, "default", "identity"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_number_formats_and_views(name: str, dtype: torch.dtype) -> None:
    tensor = torch.zeros(40, 30, dtype=dtype)
    view = tensor.T[::2]
    filled = dlblocks.initializer(name)(view, generator=seeded())
    assert filled.dtype == dtype
    assert filled.isfinite().all()
    assert torch.equal(filled, tensor.T[::2])
    assert not tensor.T[1::2].any()
    for empty in ((0, 3), (3, 0), (2, 0, 3)):
        assert dlblocks.initializer(name)(torch.zeros(empty, dtype=dtype)).shape == empty


@pytest.mark.parametrize("name", [n for n in NAMES if REGISTRY.get("initializer", n).tags["needs_fan"]])
def test_vectors_are_refused_where_fans_are_needed(name: str) -> None:
    with pytest.raises(UserError, match="no fan_in and fan_out"):
        dlblocks.initializer(name)(torch.empty(3))


def test_uniform_refuses_bounds_the_wrong_way_round() -> None:
    with pytest.raises(UserError, match=r"low=1\.0 is above high=0\.0"):
        dlblocks.initializer("uniform", low=1, high=0)(torch.empty(3))
