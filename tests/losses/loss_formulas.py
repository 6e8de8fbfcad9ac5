"""What a loss of each name is: its closed formula in numpy, and an example in the formats of its entry."""

from __future__ import annotations

from collections.abc import Callable
from math import pi

import numpy as np
import torch
from torch import Tensor

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


def _poisson_of_rates(x: Array, y: Array) -> Array:
    return x - y * np.log(x + 1e-8)


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _asymmetric(x: Array, y: Array, gamma_neg: float, gamma_pos: float, clip: float) -> Array:
    p = _sigmoid(x)
    q = np.maximum(p - clip, 0)
    return -y * (1 - p) ** gamma_pos * np.log(p) - (1 - y) * q**gamma_neg * np.log(1 - q)


def _zlpr(x: Array, y: Array) -> Array:
    terms = zip(x, y, strict=True)
    return np.array(
        [np.log1p(np.exp(a[b == 0]).sum()) + np.log1p(np.exp(-a[b == 1]).sum()) for a, b in terms]
    )


def _distribution_balanced(
    x: Array,
    y: Array,
    counts: Array,
    instances: int,
    beta: float = 10.0,
    mu: float = 0.2,
    neg_scale: float = 2.0,
) -> Array:
    z = x - 0.05 / neg_scale * np.log(instances / counts - 1)
    with np.errstate(divide="ignore"):  # no label of an instance is wanted
        shares = np.minimum((1 / counts) / (y / counts).sum(-1, keepdims=True), 1e9)
    weight = 0.1 + _sigmoid(beta * (shares - mu))
    p, q = _sigmoid(z), _sigmoid(neg_scale * z)
    return 2 * weight * np.where(y > 0, -((1 - p) ** 2) * np.log(p), -(q**2) * np.log(1 - q) / neg_scale)


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
    "poisson_nll": [
        ({}, _poisson),
        ({"full": True}, lambda x, y: _poisson(x, y, True)),
        ({"log_input": False}, _poisson_of_rates),
    ],
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
    "poly_binary": [
        ({}, lambda x, y: _bce(x, y) + 2 * (1 - np.exp(-_bce(x, y)))),
        (
            {"epsilon": -0.5, "gamma": 1.5, "alpha": 0.25},
            lambda x, y: (
                np.where(y > 0, 0.25, 0.75)
                * (1 - np.exp(-_bce(x, y))) ** 1.5
                * (_bce(x, y) - 0.5 * (1 - np.exp(-_bce(x, y))))
            ),
        ),
    ],
    "zlpr": [({}, lambda x, y: _zlpr(x, y))],
    "distribution_balanced": [
        ({}, lambda x, y: _distribution_balanced(x, y, np.full(4, 1.0), 2)),
        (
            {"counts": [5.0, 40.0, 20.0, 10.0], "instances": 90, "beta": 3.0, "mu": 0.4, "neg_scale": 3.0},
            lambda x, y: _distribution_balanced(x, y, np.array([5.0, 40, 20, 10]), 90, 3.0, 0.4, 3.0),
        ),
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
    if (params or {}).get("log_input") is False:
        x = x.exp()
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
