"""Each activation of the registry against its closed formula."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from math import erf, pi, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import dlblocks
from dlblocks.activations.width import widened, width_ratio
from dlblocks.records import SAME
from dlblocks.registry import REGISTRY, names

Array = np.ndarray


def _softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _elu(x: Array, alpha: float) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(x))


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _softplus(x: Array, beta: float = 1.0) -> Array:
    return np.logaddexp(0, beta * x) / beta


def _halves(x: Array) -> tuple[Array, Array]:
    return x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]


def _sparsemax(x: Array) -> Array:
    """By bisection of the threshold, so that it shares nothing with the sorting of the paper."""
    low, high = x.min(-1, keepdims=True) - 1, x.max(-1, keepdims=True)
    for _ in range(100):
        middle = (low + high) / 2
        above = np.maximum(x - middle, 0).sum(-1, keepdims=True) > 1
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.maximum(x - low, 0)


# Name -> cases of parameters and closed formula, written from the papers in numpy.
FORMULAS: dict[str, list[tuple[dict[str, object], Callable[[Array], Array]]]] = {
    "linear": [({}, lambda x: x)],
    "sigmoid": [({}, _sigmoid)],
    "tanh": [({}, lambda x: (np.exp(x) - np.exp(-x)) / (np.exp(x) + np.exp(-x)))],
    "relu": [({}, lambda x: np.maximum(x, 0))],
    "leaky_relu": [
        ({}, lambda x: np.where(x >= 0, x, 0.1 * x)),
        ({"negative_slope": 0.3}, lambda x: np.where(x >= 0, x, 0.3 * x)),
    ],
    "prelu": [
        ({}, lambda x: np.where(x >= 0, x, 0.25 * x)),
        ({"num_parameters": 6, "init": 0.5}, lambda x: np.where(x >= 0, x, 0.5 * x)),
    ],
    "elu": [({}, lambda x: _elu(x, 1.0)), ({"alpha": 0.5}, lambda x: _elu(x, 0.5))],
    "celu": [
        ({}, lambda x: _elu(x, 1.0)),
        ({"alpha": 2.0}, lambda x: np.maximum(x, 0) + np.minimum(2 * np.expm1(x / 2), 0)),
    ],
    "selu": [({}, lambda x: 1.0507009873554805 * _elu(x, 1.6732632423543772))],
    "maxout": [
        ({}, lambda x: np.maximum(*_halves(x))),
        ({"pieces": 3}, lambda x: np.maximum(np.maximum(x[..., :2], x[..., 2:4]), x[..., 4:])),
    ],
    "softmax": [({}, _softmax)],
    "log_softmax": [({}, lambda x: np.log(_softmax(x)))],
    "gelu": [
        ({}, lambda x: x * (1 + np.vectorize(erf)(x / sqrt(2))) / 2),
        ({"approximate": "tanh"}, lambda x: x * (1 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))) / 2),
    ],
    "silu": [({}, lambda x: x * _sigmoid(x))],
    "mish": [({}, lambda x: x * np.tanh(_softplus(x)))],
    "softplus": [({}, _softplus), ({"beta": 3.0}, lambda x: _softplus(x, 3.0))],
    "softsign": [({}, lambda x: x / (1 + np.abs(x)))],
    "hardswish": [({}, lambda x: x * np.clip(x + 3, 0, 6) / 6)],
    "relu6": [({}, lambda x: np.clip(x, 0, 6))],
    "glu": [({}, lambda x: _halves(x)[0] * _sigmoid(_halves(x)[1]))],
    "hard_sigmoid": [({}, lambda x: np.clip(x / 6 + 0.5, 0, 1))],
    "log_sigmoid": [({}, lambda x: np.log(_sigmoid(x)))],
    "sparse_sigmoid": [({}, lambda x: np.where(x <= -1, 0, np.where(x >= 1, 1, (x + 1) / 2)))],
    "sparse_plus": [({}, lambda x: np.where(x <= -1, 0, np.where(x >= 1, x, (x + 1) ** 2 / 4)))],
    "squareplus": [
        ({}, lambda x: (x + np.sqrt(x**2 + 4)) / 2),
        ({"b": 0.5}, lambda x: (x + np.sqrt(x**2 + 0.5)) / 2),
    ],
    "hard_tanh": [
        ({}, lambda x: np.clip(x, -1, 1)),
        ({"min_val": -2.0, "max_val": 0.5}, lambda x: np.clip(x, -2, 0.5)),
    ],
    "tanh_shrink": [({}, lambda x: x - np.tanh(x))],
    "hard_shrink": [
        ({}, lambda x: np.where(np.abs(x) > 0.5, x, 0)),
        ({"lambd": 2.0}, lambda x: np.where(np.abs(x) > 2, x, 0)),
    ],
    "soft_shrink": [
        ({}, lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.5, 0)),
        ({"lambd": 2.0}, lambda x: np.sign(x) * np.maximum(np.abs(x) - 2, 0)),
    ],
    "rrelu": [({}, lambda x: np.where(x >= 0, x, x * (1 / 8 + 1 / 3) / 2))],
    "threshold": [
        ({}, lambda x: np.where(x > 1, x, 0)),
        ({"threshold": -1.0, "value": 5.0}, lambda x: np.where(x > -1, x, 5)),
    ],
    "quick_gelu": [({}, lambda x: x * _sigmoid(1.702 * x))],
    "hard_mish": [({}, lambda x: x / 2 * np.clip(x + 2, 0, 2))],
    "swish_beta": [({}, lambda x: x * _sigmoid(x)), ({"beta": 2.5}, lambda x: x * _sigmoid(2.5 * x))],
    "squared_relu": [({}, lambda x: np.maximum(x, 0) ** 2)],
    "star_relu": [
        ({"scale": 1.0, "bias": 0.0}, lambda x: np.maximum(x, 0) ** 2),
        ({"scale": 0.5, "bias": 2.0}, lambda x: np.maximum(x, 0) ** 2 / 2 + 2),
    ],
    "exponential": [({}, np.exp)],
    "softmin": [({}, lambda x: _softmax(-x))],
    "sparsemax": [({}, _sparsemax)],
    "swiglu": [({}, lambda x: _halves(x)[0] * _sigmoid(_halves(x)[0]) * _halves(x)[1])],
    "geglu": [
        ({}, lambda x: _halves(x)[0] * (1 + np.vectorize(erf)(_halves(x)[0] / sqrt(2))) / 2 * _halves(x)[1])
    ],
    "reglu": [({}, lambda x: np.maximum(_halves(x)[0], 0) * _halves(x)[1])],
    "crelu": [({}, lambda x: np.concatenate([np.maximum(x, 0), np.maximum(-x, 0)], -1))],
}

NAMES = names("activation")


def points(*shape: int) -> torch.Tensor:
    """Random points with both signs, none on a kink."""
    draw = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return draw * 3


def test_every_activation_of_ours_has_its_formula_here() -> None:
    ours = {name for name in NAMES if REGISTRY.get("activation", name).owner == "dlblocks"}
    assert set(FORMULAS) == ours


@pytest.mark.parametrize("name", FORMULAS)
def test_values_are_the_formulas(name: str) -> None:
    for params, formula in FORMULAS[name]:
        x = points(50, 6)
        got = dlblocks.activation(name, **params).double().eval()(x)
        np.testing.assert_allclose(got.detach().numpy(), formula(x.numpy()), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_the_values(name: str) -> None:
    activation = dlblocks.activation(name).double().eval()
    assert torch.autograd.gradcheck(activation, points(4, 6).requires_grad_())


@pytest.mark.parametrize("name", NAMES)
def test_widths_are_the_declared_ratio(name: str) -> None:
    ratio = width_ratio(name)
    assert dlblocks.activation(name)(torch.randn(5, int(4 * ratio))).shape == (5, 4)
    assert width_ratio(dlblocks.activation(name)) == ratio
    if ratio > 1:
        with pytest.raises((ValueError, RuntimeError)):
            dlblocks.activation(name)(torch.randn(5, int(4 * ratio) + 1))


@pytest.mark.parametrize("name", NAMES)
def test_elementwise_means_that_no_output_sees_another_input(name: str) -> None:
    x = points(6) / 10
    activation = dlblocks.activation(name).double().eval()
    y = activation(x)
    alone = y.shape == x.shape
    for step in torch.eye(6, dtype=x.dtype) / 2 if alone else ():
        moved = activation(x + step) != y
        alone &= not moved[step == 0].any()
    assert REGISTRY.get("activation", name).tags["elementwise"] == alone


@pytest.mark.parametrize("name", NAMES)
def test_trainable_is_tagged(name: str) -> None:
    has = any(True for _ in dlblocks.activation(name).parameters())
    assert REGISTRY.get("activation", name).tags.get("trainable", False) == has


@pytest.mark.parametrize("name", NAMES)
def test_entries_are_told_in_full(name: str) -> None:
    block = REGISTRY.get("activation", name)
    assert block.summary
    assert block.formula
    assert all(param.doc for param in block.params)


@pytest.mark.parametrize("kind", ["activation", "initializer"])
def test_declared_defaults_are_the_signatures(kind: str) -> None:
    for name in names(kind):
        block = REGISTRY.get(kind, name)
        signature = inspect.signature(block.load()).parameters
        for param in block.params:
            declared = param.default if param.origin is SAME else param.origin
            if signature[param.name].default is inspect.Parameter.empty:
                continue  # the origin has none, so there is nothing to differ from
            assert declared == signature[param.name].default, f"{name}.{param.name}"
            assert param.origin is SAME or param.origin != param.default, f"{name}.{param.name}"


# What torch's activations take beside the declared parameters.
UNDECLARED = {"inplace", "device", "dtype", "args", "kwargs", "min_value", "max_value"}


@pytest.mark.parametrize("name", NAMES)
def test_no_parameter_is_left_out(name: str) -> None:
    block = REGISTRY.get("activation", name)
    assert set(inspect.signature(block.load()).parameters) - UNDECLARED == {p.name for p in block.params}


def test_leaky_relu_says_what_torch_has() -> None:
    assert "differs from torch: slope 0.01" in dlblocks.describe("activation", "leaky_relu")
    assert nn.LeakyReLU().negative_slope == 0.01


def test_maxout_along_channels() -> None:
    x = torch.randn(2, 6, 3, 3)
    got = dlblocks.activation("maxout", pieces=3, dim=1)(x)
    assert torch.equal(got, torch.maximum(torch.maximum(x[:, :2], x[:, 2:4]), x[:, 4:]))


@pytest.mark.parametrize("name", [n for n in NAMES if "dim" in REGISTRY.get("activation", n).defaults()])
def test_images_along_channels(name: str) -> None:
    x = points(2, 6, 3, 5)
    got = dlblocks.activation(name, dim=1)(x)
    expected = dlblocks.activation(name)(x.movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", [n for n in NAMES if REGISTRY.get("activation", n).tags["elementwise"]])
def test_elementwise_takes_any_shape(name: str) -> None:
    x = points(2, 6, 3, 5)
    activation = dlblocks.activation(name).double().eval()
    torch.testing.assert_close(activation(x).flatten(), activation(x.flatten()))


@given(pieces=st.integers(1, 5), features=st.integers(1, 5), batch=st.integers(0, 3))
def test_maxout_with_its_linear_layer_is_the_papers_maximum(pieces: int, features: int, batch: int) -> None:
    linear = nn.Linear(3, pieces * features)
    x = torch.randn(batch, 3)
    got = dlblocks.activation("maxout", pieces=pieces)(linear(x))
    weight, bias = linear.weight.view(pieces, features, 3), linear.bias.view(pieces, features)
    expected = (torch.einsum("kfi,ni->nkf", weight, x) + bias).amax(1)
    assert torch.allclose(got, expected, atol=1e-5)


def test_maxout_refuses_features_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="multiple of 2 features along dimension -1, got 5"):
        dlblocks.activation("maxout")(torch.randn(3, 5))


def test_layers_refuse_ratios_that_do_not_divide() -> None:
    from fractions import Fraction

    assert widened(4, Fraction(1, 2)) == 2
    with pytest.raises(ValueError, match="3 features can't come"):
        widened(3, Fraction(1, 2))


def test_a_module_states_its_own_ratio() -> None:
    class CReLU(nn.Module):
        width_ratio = 0.5

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x.relu(), (-x).relu()], -1)

    net = dlblocks.model("mlp", (3,), 2, CReLU(), width=4, depth=1)
    assert net[0].out_features == 2
    assert net(torch.randn(5, 3)).shape == (5, 2)
