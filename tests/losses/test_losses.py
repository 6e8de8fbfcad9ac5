"""Each loss of the registry against its closed formula."""

from __future__ import annotations

from collections.abc import Callable
from math import pi

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import dlblocks
from dlblocks.errors import UserError
from dlblocks.registry import REGISTRY, names

Array = np.ndarray
NAMES = names("loss")
N, C = 7, 4


def _log_softmax(x: Array) -> Array:
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def _bce(x: Array, y: Array) -> Array:
    s = 1 / (1 + np.exp(-x))
    return -(y * np.log(s) + (1 - y) * np.log(1 - s))


def _huber(x: Array, y: Array, delta: float) -> Array:
    e = np.abs(x - y)
    return np.where(e <= delta, e**2 / 2, delta * (e - delta / 2))


def _picked(x: Array, y: Array) -> Array:
    return x[np.arange(len(y)), y]


def _poisson(x: Array, y: Array, full: bool = False) -> Array:
    constant = np.where(y > 1, y * np.log(np.maximum(y, 1)) - y + np.log(2 * pi * np.maximum(y, 1)) / 2, 0)
    return np.exp(x) - y * x + (constant if full else 0)


# Name -> cases of parameters and the values of single instances or outputs, before the reduction.
FORMULAS: dict[str, list[tuple[dict[str, object], Callable[[Array, Array], Array]]]] = {
    "mse": [({}, lambda x, y: (x - y) ** 2)],
    "mae": [({}, lambda x, y: np.abs(x - y))],
    "huber": [({}, lambda x, y: _huber(x, y, 1)), ({"delta": 0.3}, lambda x, y: _huber(x, y, 0.3))],
    "smooth_l1": [
        ({}, lambda x, y: _huber(x, y, 1)),
        ({"beta": 0.3}, lambda x, y: _huber(x, y, 0.3) / 0.3),
        ({"beta": 0.0}, lambda x, y: np.abs(x - y)),
    ],
    "poisson_nll": [({}, _poisson), ({"full": True}, lambda x, y: _poisson(x, y, True))],
    "bce": [
        ({}, _bce),
        ({"label_smoothing": 0.2}, lambda x, y: _bce(x, 0.8 * y + 0.1)),
        (
            {"pos_weight": [1.0, 2.0, 3.0, 4.0]},
            lambda x, y: _bce(x, y) * np.where(y > 0, np.array([1.0, 2.0, 3.0, 4.0]), 1),
        ),
    ],
    "cross_entropy": [
        ({}, lambda x, y: -_picked(_log_softmax(x), y)),
        (
            {"label_smoothing": 0.2},
            lambda x, y: -0.8 * _picked(_log_softmax(x), y) - 0.2 * _log_softmax(x).mean(-1),
        ),
    ],
    "nll": [({}, lambda x, y: -_picked(x, y))],
    "kl_div": [
        ({}, lambda x, y: y * (np.log(y) - x)),
        ({"log_target": True}, lambda x, y: np.exp(y) * (y - x)),
    ],
    "hinge": [
        ({}, lambda x, y: np.maximum(0, 1 - (2 * y - 1) * x)),
        ({"margin": 2.0}, lambda x, y: np.maximum(0, 2 - (2 * y - 1) * x)),
    ],
}


def example(name: str, params: dict[str, object] | None = None) -> tuple[Tensor, Tensor]:
    """An input and a target in the formats that the entry declares."""
    tags = REGISTRY.get("loss", name).tags
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(N, C, generator=draw, dtype=torch.float64) * 2
    if tags["expects"] == "log_probabilities":
        x = x.log_softmax(-1)
    y = {
        "values": torch.randn(N, C, generator=draw, dtype=torch.float64),
        "indicators": torch.randint(2, (N, C), generator=draw).double(),
        "indices": torch.randint(C, (N,), generator=draw),
        "distribution": torch.randn(N, C, generator=draw, dtype=torch.float64).softmax(-1),
    }[tags["target"]]
    if tags["expects"] == "log_rate":
        y = torch.poisson(torch.full((N, C), 2.0), generator=draw).double()
    return x, y.log() if (params or {}).get("log_target") else y


