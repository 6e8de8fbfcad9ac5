"""Each loss of the registry against its closed formula."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from math import pi

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import dlblocks
from dlblocks.errors import UserError
from dlblocks.losses.base import Loss, reduced
from dlblocks.records import SAME
from dlblocks.registry import REGISTRY, names

Array = np.ndarray
# Losses of an input and a target; those of other arguments and sums have files of their own.
NAMES = [
    name for name in names("loss") if name != "sum" and "arguments" not in REGISTRY.get("loss", name).tags
]
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


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _asymmetric(x: Array, y: Array, gamma_neg: float, gamma_pos: float, clip: float) -> Array:
    p = _sigmoid(x)
    q = np.maximum(p - clip, 0)
    return -y * (1 - p) ** gamma_pos * np.log(p) - (1 - y) * q**gamma_neg * np.log(1 - q)


def _soft_f(x: Array, y: Array, beta: float) -> Array:
    p = _sigmoid(x)
    precision, recall = (p * y).sum(0) / p.sum(0), (p * y).sum(0) / np.maximum(y.sum(0), 1e-300)
    return 1 - (1 + beta**2) * precision * recall / np.maximum(beta**2 * precision + recall, 1e-300)


def _multilabel_margin(x: Array, y: Array) -> Array:
    return np.array(
        [
            sum(
                max(0, 1 - row[i] + row[j])
                for i in np.flatnonzero(wanted)
                for j in np.flatnonzero(1 - wanted)
            )
            / C
            for row, wanted in zip(x, y, strict=True)
        ]
    )


def _multi_margin(x: Array, y: Array, p: int, margin: float) -> Array:
    others = np.maximum(0, margin - _picked(x, y)[:, None] + x) ** p
    return (others.sum(-1) - margin**p) / C


def _strongest_margin(x: Array, y: Array, margin: float) -> Array:
    others = np.where(np.eye(C)[y] > 0, -np.inf, x).max(-1)
    return np.maximum(0, margin + others - _picked(x, y))


def _bi_tempered(x: Array, y: Array, t1: float, t2: float) -> Array:
    """The normalisation by bisection, so that it shares nothing with the iteration of the paper."""

    def exp_t(u: Array) -> Array:
        return np.exp(u) if t2 == 1 else np.maximum(1 + (1 - t2) * u, 0) ** (1 / (1 - t2))

    low, high = x.max(-1, keepdims=True) - 1e-9, x.max(-1, keepdims=True) + 1e4
    for _ in range(200):
        middle = (low + high) / 2
        large = exp_t(x - middle).sum(-1, keepdims=True) > 1
        low, high = np.where(large, middle, low), np.where(large, high, middle)
    p = exp_t(x - low)
    log_of_target = (_picked(p, y) ** (1 - t1) - 1) / (1 - t1)
    return -log_of_target - (1 - (p ** (2 - t1)).sum(-1)) / (2 - t1)


def _asymmetric_single(x: Array, y: Array, gamma_pos: float, gamma_neg: float, smoothing: float) -> Array:
    log_p, one_hot = _log_softmax(x), np.eye(C)[y]
    weight = np.where(one_hot > 0, (1 - np.exp(log_p)) ** gamma_pos, np.exp(log_p) ** gamma_neg)
    return -((one_hot * (1 - smoothing) + smoothing / C) * weight * log_p).sum(-1)


def _focal_cosine(x: Array, y: Array, gamma: float, weight: float) -> Array:
    unit = x / np.linalg.norm(x, axis=-1, keepdims=True)
    log_p = _picked(_log_softmax(unit), y)
    return 1 - _picked(unit, y) - weight * (1 - np.exp(log_p)) ** gamma * log_p


def _sparsemax_loss(x: Array, y: Array) -> Array:
    """As the Fenchel-Young loss: max over the simplex of x p - |p|^2 / 2, less its value at the target."""
    low, high = x.min(-1, keepdims=True) - 1, x.max(-1, keepdims=True)
    for _ in range(200):
        middle = (low + high) / 2
        above = np.maximum(x - middle, 0).sum(-1, keepdims=True) > 1
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    p = np.maximum(x - low, 0)
    return (x * p).sum(-1) - (p**2).sum(-1) / 2 - (_picked(x, y) - 0.5)


def _gaussian(x: Array, y: Array, eps: float = 1e-6) -> Array:
    mean, variance = x[:, :C], np.maximum(np.exp(x[:, C:]), eps)
    return (np.log(variance) + (y - mean) ** 2 / variance) / 2


def _masks(x: Array, y: Array) -> tuple[Array, Array]:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True), np.moveaxis(np.eye(C)[y], -1, 1)


def _regions(x: Array, y: Array, share: Callable[[Array, Array, Array], Array]) -> Array:
    p, mask = _masks(x, y)
    return 1 - share((p * mask).sum(-1), p.sum(-1), mask.sum(-1))


def _generalized_dice(x: Array, y: Array) -> Array:
    p, mask = _masks(x, y)
    size = mask.sum(-1)
    smallest = np.where(size > 0, size, np.inf).min(-1, keepdims=True)
    weight = 1 / np.where(size > 0, size, smallest) ** 2
    return 1 - 2 * (weight * (p * mask).sum(-1)).sum(-1) / (weight * (p.sum(-1) + size)).sum(-1)


def _lovasz_softmax(x: Array, y: Array) -> Array:
    """As the Lovasz extension is defined: one threshold after the other, sets written out."""

    def jaccard(wrong: set[int], wanted: set[int]) -> float:
        """Of a mask that is wrong at these places: 1 - intersection / union."""
        return 1 - len(wanted - wrong) / len(wanted | wrong)

    values = []
    for probabilities, mask in zip(*_masks(x, y), strict=True):
        of_classes = []
        for p, m in zip(probabilities, mask, strict=True):
            wanted = {int(i) for i in np.flatnonzero(m)}
            if not wanted:
                continue
            errors = np.abs(m - p)
            order = [int(i) for i in np.argsort(-errors)]
            total = sum(
                errors[place] * (jaccard(set(order[: k + 1]), wanted) - jaccard(set(order[:k]), wanted))
                for k, place in enumerate(order)
            )
            of_classes.append(total)
        values.append(np.mean(of_classes))
    return np.array(values)


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
    "squared_hinge": [
        ({}, lambda x, y: np.maximum(0, 1 - (2 * y - 1) * x) ** 2),
        ({"margin": 2.0}, lambda x, y: np.maximum(0, 2 - (2 * y - 1) * x) ** 2),
    ],
    "quantile": [
        ({}, lambda x, y: np.abs(x - y) / 2),
        ({"q": 0.9}, lambda x, y: np.where(y > x, 0.9 * (y - x), 0.1 * (x - y))),
    ],
    "log_cosh": [({}, lambda x, y: np.log(np.cosh(x - y)))],
    "binary_focal": [
        ({}, lambda x, y: (1 - np.exp(-_bce(x, y))) ** 2 * _bce(x, y)),
        ({"gamma": 0.0}, _bce),
        (
            {"gamma": 0.5, "alpha": 0.25},
            lambda x, y: np.where(y > 0, 0.25, 0.75) * (1 - np.exp(-_bce(x, y))) ** 0.5 * _bce(x, y),
        ),
    ],
    "soft_margin": [({}, lambda x, y: np.log1p(np.exp(-(2 * y - 1) * x)))],
    "perceptron": [({}, lambda x, y: np.maximum(0, -(2 * y - 1) * x))],
    "asymmetric": [
        ({}, lambda x, y: _asymmetric(x, y, 4.0, 1.0, 0.05)),
        ({"gamma_neg": 0.5, "gamma_pos": 2.0, "clip": 0.0}, lambda x, y: _asymmetric(x, y, 0.5, 2.0, 0.0)),
    ],
    "soft_f1": [({}, lambda x, y: _soft_f(x, y, 1.0)), ({"beta": 2.0}, lambda x, y: _soft_f(x, y, 2.0))],
    "multilabel_margin": [({}, lambda x, y: _multilabel_margin(x, y))],
    "multi_margin": [
        ({}, lambda x, y: _multi_margin(x, y, 1, 1.0)),
        ({"p": 2, "margin": 0.5}, lambda x, y: _multi_margin(x, y, 2, 0.5)),
    ],
    "categorical_hinge": [
        ({}, lambda x, y: _strongest_margin(x, y, 1.0)),
        ({"margin": 0.0}, lambda x, y: _strongest_margin(x, y, 0.0)),
    ],
    "poly_cross_entropy": [
        ({}, lambda x, y: -_picked(_log_softmax(x), y) + 2 * (1 - np.exp(_picked(_log_softmax(x), y)))),
        (
            {"epsilon": -0.5, "label_smoothing": 0.2},
            lambda x, y: (
                -0.8 * _picked(_log_softmax(x), y)
                - 0.2 * _log_softmax(x).mean(-1)
                - 0.5 * (1 - np.exp(_picked(_log_softmax(x), y)))
            ),
        ),
    ],
    "generalized_cross_entropy": [
        ({}, lambda x, y: (1 - np.exp(_picked(_log_softmax(x), y)) ** 0.7) / 0.7),
        ({"q": 1.0}, lambda x, y: 1 - np.exp(_picked(_log_softmax(x), y))),
    ],
    "bi_tempered": [
        ({}, lambda x, y: _bi_tempered(x, y, 0.8, 1.3)),
        ({"t1": 0.5, "t2": 2.0, "iterations": 100}, lambda x, y: _bi_tempered(x, y, 0.5, 2.0)),
        ({"t1": 1.0, "t2": 1.0}, lambda x, y: -_picked(_log_softmax(x), y)),
    ],
    "ldam": [
        ({"scale": 2.0}, lambda x, y: -_picked(_log_softmax(2 * (x - 0.5 * np.eye(C)[y])), y)),
        (
            {"counts": [1, 16, 81, 256], "scale": 1.0, "max_margin": 0.6},
            lambda x, y: (
                -_picked(_log_softmax(x - np.array([0.6, 0.3, 0.2, 0.15])[y][:, None] * np.eye(C)[y]), y)
            ),
        ),
    ],
    "asymmetric_single_label": [
        ({}, lambda x, y: _asymmetric_single(x, y, 0.0, 4.0, 0.1)),
        (
            {"gamma_pos": 1.0, "gamma_neg": 2.0, "label_smoothing": 0.3},
            lambda x, y: _asymmetric_single(x, y, 1.0, 2.0, 0.3),
        ),
    ],
    "focal_cosine": [
        ({}, lambda x, y: _focal_cosine(x, y, 2.0, 0.1)),
        ({"gamma": 1.0, "focal_weight": 2.0}, lambda x, y: _focal_cosine(x, y, 1.0, 2.0)),
    ],
    "sparsemax_loss": [({}, lambda x, y: _sparsemax_loss(x, y))],
    "generalized_kl": [({}, lambda x, y: y * (np.log(y) - x) + np.exp(x) - y)],
    "gaussian_nll": [
        ({}, lambda x, y: _gaussian(x, y)),
        ({"full": True, "eps": 0.5}, lambda x, y: _gaussian(x, y, 0.5) + np.log(2 * np.pi) / 2),
    ],
    "tweedie": [
        ({}, lambda x, y: 2 * np.exp(x / 2) + 2 * y * np.exp(-x / 2)),
        ({"p": 1.2}, lambda x, y: np.exp(0.8 * x) / 0.8 + y * np.exp(-0.2 * x) / 0.2),
    ],
    "gamma_nll": [({}, lambda x, y: x + y * np.exp(-x))],
    "msle": [({}, lambda x, y: (np.log1p(np.maximum(x, 0)) - np.log1p(y)) ** 2)],
    "mape": [
        ({}, lambda x, y: np.abs(x - y) / np.abs(y)),
        ({"eps": 1.0}, lambda x, y: np.abs(x - y) / np.maximum(np.abs(y), 1)),
    ],
    "cosine_similarity": [
        ({}, lambda x, y: 1 - (x * y).sum(-1) / np.linalg.norm(x, axis=-1) / np.linalg.norm(y, axis=-1))
    ],
    "dice": [
        ({}, lambda x, y: _regions(x, y, lambda tp, p, t: (2 * tp + 1) / (p + t + 1))),
        ({"smooth": 0.0}, lambda x, y: _regions(x, y, lambda tp, p, t: 2 * tp / (p + t))),
    ],
    "jaccard": [
        ({}, lambda x, y: _regions(x, y, lambda tp, p, t: (tp + 1) / (p + t - tp + 1))),
        ({"smooth": 0.1}, lambda x, y: _regions(x, y, lambda tp, p, t: (tp + 0.1) / (p + t - tp + 0.1))),
    ],
    "tversky": [
        (
            {},
            lambda x, y: _regions(
                x, y, lambda tp, p, t: (tp + 1) / (tp + 0.3 * (p - tp) + 0.7 * (t - tp) + 1)
            ),
        ),
        (
            {"alpha": 2.0, "beta": 0.5, "smooth": 0.5},
            lambda x, y: _regions(
                x, y, lambda tp, p, t: (tp + 0.5) / (tp + 2 * (p - tp) + 0.5 * (t - tp) + 0.5)
            ),
        ),
    ],
    "focal_tversky": [
        (
            {},
            lambda x, y: (
                _regions(x, y, lambda tp, p, t: (tp + 1) / (tp + 0.3 * (p - tp) + 0.7 * (t - tp) + 1)) ** 0.75
            ),
        ),
        (
            {"gamma": 2.0, "alpha": 0.5, "beta": 0.5, "smooth": 0.1},
            lambda x, y: np.sqrt(_regions(x, y, lambda tp, p, t: (tp + 0.1) / ((p + t) / 2 + 0.1))),
        ),
    ],
    "generalized_dice": [({}, lambda x, y: _generalized_dice(x, y))],
    "lovasz": [({}, lambda x, y: _lovasz_softmax(x, y))],
    "focal": [
        (
            {},
            lambda x, y: -((1 - np.exp(_picked(_log_softmax(x), y))) ** 2) * _picked(_log_softmax(x), y),
        ),
        ({"gamma": 0.0}, lambda x, y: -_picked(_log_softmax(x), y)),
    ],
}


def example(name: str, params: dict[str, object] | None = None) -> tuple[Tensor, Tensor]:
    """An input and a target in the formats that the entry declares."""
    tags = REGISTRY.get("loss", name).tags
    draw = torch.Generator().manual_seed(0)
    shape = {"mean_log_variance": (N, 2 * C)}.get(tags["expects"], (N, C))
    if tags["target"] == "masks":
        shape = (N, C, 6)
    x = torch.randn(*shape, generator=draw, dtype=torch.float64) * 2
    if tags["expects"] == "log_probabilities":
        x = x.log_softmax(-1)
    y = {
        "values": torch.randn(N, C, generator=draw, dtype=torch.float64),
        "indicators": torch.randint(2, (N, C), generator=draw).double(),
        "indices": torch.randint(C, (N,), generator=draw),
        "masks": torch.randint(C, (N, 6), generator=draw),
        "distribution": torch.randn(N, C, generator=draw, dtype=torch.float64).softmax(-1),
    }[tags["target"]]
    if "target_range" in tags:
        y = torch.poisson(torch.full((N, C), 2.0), generator=draw).double() + (tags["target_range"][0] == "(")
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
    tasks = {"regression", "binary", "binary_softmax", "multiclass", "multilabel", "segmentation"}
    expected = {"values", "logits", "log_probabilities", "probabilities", "log_rate", "mean_log_variance"}
    assert set(tags["tasks"]) <= tasks
    assert tags["expects"] in expected
    assert tags["tasks"]
    assert tags["target"] in {"values", "indices", "indicators", "distribution", "masks"}
    assert set(tags) <= {"tasks", "expects", "target", "target_range", "unscaled", "whole_batch"}
    assert REGISTRY.get("loss", name).formula
    assert REGISTRY.get("loss", name).shape


@pytest.mark.parametrize("name", NAMES)
def test_shapes_that_do_not_belong_together_are_refused(name: str) -> None:
    x, y = example(name)
    wrong = [y[:, None]] if y.ndim == 1 or x.ndim == 3 else [y[:, 0], y[:, :1]]
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


# The exponential of 10,000 is no number; the squared error of a log-value is none either.
BOUNDED = [
    name
    for name in NAMES
    if REGISTRY.get("loss", name).tags["expects"] not in ("log_rate", "mean_log_variance")
]


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_extreme_inputs_stay_finite(name: str, dtype: torch.dtype) -> None:
    _, y = example(name)
    rows = torch.tensor([1e4, -1e4, 1e4, 0.0]).repeat(N, 1)
    x = (
        (rows[..., None].repeat(1, 1, 6) if y.ndim == 2 and y.shape[1] == 6 else rows)
        .to(dtype)
        .requires_grad_()
    )
    fed = x.log_softmax(-1) if REGISTRY.get("loss", name).tags["expects"] == "log_probabilities" else x
    loss = dlblocks.loss(name)(fed, y)
    loss.backward()
    assert loss.isfinite()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_the_fused_losses_keep_what_half_precision_loses() -> None:
    # exp(12) is no float16, and 1 + exp(-12) no bfloat16 other than 1.
    x, y = torch.tensor([12.0, -12.0]), torch.tensor([1.0, 0.0])
    expected = np.log1p(np.exp(-12.0))
    for dtype in (torch.float16, torch.bfloat16):
        # 1e-6: float32's rounding at 12. In half precision the small loss would be 0.
        assert dlblocks.loss("bce")(x.to(dtype), y).item() == pytest.approx(expected, abs=1e-6)
        assert dlblocks.loss("poisson_nll")(x[:1].to(dtype), y[:1]).item() == pytest.approx(np.exp(12) - 12)


def test_a_formula_of_ones_own_is_spared_autocast() -> None:
    class Mahalanobis(Loss):
        def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
            e = input - target
            return reduced((e @ e.T).diagonal(), reduction)

    x = torch.full((1, 2), 1 + 2**-10)
    with torch.autocast("cpu", torch.bfloat16):
        got = Mahalanobis()(x, torch.zeros_like(x))
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(2 * (1 + 2**-10) ** 2, rel=1e-7)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool, torch.float64, torch.float16])
def test_a_target_may_have_any_type_that_holds_it(name: str, dtype: torch.dtype) -> None:
    x, like = example(name)
    x = x.float().requires_grad_()
    indices = REGISTRY.get("loss", name).tags["target"] in ("indices", "masks")
    y = torch.arange(like.numel()).view(like.shape) % 2 if indices else F.one_hot(torch.arange(N) % C, C)
    loss = dlblocks.loss(name)
    if indices and dtype.is_floating_point:
        with pytest.raises(ValueError, match="whole numbers"):
            loss(x, y.to(dtype))
        return
    got = loss(x, y.to(dtype))
    got.backward()
    assert got.dtype == torch.float32
    assert torch.equal(got, loss(x, y if indices else y.float()))


@pytest.mark.parametrize("name", NAMES)
def test_stacked_runs_have_a_batching_rule(name: str) -> None:
    x, y = example(name)
    loss = dlblocks.loss(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = torch.vmap(torch.func.grad(loss), (0, None))(torch.stack([x, 2 * x]), y)
    for stacked, scale in zip(got, (1, 2), strict=True):
        assert torch.allclose(stacked, torch.func.grad(loss)(scale * x, y))


@pytest.mark.parametrize("name", NAMES)
def test_shapes_are_known_without_data(name: str) -> None:
    x, y = (tensor.to("meta") for tensor in example(name))
    assert dlblocks.loss(name)(x, y).shape == ()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "soft_f1"])
def test_sample_weights_multiply_the_values_and_divide_the_mean(name: str) -> None:
    x, y = example(name)
    weight = torch.tensor([0.0, 1.0, 2.0, 0.5, 1.0, 0.0, 3.0], dtype=torch.float64)
    for params, _ in FORMULAS[name]:
        _, y = example(name, params)
        values = dlblocks.loss(name, **params, reduction="none")(x, y)
        spread = weight.view(-1, *[1] * (values.ndim - 1))
        expected = {
            "none": spread * values,
            "sum": (spread * values).sum(),
            "mean": (spread * values).sum() / spread.expand_as(values).sum(),
            "batchmean": (spread * values).sum() / weight.sum(),
        }
        for reduction in REGISTRY.get("loss", name).load().reductions:
            got = dlblocks.loss(name, **params, reduction=reduction)(x, y, weight)
            torch.testing.assert_close(got, expected[reduction])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_whole_weights_are_repetitions_and_ones_are_none(name: str, reduction: str) -> None:
    x, y = example(name)
    times = torch.tensor([1, 0, 2, 3, 1, 0, 1])
    loss = dlblocks.loss(name, reduction=reduction)
    torch.testing.assert_close(
        loss(x, y, times), loss(x.repeat_interleave(times, 0), y.repeat_interleave(times, 0))
    )
    torch.testing.assert_close(loss(x, y, torch.ones(N)), loss(x, y))
    with pytest.raises(
        ValueError, match=r"sample_weight \(3,\) must have one number for each of the 7 instances"
    ):
        loss(x, y, torch.ones(3))


@pytest.mark.parametrize("name", ["cross_entropy", "nll", "ldam"])
def test_sample_weights_and_class_weights_together(name: str) -> None:
    x, y = example(name)
    classes = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
    times = torch.tensor([1, 0, 2, 3, 1, 0, 1])
    loss = dlblocks.loss(name, weight=classes.tolist())
    torch.testing.assert_close(
        loss(x, y, times), loss(x.repeat_interleave(times, 0), y.repeat_interleave(times))
    )


@pytest.mark.parametrize("name", ["cross_entropy", "nll"])
def test_sample_weights_of_ignored_targets_do_not_count(name: str) -> None:
    x, y = example(name)
    some = y.clone()
    some[:3] = -100
    weight = torch.rand(N, dtype=torch.float64)
    loss = dlblocks.loss(name)
    torch.testing.assert_close(loss(x, some, weight), loss(x[3:], y[3:], weight[3:]))


@pytest.mark.parametrize("name", NAMES)
def test_declared_parameters_are_the_signatures(name: str) -> None:
    block = REGISTRY.get("loss", name)
    signature = inspect.signature(block.load()).parameters
    assert {param.name for param in block.params} == set(signature)
    assert {param.name: param.default for param in block.params} == {
        key: parameter.default for key, parameter in signature.items()
    }
    (reduction,) = [param for param in block.params if param.name == "reduction"]
    loss = block.load()()
    assert isinstance(loss, Loss)
    assert loss.reductions == reduction.choices


TORCH = {
    "mse": nn.MSELoss,
    "mae": nn.L1Loss,
    "huber": nn.HuberLoss,
    "smooth_l1": nn.SmoothL1Loss,
    "poisson_nll": nn.PoissonNLLLoss,
    "bce": nn.BCEWithLogitsLoss,
    "cross_entropy": nn.CrossEntropyLoss,
    "nll": nn.NLLLoss,
    "kl_div": nn.KLDivLoss,
}


@pytest.mark.parametrize("name", TORCH)
def test_origin_is_torchs_default_where_ours_differs(name: str) -> None:
    theirs = inspect.signature(TORCH[name]).parameters
    for param in REGISTRY.get("loss", name).params:
        if param.name in theirs:
            differs = theirs[param.name].default != param.default
            assert (param.origin is not SAME) == differs, param.name
            if differs:
                assert param.origin == theirs[param.name].default


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_reduction_is_refused_by_the_class_too(name: str) -> None:
    with pytest.raises(ValueError, match="reduction='avg': must be one of none, "):
        REGISTRY.get("loss", name).load()(reduction="avg")


def test_cross_entropy_takes_indices_one_hot_and_soft_targets() -> None:
    x, y = example("cross_entropy")
    one_hot = torch.nn.functional.one_hot(y, C)
    for params in ({}, {"label_smoothing": 0.1}):
        loss = dlblocks.loss("cross_entropy", **params)
        assert torch.allclose(loss(x, y), loss(x, one_hot))
        assert torch.allclose(loss(x, y), loss(x, one_hot.double()))
    with pytest.raises(ValueError, match="ignore_index=1 needs a target of indices"):
        dlblocks.loss("cross_entropy", ignore_index=1)(x, one_hot)
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


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_weights_and_smoothing_together_are_torchs(reduction: str, smoothing: float) -> None:
    x, y = example("cross_entropy")
    weight = [0.1, 1.0, 2.0, 0.7]
    ours = dlblocks.loss("cross_entropy", weight=weight, label_smoothing=smoothing, reduction=reduction)
    theirs = nn.CrossEntropyLoss(torch.tensor(weight), label_smoothing=smoothing, reduction=reduction)
    for target in (y, x.flip(0).softmax(-1)):
        expected = theirs.double()(x, target)
        assert torch.equal(ours(x, target), expected)
    # One-hot and soft targets are divided by N, not by the sum of weights: torch's convention, and noted.
    if reduction == "mean":
        total = dlblocks.loss("cross_entropy", weight=weight, reduction="sum")(x, y)
        assert torch.allclose(dlblocks.loss("cross_entropy", weight=weight)(x, F.one_hot(y, C)), total / N)


def test_weights_move_with_the_module_and_stay_out_of_checkpoints() -> None:
    for name, params in (
        ("cross_entropy", {"weight": [1, 2]}),
        ("nll", {"weight": [1, 2]}),
        ("bce", {"pos_weight": [1, 2]}),
    ):
        loss = dlblocks.loss(name, **params)
        assert [buffer.dtype for buffer in loss.double().buffers()] == [torch.float64]
        assert [buffer.device.type for buffer in loss.to("meta").buffers()] == ["meta"]
        assert not loss.state_dict()


def test_pos_weight_is_one_number_for_each_output() -> None:
    x, y = example("bce")
    single = dlblocks.loss("bce", pos_weight=[3])
    assert torch.allclose(single(x[:, 0], y[:, 0]), single(x[:, :1], y[:, :1]))
    with pytest.raises(UserError, match=r"loss\.pos_weight: has 1 numbers for 4 classes"):
        single(x, y)


@pytest.mark.parametrize("name", ["cross_entropy", "nll"])
@pytest.mark.parametrize("ignored", [-100, 1])
def test_ignored_targets_do_not_count(name: str, ignored: int) -> None:
    x, y = example(name)
    y = torch.where(y == ignored, 0, y)
    some = y.clone()
    some[2:] = ignored
    loss = dlblocks.loss(name, ignore_index=ignored)
    assert torch.allclose(loss(x, some), loss(x[:2], y[:2]))


@pytest.mark.parametrize("name", ["cross_entropy", "nll"])
def test_a_class_for_each_pixel(name: str) -> None:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(2, C, 3, 5, generator=draw, dtype=torch.float64).log_softmax(1)
    y = torch.randint(C, (2, 3, 5), generator=draw)
    loss = dlblocks.loss(name)
    assert torch.allclose(loss(x, y), loss(x.movedim(1, -1).reshape(-1, C), y.flatten()))


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


@given(delta=st.floats(0.01, 100), seed=st.integers(0, 2**31))
def test_huber_is_smooth_l1_times_delta(delta: float, seed: int) -> None:
    x, y = torch.randn(2, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * delta
    huber, smooth = dlblocks.loss("huber", delta=delta), dlblocks.loss("smooth_l1", beta=delta)
    assert torch.allclose(huber(x, y), delta * smooth(x, y))


@given(seed=st.integers(0, 2**31), classes=st.integers(1, 6))
def test_divergence_is_cross_entropy_less_entropy_and_never_negative(seed: int, classes: int) -> None:
    x, y = torch.randn(2, 5, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    p = y.softmax(-1)
    divergence = dlblocks.loss("kl_div")(x.log_softmax(-1), p)
    entropy = -(p * p.log()).sum(-1).mean()
    assert torch.allclose(divergence, dlblocks.loss("cross_entropy")(x, p) - entropy)
    assert divergence > -1e-12


def test_divergence_from_a_one_hot_target_is_the_negative_log_likelihood() -> None:
    x, y = example("nll")
    assert torch.allclose(dlblocks.loss("kl_div")(x, F.one_hot(y, C)), dlblocks.loss("nll")(x, y))


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("huber", {"delta": 0}),
        ("smooth_l1", {"beta": -1}),
        ("hinge", {"margin": 0}),
        ("bce", {"label_smoothing": 1.5}),
        ("bce", {"pos_weight": [-1]}),
        ("cross_entropy", {"weight": 2}),
        ("mse", {"reduction": "avg"}),
        ("mse", {"reduction": "batchmean"}),
    ],
)
def test_parameters_out_of_range_are_refused(name: str, params: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"loss.{next(iter(params))}="):
        dlblocks.loss(name, **params)