def test_every_loss_has_its_formula_here() -> None:
    assert set(FORMULAS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_values_are_the_formulas_in_every_reduction(name: str) -> None:
    block = REGISTRY.get("loss", name)
    (reduction,) = [param for param in block.params if param.name == "reduction"]
    for params, formula in FORMULAS[name]:
        x, y = example(name, params)
        values = formula(x.numpy(), y.numpy())
        expected = {"none": values, "mean": values.mean(), "sum": values.sum(), "batchmean": values.sum() / N}
        for choice in reduction.choices:
            got = dlblocks.loss(name, **params, reduction=choice)(x, y)
            np.testing.assert_allclose(got.numpy(), expected[choice], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_the_values(name: str) -> None:
    x, y = example(name)
    loss = dlblocks.loss(name)
    assert torch.autograd.gradcheck(lambda x: loss(x, y), x.requires_grad_())


@pytest.mark.parametrize("name", NAMES)
def test_tags_are_legal(name: str) -> None:
    tags = REGISTRY.get("loss", name).tags
    assert set(tags["tasks"]) <= {"regression", "binary", "binary_softmax", "multiclass", "multilabel"}
    assert tags["expects"] in {"values", "logits", "log_probabilities", "probabilities", "log_rate"}
    assert tags["target"] in {"values", "indices", "indicators", "distribution"}
    assert REGISTRY.get("loss", name).formula
    assert REGISTRY.get("loss", name).shape


@pytest.mark.parametrize("name", NAMES)
def test_shapes_that_do_not_belong_together_are_refused(name: str) -> None:
    x, y = example(name)
    wrong = [y[:, None]] if y.ndim == 1 else [y[:, 0], y[:, :1]]
    for target in (*wrong, y[:3]):
        with pytest.raises(ValueError, match="target"):
            dlblocks.loss(name)(x, target)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    x, y = example(name)
    half = x.to(dtype)
    loss = dlblocks.loss(name)
    got = loss(half, y.float() if y.is_floating_point() else y)
    assert got.dtype == torch.float32
    assert torch.allclose(got, loss(half.float(), y.float() if y.is_floating_point() else y))
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(x.float(), y.float() if y.is_floating_point() else y).dtype == torch.float32


@pytest.mark.parametrize("name", ["bce", "cross_entropy", "hinge"])
@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_extreme_logits_stay_finite(name: str, scale: float) -> None:
    x, y = example(name)
    x = (torch.ones_like(x) * scale).requires_grad_()
    loss = dlblocks.loss(name)(x, y)
    loss.backward()
    assert loss.isfinite()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_cross_entropy_takes_indices_one_hot_and_soft_targets() -> None:
    x, y = example("cross_entropy")
    one_hot = torch.nn.functional.one_hot(y, C)
    for params in ({}, {"label_smoothing": 0.1}):
        loss = dlblocks.loss("cross_entropy", **params)
        assert torch.allclose(loss(x, y), loss(x, one_hot))
        assert torch.allclose(loss(x, y), loss(x, one_hot.double()))
    soft = torch.full((N, C), 1 / C, dtype=torch.float64)
    assert torch.allclose(dlblocks.loss("cross_entropy")(x, soft), -x.log_softmax(-1).mean(-1).mean())


@pytest.mark.parametrize("name", ["cross_entropy", "nll"])
def test_class_weights_are_the_weighted_mean(name: str) -> None:
    x, y = example(name)
    weight = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
    each = dlblocks.loss(name, reduction="none")(x, y)
    expected = (each * weight[y]).sum() / weight[y].sum()
    loss = dlblocks.loss(name, weight=weight.tolist())
    assert torch.allclose(loss(x, y), expected)
    assert not loss.state_dict()
    with pytest.raises(UserError, match=r"loss\.weight: has 2 numbers for 4 classes"):
        dlblocks.loss(name, weight=[1, 2])(x, y)


def test_ignored_targets_do_not_count() -> None:
    x, y = example("cross_entropy")
    some = y.clone()
    some[2:] = -100
    assert torch.allclose(
        dlblocks.loss("cross_entropy")(x, some), dlblocks.loss("cross_entropy")(x[:2], y[:2])
    )


def test_hinge_takes_zero_for_minus_one() -> None:
    x, y = example("hinge")
    assert torch.equal(dlblocks.loss("hinge")(x, y), dlblocks.loss("hinge")(x, 2 * y - 1))


@given(smoothing=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_binary_and_categorical_cross_entropy_agree_on_two_classes(smoothing: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(9, generator=draw, dtype=torch.float64)
    y = torch.randint(2, (9,), generator=draw)
    binary = dlblocks.loss("bce", label_smoothing=smoothing)(x, y.double())
    categorical = dlblocks.loss("cross_entropy", label_smoothing=smoothing)(
        torch.stack([torch.zeros_like(x), x], 1), y
    )
    assert torch.allclose(binary, categorical)


def test_parameters_out_of_range_are_refused() -> None:
    for name, params in (
        ("huber", {"delta": 0}),
        ("bce", {"label_smoothing": 1.5}),
        ("mse", {"reduction": "avg"}),
    ):
        with pytest.raises(UserError):
            dlblocks.loss(name, **params)
