"""Each difference that an entry declares is there, and is just that.

The library's numbers are ours with the declared change; timm's are in tests/foreign.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import pytorch_optimizer
import torch
from torch import nn
from torch.nn import functional as F

import dlblocks
from dlblocks.registry import REGISTRY

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("jax_values.json").read_text())
X = torch.tensor(RECORDED["x"], dtype=torch.float64)
START = np.array(RECORDED["start"])
GRADS = np.array(RECORDED["grads"])

CHECKS: dict[tuple[str, str, str], Callable[[], None]] = {}


def differs(kind: str, name: str, library: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def add(check: Callable[[], None]) -> Callable[[], None]:
        CHECKS[kind, name, library] = check
        return check

    return add


def default(function: Any, name: str) -> Any:
    return inspect.signature(function).parameters[name].default


def close(a: Any, b: Any, tolerance: float = 1e-6) -> None:
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


# Activations.


@differs("activation", "leaky_relu", "torch")
def _() -> None:
    assert nn.LeakyReLU().negative_slope == 0.01
    close(nn.LeakyReLU()(X), dlblocks.activation("leaky_relu", negative_slope=0.01)(X))


@differs("activation", "leaky_relu", "jax")
def _() -> None:
    ours = dlblocks.activation("leaky_relu", negative_slope=0.01)(X)
    close(RECORDED["activations"]["leaky_relu"]["y"], ours)


@differs("activation", "leaky_relu", "keras")
def _() -> None:
    assert default(keras.activations.leaky_relu, "negative_slope") == 0.2
    assert default(keras.layers.LeakyReLU, "negative_slope") == 0.3


@differs("activation", "prelu", "keras")
def _() -> None:
    layer = keras.layers.PReLU()
    layer.build((None, 3, 4))
    assert layer.alpha.shape == (3, 4)
    assert not layer.alpha.value.any()
    assert dlblocks.activation("prelu").weight.tolist() == [0.25]


@differs("activation", "gelu", "jax")
def _() -> None:
    close(RECORDED["activations"]["gelu"]["y"], dlblocks.activation("gelu", approximate="tanh")(X))
    assert not np.allclose(RECORDED["activations"]["gelu"]["y"], dlblocks.activation("gelu")(X), atol=1e-6)


@differs("activation", "threshold", "torch")
def _() -> None:
    for name in ("threshold", "value"):
        assert default(nn.Threshold, name) is inspect.Parameter.empty


@differs("activation", "sparsemax", "keras")
def _() -> None:
    ordered = X.sort(dim=-1, descending=True).values
    total, rank = ordered.cumsum(-1), torch.arange(1, X.shape[-1] + 1)
    support = ordered - (total - 1) / rank > 0
    threshold = ((total * support).sum(-1, keepdim=True) - 1) / support.sum(-1, keepdim=True)
    theirs = keras.activations.sparsemax(X)
    close(theirs, (X - threshold).clamp_min(0))
    assert not np.allclose(theirs, dlblocks.activation("sparsemax")(X))


# Initialisers.


@differs("initializer", "normal", "torch")
def _() -> None:
    assert default(nn.init.normal_, "std") == 1.0


@differs("initializer", "normal", "jax")
def _() -> None:
    assert RECORDED["initializers"]["normal"]["matrix"]["std"] == pytest.approx(0.01, rel=0.01)


@differs("initializer", "uniform", "torch")
def _() -> None:
    assert (default(nn.init.uniform_, "a"), default(nn.init.uniform_, "b")) == (0.0, 1.0)


@differs("initializer", "uniform", "jax")
def _() -> None:
    recorded = RECORDED["initializers"]["uniform"]["matrix"]
    assert (round(recorded["min"], 4), round(recorded["max"], 4)) == (0.0, 0.01)


@differs("initializer", "truncated_normal", "torch")
def _() -> None:
    values = nn.init.trunc_normal_(torch.empty(100_000), std=10.0)
    assert 1.99 < values.abs().max() <= 2
    ours = dlblocks.initializer("truncated_normal", std=10.0)(torch.empty(100_000))
    assert 19.9 < ours.abs().max() <= 20


@differs("initializer", "he_normal", "torch")
def _() -> None:
    assert nn.init.kaiming_normal_(torch.empty(300, 300)).abs().max() > 3 * math.sqrt(2 / 300)
    assert dlblocks.initializer("he_normal")(torch.empty(300, 300)).abs().max() < 2.3 * math.sqrt(2 / 300)


@differs("initializer", "glorot_normal", "torch")
def _() -> None:
    assert nn.init.xavier_normal_(torch.empty(300, 300)).abs().max() > 3 * math.sqrt(1 / 300)
    assert dlblocks.initializer("glorot_normal")(torch.empty(300, 300)).abs().max() < 2.3 * math.sqrt(1 / 300)


@differs("initializer", "variance_scaling", "keras")
def _() -> None:
    assert default(keras.initializers.VarianceScaling, "scale") == 1.0
    values = keras.initializers.VarianceScaling(distribution="normal", seed=0)(shape=(300, 300))
    # Keras draws a value anew three times; of a normal distribution, 2 % would lie beyond.
    assert (values.abs() > 2.3 * math.sqrt(1 / 300)).double().mean() < 1e-4
    ours = dlblocks.initializer("variance_scaling", distribution="normal")(torch.empty(300, 300))
    assert (ours.abs() > 2.3 * math.sqrt(1 / 300)).double().mean() > 0.01


@differs("initializer", "sparse", "torch")
def _() -> None:
    theirs = nn.init.sparse_(torch.empty(20, 10), sparsity=0.5)
    assert (theirs == 0).sum(0).tolist() == [10] * 10
    ours = dlblocks.initializer("sparse", sparsity=0.5)(torch.empty(20, 10))
    assert (ours == 0).sum(1).tolist() == [5] * 20


# Losses.


@differs("loss", "mse", "optax")
def _() -> None:
    close(RECORDED["losses"]["l2_loss"]["y"], dlblocks.loss("mse", reduction="none")(X, X.flip(0)) / 2)


@differs("loss", "ranking_softmax", "optax")
def _() -> None:
    labels = (X.flip(0) > 0).double()
    ours = dlblocks.loss("ranking_softmax", reduction="none")(X, labels)
    close(RECORDED["losses"]["ranking_softmax_loss"]["y"], ours * labels.sum(-1))


@differs("loss", "dice", "optax")
def _() -> None:
    labels = (X.flip(0) > 0).double()
    theirs = RECORDED["losses"]["binary_dice_loss"]["y"]
    close(theirs, dlblocks.loss("dice", smooth=2.0, reduction="none")(X, labels).flatten())
    assert not np.allclose(theirs, dlblocks.loss("dice", smooth=1.0, reduction="none")(X, labels).flatten())


@differs("loss", "generalized_dice", "optax")
def _() -> None:
    labels = (X.flip(0) > 0).double()[:3]
    masks = torch.stack([labels, 1 - labels], -1).reshape(2, 12, 2)
    x = X.reshape(2, 12, 2)
    p = x.softmax(-1)
    # Dice of each picture and class, with a smooth of 2 in our count.
    dice = 1 - (2 * (p * masks).sum(1) + 2) / (p.sum(1) + masks.sum(1) + 2)
    weight = 1 / (masks.sum((0, 1)) ** 2 + 1e-7)
    theirs = RECORDED["losses"]["multiclass_generalized_dice_loss"]["y"]
    close(theirs, (dice * weight / weight.mean()).mean())
    ours = dlblocks.loss("generalized_dice")(x.transpose(1, 2), masks.argmax(-1))
    assert not np.allclose(theirs, ours, rtol=1e-2)


@differs("loss", "triplet", "optax")
def _() -> None:
    anchor, positive, negative = X[:2], X[2:4], X[4:]
    near = ((anchor - positive) ** 2).sum(-1)
    far = ((anchor - negative) ** 2).sum(-1)
    theirs = RECORDED["losses"]["triplet_margin_loss"]["y"]
    np.testing.assert_allclose(
        theirs, ((near + 1e-6).sqrt() - (far + 1e-6).sqrt() + 3).clamp_min(0), rtol=0, atol=1e-11
    )
    ours = dlblocks.loss("triplet", margin=3.0, reduction="none")(anchor, positive, negative)
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-6)
    assert not np.allclose(theirs, ours, rtol=0, atol=1e-8)


@differs("loss", "nt_xent", "optax")
def _() -> None:
    labels = [0, 0, 1, 1, 1, 2]
    similar = (F.normalize(X, dim=1) @ F.normalize(X, dim=1).T / 0.5).exp()
    pairs = []
    for i, own in enumerate(labels):
        others = sum(similar[i, k] for k, label in enumerate(labels) if label != own)
        for k, label in enumerate(labels):
            if label == own and k != i:
                pairs.append(-(similar[i, k] / (others + similar[i, k])).log())
    theirs = RECORDED["losses"]["ntxent"]["y"]
    close(theirs, torch.stack(pairs).mean())
    assert not np.allclose(
        theirs, dlblocks.loss("nt_xent", temperature=0.5)(X, torch.tensor(labels)), rtol=1e-2
    )


@differs("loss", "poisson_nll", "keras")
def _() -> None:
    y = torch.poisson(torch.full((6, 8), 2.0)).double()
    close(keras.losses.poisson(y, X.exp()).mean(), dlblocks.loss("poisson_nll")(X, y), 1e-5)


@differs("loss", "bce", "keras")
def _() -> None:
    assert default(keras.losses.BinaryCrossentropy, "from_logits") is False
    y = (X.flip(0) > 0).double()
    close(keras.losses.BinaryCrossentropy()(y, X.sigmoid()), dlblocks.loss("bce")(X, y), 1e-5)


@differs("loss", "cross_entropy", "keras")
def _() -> None:
    assert default(keras.losses.CategoricalCrossentropy, "from_logits") is False
    assert default(keras.losses.SparseCategoricalCrossentropy, "from_logits") is False
    y = torch.tensor([0, 3, 7, 2, 2, 5])
    ours = dlblocks.loss("cross_entropy")(X, y)
    close(keras.losses.SparseCategoricalCrossentropy()(y, X.softmax(-1)), ours, 1e-5)
    close(keras.losses.CategoricalCrossentropy()(F.one_hot(y, 8), X.softmax(-1)), ours, 1e-5)


@differs("loss", "kl_div", "torch")
def _() -> None:
    x, y = X.log_softmax(-1), X.flip(0).softmax(-1)
    assert default(nn.KLDivLoss, "reduction") == "mean"
    close(F.kl_div(x, y, reduction="batchmean"), dlblocks.loss("kl_div")(x, y))
    close(dlblocks.loss("kl_div")(x, y) / X.shape[1], dlblocks.loss("kl_div", reduction="mean")(x, y))


@differs("loss", "gaussian_nll", "torch")
def _() -> None:
    mean, log_variance, y = X[:, :4], X[:, 4:], X.flip(0)[:, :4]
    for full in (False, True):
        theirs = F.gaussian_nll_loss(mean, y, log_variance.exp(), full=full)
        close(theirs, dlblocks.loss("gaussian_nll", full=full)(X, y))


@differs("loss", "mape", "keras")
def _() -> None:
    theirs = keras.losses.mean_absolute_percentage_error(X.flip(0), X).mean()
    close(theirs / 100, dlblocks.loss("mape")(X, X.flip(0)), 1e-5)


@differs("loss", "cosine_similarity", "keras")
def _() -> None:
    theirs = keras.losses.CosineSimilarity(reduction="none")(X.flip(0), X)
    close(theirs + 1, dlblocks.loss("cosine_similarity", reduction="none")(X, X.flip(0)), 1e-5)


@differs("loss", "multilabel_margin", "torch")
def _() -> None:
    wanted = (X.flip(0) > 0).long()
    lists = torch.full_like(wanted, -1)
    for row, labels in zip(lists, wanted, strict=True):
        chosen = labels.nonzero().flatten()
        row[: len(chosen)] = chosen
    close(F.multilabel_margin_loss(X, lists), dlblocks.loss("multilabel_margin")(X, wanted))


@differs("loss", "tversky", "keras")
def _() -> None:
    x, y = X[:1], (X.flip(0)[:1] > 0).double()
    assert default(keras.losses.Tversky, "alpha") == default(keras.losses.Tversky, "beta") == 0.5
    ours = dlblocks.loss("tversky", alpha=0.2, beta=0.9, smooth=0.0)(x, y)
    close(keras.losses.tversky(y, x.sigmoid(), alpha=0.9, beta=0.2), ours, 1e-5)


def _circle(x: torch.Tensor, groups: torch.Tensor, fixed: bool) -> torch.Tensor:
    """Of each anchor, for a margin of 0.4 and gamma 8; the weights with a gradient, or fixed."""
    margin, gamma = 0.4, 8.0
    cosine = F.normalize(x, dim=1) @ F.normalize(x, dim=1).T
    weighing = cosine.detach() if fixed else cosine
    same = groups[:, None] == groups
    positive, negative = same & ~torch.eye(len(x), dtype=torch.bool), ~same
    pull = -gamma * (1 + margin - weighing).clamp_min(0) * (cosine - 1 + margin)
    push = gamma * (weighing + margin).clamp_min(0) * (cosine - margin)
    together = pull.masked_fill(~positive, -math.inf).logsumexp(1)
    return F.softplus(together + push.masked_fill(~negative, -math.inf).logsumexp(1))


@differs("loss", "circle", "keras")
def _() -> None:
    assert (default(keras.losses.Circle, "margin"), default(keras.losses.Circle, "gamma")) == (0.4, 80.0)
    unit, groups = F.normalize(X, dim=1), torch.tensor([0, 0, 1, 1, 2, 3])
    each = dlblocks.loss("circle", margin=0.4, gamma=8.0, reduction="none")(unit, groups)
    close(keras.losses.Circle(gamma=8.0)(groups, unit), each[each > 0].mean(), 1e-4)
    assert (each == 0).any()
    x, groups = X.clone().requires_grad_(), torch.tensor([0, 0, 1, 1, 0, 1])
    values = (
        keras.losses.Circle(gamma=8.0, reduction="sum")(groups, F.normalize(x, dim=1)),
        _circle(x, groups, fixed=False).sum(),
        dlblocks.loss("circle", margin=0.4, gamma=8.0, reduction="sum")(x, groups),
        _circle(x, groups, fixed=True).sum(),
    )
    theirs, through, ours, fixed = (torch.autograd.grad(value, x, retain_graph=True)[0] for value in values)
    close(theirs, through, 1e-4)
    close(ours, fixed)
    assert not np.allclose(theirs, ours, rtol=1e-2)


PICTURES = X.reshape(2, 3, 8)
REGIONS = (PICTURES.flip(-1) > 0).double()


def _of_the_whole_batch(name: str, **params: Any) -> torch.Tensor:
    """The regions of all pictures taken together: as one picture whose places are all theirs."""
    x, y = (tensor.transpose(0, 1).reshape(1, 3, 16) for tensor in (PICTURES, REGIONS))
    whole: torch.Tensor = dlblocks.loss(name, **params)(x, y)
    return whole


@differs("loss", "dice", "pytorch-optimizer")
def _() -> None:
    assert default(pytorch_optimizer.DiceLoss, "label_smooth") == 0
    theirs = pytorch_optimizer.DiceLoss("multilabel")(PICTURES, REGIONS)
    close(theirs, _of_the_whole_batch("dice", smooth=0.0))
    assert not np.allclose(theirs, dlblocks.loss("dice", smooth=0.0)(PICTURES, REGIONS), rtol=1e-3)


@differs("loss", "jaccard", "pytorch-optimizer")
def _() -> None:
    assert default(pytorch_optimizer.JaccardLoss, "label_smooth") == 0
    theirs = pytorch_optimizer.JaccardLoss("multilabel")(PICTURES, REGIONS)
    close(theirs, _of_the_whole_batch("jaccard", smooth=0.0))
    assert not np.allclose(theirs, dlblocks.loss("jaccard", smooth=0.0)(PICTURES, REGIONS), rtol=1e-3)


THEIR_TVERSKY = {"alpha": 0.5, "beta": 0.5, "smooth": 1e-6}


@differs("loss", "tversky", "pytorch-optimizer")
def _() -> None:
    assert {name: default(pytorch_optimizer.TverskyLoss, name) for name in THEIR_TVERSKY} == THEIR_TVERSKY
    theirs = pytorch_optimizer.TverskyLoss()(PICTURES, REGIONS)
    close(theirs, dlblocks.loss("tversky", **THEIR_TVERSKY)(PICTURES.reshape(1, -1), REGIONS.reshape(1, -1)))
    assert not np.allclose(theirs, dlblocks.loss("tversky", **THEIR_TVERSKY)(PICTURES, REGIONS), rtol=1e-3)


@differs("loss", "focal_tversky", "pytorch-optimizer")
def _() -> None:
    focal = pytorch_optimizer.FocalTverskyLoss
    assert {name: default(focal, name) for name in THEIR_TVERSKY} == THEIR_TVERSKY
    assert default(focal, "gamma") == 1
    x, y = PICTURES.reshape(1, -1), REGIONS.reshape(1, -1)
    theirs = focal(gamma=1.5)(PICTURES, REGIONS)
    close(theirs, dlblocks.loss("tversky", **THEIR_TVERSKY)(x, y) ** 1.5)
    close(theirs, dlblocks.loss("focal_tversky", **THEIR_TVERSKY, gamma=1 / 1.5)(x, y))
    assert not np.allclose(
        theirs, dlblocks.loss("focal_tversky", **THEIR_TVERSKY, gamma=1.5)(x, y), rtol=1e-3
    )


@differs("loss", "soft_f1", "pytorch-optimizer")
def _() -> None:
    x, y = PICTURES[0].T, REGIONS[0].T
    theirs = pytorch_optimizer.SoftF1Loss()(x.sigmoid(), y)
    close(theirs, dlblocks.loss("soft_f1")(x.reshape(-1, 1), y.reshape(-1, 1)), 1e-5)
    assert not np.allclose(theirs, dlblocks.loss("soft_f1")(x, y), rtol=1e-3)


@differs("loss", "bi_tempered", "pytorch-optimizer")
def _() -> None:
    assert default(pytorch_optimizer.bi_tempered_logistic_loss, "num_iters") == 5
    x, y = 30 * X, torch.tensor([0, 3, 7, 2, 2, 5])
    theirs = pytorch_optimizer.BiTemperedLogisticLoss(0.8, 3.0)(x, y)
    close(theirs, dlblocks.loss("bi_tempered", t2=3.0, iterations=5)(x, y))
    assert not np.allclose(theirs, dlblocks.loss("bi_tempered", t2=3.0)(x, y), rtol=1e-5)


@differs("loss", "binary_focal", "pytorch-optimizer")
def _() -> None:
    assert default(pytorch_optimizer.BCEFocalLoss, "alpha") == 0.25
    y = (X.flip(0) > 0).double()
    theirs = pytorch_optimizer.BCEFocalLoss()(X.sigmoid(), y)
    close(theirs, dlblocks.loss("binary_focal", alpha=0.25)(X, y), 1e-5)


# Optimisers: the path on the recorded gradients.


def ours(
    name: str, rates: Any = None, start: np.ndarray = START, grads: np.ndarray = GRADS, **params: Any
) -> np.ndarray:
    theta = torch.tensor(start, requires_grad=True)
    opt = dlblocks.optimizer(name, [theta], **params)
    path = []
    for t, grad in enumerate(grads):
        if rates is not None:
            opt.param_groups[0]["lr"] = rates[t]
        theta.grad = torch.tensor(grad)
        opt.step()
        path.append(theta.detach().numpy().copy())
    return np.array(path)


def kerass(name: str, rates: Any = None, **params: Any) -> np.ndarray:
    keras.config.set_floatx("float64")
    try:
        theta = keras.Variable(START, dtype="float64")
        opt = getattr(keras.optimizers, name)(**params)
        opt.build([theta])
        path = []
        for t, grad in enumerate(GRADS):
            if rates is not None:
                opt.learning_rate = rates[t]
            opt.apply([torch.tensor(grad)], [theta])
            path.append(theta.value.detach().numpy().copy())
    finally:
        keras.config.set_floatx("float32")
    return np.array(path)


@differs("optimizer", "sgd", "torch")
def _() -> None:
    assert default(torch.optim.SGD, "lr") == 0.001


@differs("optimizer", "sgd", "keras")
def _() -> None:
    rates = [0.1, 0.05, 0.2, 0.01, 0.1, 0.3]
    theirs = kerass("SGD", rates, learning_rate=0.1, momentum=0.8)
    theta, b, wanted = START, np.zeros_like(START), []
    for lr, g in zip(rates, GRADS, strict=True):
        b = 0.8 * b - lr * g
        theta = theta + b
        wanted.append(theta)
    close(theirs, wanted)
    assert not np.allclose(theirs, ours("sgd", rates, lr=0.1, momentum=0.8))
    close(kerass("SGD", learning_rate=0.1, momentum=0.8), ours("sgd", lr=0.1, momentum=0.8))


def _adam_eps_before(eps: float, decay: float = 0.0) -> list[np.ndarray]:
    theta, m, v, path = START, 0.0, 0.0, []
    for t, g in enumerate(GRADS, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        theta = theta - 0.05 * decay * theta
        theta = theta - 0.05 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + eps)
        path.append(theta)
    return path


@differs("optimizer", "adam", "keras")
def _() -> None:
    assert default(keras.optimizers.Adam, "epsilon") == 1e-7
    close(kerass("Adam", learning_rate=0.05, epsilon=0.1), _adam_eps_before(0.1))
    assert not np.allclose(ours("adam", lr=0.05, eps=0.1), _adam_eps_before(0.1))


@differs("optimizer", "adam", "optax")
def _() -> None:
    theta, m, v, largest, wanted = START, 0.0, 0.0, 0.0, []
    for t, g in enumerate(GRADS, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        largest = np.maximum(largest, v / (1 - 0.999**t))
        theta = theta - 0.05 * m / (1 - 0.9**t) / (np.sqrt(largest) + 1e-8)
        wanted.append(theta)
    close(RECORDED["optimizers"]["amsgrad"], wanted)
    assert not np.allclose(wanted, ours("adam", lr=0.05, amsgrad=True), rtol=1e-2)


@differs("optimizer", "adan", "optax")
def _() -> None:
    close(RECORDED["optimizers"]["adan"], _adan(factor=1 - 0.92))
    close(ours("adan", lr=0.05), _adan(factor=0.92))


def _adan(factor: float) -> list[np.ndarray]:
    """Of betas 0.98, 0.92 and 0.99."""
    theta, m, u, n, last, path = START, 0.0, 0.0, 0.0, GRADS[0], []
    for t, g in enumerate(GRADS, 1):
        d, last = g - last, g
        m, u = 0.98 * m + 0.02 * g, 0.92 * u + 0.08 * d
        n = 0.99 * n + 0.01 * (g + factor * d) ** 2
        step = m / (1 - 0.98**t) + factor * u / (1 - 0.92**t)
        theta = theta - 0.05 * step / (np.sqrt(n / (1 - 0.99**t)) + 1e-8)
        path.append(theta)
    return path


@differs("optimizer", "adamw", "keras")
def _() -> None:
    assert default(keras.optimizers.AdamW, "weight_decay") == 0.004
    close(kerass("AdamW", learning_rate=0.05, epsilon=0.1, weight_decay=0.3), _adam_eps_before(0.1, 0.3))
    after = ours("adamw", lr=0.05, eps=0.1, weight_decay=0.3)
    assert not np.allclose(after, _adam_eps_before(0.1, 0.3), rtol=1e-3)


@differs("optimizer", "adamw", "optax")
def _() -> None:
    assert RECORDED["defaults"]["adamw.weight_decay"] == 1e-4
    close(RECORDED["optimizers"]["adamw"], ours("adamw", lr=0.05, weight_decay=0.1))


@differs("optimizer", "rmsprop", "keras")
def _() -> None:
    assert [default(keras.optimizers.RMSprop, p) for p in ("rho", "learning_rate", "epsilon")] == [
        0.9,
        0.001,
        1e-7,
    ]
    theta, v, wanted = START, 0.0, []
    for g in GRADS:
        v = 0.8 * v + 0.2 * g**2
        theta = theta - 0.05 * g / np.sqrt(v + 0.1)
        wanted.append(theta)
    close(kerass("RMSprop", learning_rate=0.05, rho=0.8, epsilon=0.1), wanted)
    assert not np.allclose(wanted, ours("rmsprop", lr=0.05, alpha=0.8, eps=0.1), rtol=1e-2)


@differs("optimizer", "adagrad", "keras")
def _() -> None:
    names = ("learning_rate", "initial_accumulator_value", "epsilon")
    assert [default(keras.optimizers.Adagrad, p) for p in names] == [0.001, 0.1, 1e-7]
    theta, total, wanted = START, 0.3, []
    for g in GRADS:
        total = total + g**2
        theta = theta - 0.05 * g / np.sqrt(total + 0.1)
        wanted.append(theta)
    close(kerass("Adagrad", learning_rate=0.05, initial_accumulator_value=0.3, epsilon=0.1), wanted)
    outside = ours("adagrad", lr=0.05, initial_accumulator_value=0.3, eps=0.1)
    assert not np.allclose(wanted, outside, rtol=1e-3)


@differs("optimizer", "adadelta", "keras")
def _() -> None:
    names = ("learning_rate", "rho", "epsilon")
    assert [default(keras.optimizers.Adadelta, p) for p in names] == [0.001, 0.95, 1e-7]
    close(kerass("Adadelta"), ours("adadelta", lr=0.001, rho=0.95, eps=1e-7))


@differs("optimizer", "adamax", "keras")
def _() -> None:
    assert [default(keras.optimizers.Adamax, p) for p in ("learning_rate", "epsilon")] == [0.001, 1e-7]
    theta, m, u, wanted = START, 0.0, 0.0, []
    for t, g in enumerate(GRADS, 1):
        m, u = 0.9 * m + 0.1 * g, np.maximum(0.5 * u, abs(g))
        theta = theta - 0.05 / (1 - 0.9**t) * m / (u + 0.1)
        wanted.append(theta)
    close(kerass("Adamax", learning_rate=0.05, beta_2=0.5, epsilon=0.1), wanted)
    assert not np.allclose(wanted, ours("adamax", lr=0.05, betas=[0.9, 0.5], eps=0.1), rtol=1e-3)


@differs("optimizer", "nadam", "keras")
def _() -> None:
    assert [default(keras.optimizers.Nadam, p) for p in ("learning_rate", "epsilon")] == [0.001, 1e-7]
    theirs = kerass("Nadam", learning_rate=0.05, epsilon=1e-8)
    close(theirs, ours("nadam", lr=0.05, momentum_decay=1.0))
    assert not np.allclose(theirs, ours("nadam", lr=0.05))


@differs("optimizer", "adamaxw", "optax")
def _() -> None:
    assert RECORDED["defaults"]["adamaxw.weight_decay"] == 1e-4
    close(RECORDED["optimizers"]["adamaxw"], ours("adamaxw", lr=0.05, eps=1e-30, weight_decay=0.1))


@differs("optimizer", "lars", "optax")
def _() -> None:
    """Without decay a matrix goes the same way: see test_jax."""
    path = RECORDED["optimizers"]["lars"]
    close(path, _lars(START, GRADS, together=True))
    assert not np.allclose(path, ours("lars", lr=0.05, weight_decay=0.1))
    start, grads = np.array(RECORDED["matrix_start"]), np.array(RECORDED["matrix_grads"])
    close(RECORDED["matrix_optimizers"]["lars with decay"], _lars(start, grads, together=True))
    close(
        ours("lars", start=start, grads=grads, lr=0.05, weight_decay=0.1), _lars(start, grads, together=False)
    )
    # Our vectors take momentum steps without decay.
    close(ours("lars", lr=0.05, weight_decay=0.1), ours("sgd", lr=0.05, momentum=0.9))


def _lars(theta: np.ndarray, grads: np.ndarray, together: bool) -> list[np.ndarray]:
    """Of decay 0.1; the ratio to the norm of g and decay together, or to the sum of their norms."""
    b, path = np.zeros_like(theta), []
    for g in grads:
        size, decayed = np.linalg.norm(theta), g + 0.1 * theta
        length = np.linalg.norm(decayed) if together else np.linalg.norm(g) + 0.1 * size
        b = 0.9 * b + 1e-3 * size / length * decayed
        theta = theta - 0.05 * b
        path.append(theta)
    return path


@differs("optimizer", "muon", "optax")
def _() -> None:
    start, grads = np.array(RECORDED["matrix_start"]), np.array(RECORDED["matrix_grads"])
    path = RECORDED["matrix_optimizers"]["muon with nesterov"]
    close(path, _muon(start, grads, corrected=True), 1e-6)
    # Ours is orthogonal to the precision of bfloat16.
    plain = ours("muon", start=start, grads=grads, lr=0.05, weight_decay=0.0)
    np.testing.assert_allclose(plain, _muon(start, grads, corrected=False), atol=1e-3)
    assert not np.allclose(path, plain, atol=3e-3)


def _muon(theta: np.ndarray, grads: np.ndarray, corrected: bool) -> list[np.ndarray]:
    m, path = np.zeros_like(theta), []
    for t, g in enumerate(grads, 1):
        m = 0.95 * m + 0.05 * g
        ahead = (1 - 0.95 ** (t + 1), 1 - 0.95**t) if corrected else (1.0, 1.0)
        x = 0.95 * m / ahead[0] + 0.05 * g / ahead[1]
        x = x / np.linalg.norm(x)
        for _ in range(5):
            gram = x.T @ x
            x = 3.4445 * x + x @ (-4.775 * gram + 2.0315 * gram @ gram)
        theta = theta - 0.05 * 0.2 * math.sqrt(max(theta.shape)) * x
        path.append(theta)
    return path


@differs("optimizer", "sophia", "optax")
def _() -> None:
    """The two given the same diagonal of the Hessian every ten steps."""
    curvature = np.array(RECORDED["curvature"])
    theta, m, h, wanted = START, 0.0, np.zeros_like(START), []
    for t, g in enumerate(GRADS, 1):
        m = 0.96 * m + 0.04 * g
        theta = theta - 0.05 * np.clip(m / (1 - 0.96**t) / np.maximum(0.01 * h, 1e-12), -1, 1)
        h = 0.01 * curvature
        wanted.append(theta)
    close(RECORDED["optimizers"]["sophia"], wanted)

    start = torch.tensor(START, requires_grad=True)
    opt = dlblocks.optimizer("sophia", [start], lr=0.05)
    theta, m, path, own = START, 0.0, [], []
    for t, g in enumerate(GRADS):
        start.grad = torch.tensor(g)
        opt.step(hessian=[torch.tensor(curvature)] if t == 0 else [torch.tensor(0.01 * curvature)])
        own.append(start.detach().numpy().copy())
        h = 0.01 * curvature if t == 0 else 0.99 * h + 0.01 * 0.01 * curvature
        m = 0.96 * m + 0.04 * g
        theta = theta - 0.05 * np.clip(m / np.maximum(h, 1e-12), -0.01, 0.01)
        path.append(theta)
    close(own, path)


@differs("optimizer", "lbfgs", "optax")
def _() -> None:
    """On the quadratic, without a search of the line."""
    curvature, path = np.array(RECORDED["curvature"]), np.array(RECORDED["descents"]["lbfgs"])
    g = curvature * START
    close(path[0], START - g / np.linalg.norm(g))
    theta = torch.tensor(START, requires_grad=True)
    opt = dlblocks.optimizer("lbfgs", [theta], max_iter=1, history_size=10, line_search_fn=None)

    def closure() -> torch.Tensor:
        opt.zero_grad()
        loss = (torch.tensor(curvature) * theta**2).sum() / 2
        loss.backward()
        return loss

    # Ours divides the first rate by the sum of |g|; from the same second point on, the two go the same way.
    rates = [abs(g).sum() / np.linalg.norm(g)] + [1.0] * 11
    for rate, wanted in zip(rates, path, strict=True):
        opt.param_groups[0]["lr"] = rate
        opt.step(closure)
        close(theta.detach(), wanted)


@differs("optimizer", "schedule_free_adamw", "keras")
def _() -> None:
    path = kerass("ScheduleFreeAdamW", learning_rate=0.05)
    close(path, _schedule_free(after=True), 1e-6)
    theta = torch.tensor(START, requires_grad=True)
    opt: Any = dlblocks.optimizer("schedule_free_adamw", [theta], lr=0.05)
    opt.train()
    for g, wanted in zip(GRADS, _schedule_free(after=False), strict=True):
        theta.grad = torch.tensor(g)
        opt.step()
        close(theta.detach(), wanted)
    assert not np.allclose(path[-1], wanted, rtol=1e-3)


def _schedule_free(after: bool) -> list[np.ndarray]:
    """The points of the gradients; the mean x found from them with z of after the step or of before."""
    y = z = START
    v, path = np.zeros_like(START), []
    for t, g in enumerate(GRADS, 1):
        v = 0.999 * v + 0.001 * g**2
        last, z = z, z - 0.05 * g / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        x = (y - 0.1 * (z if after else last)) / 0.9
        x = x + (z - x) / t
        y = 0.1 * z + 0.9 * x
        path.append(y)
    return path


@differs("optimizer", "ftrl", "keras")
def _() -> None:
    assert default(keras.optimizers.Ftrl, "initial_accumulator_value") == 0.1
    close(kerass("Ftrl", learning_rate=0.05, learning_rate_power=-0.3), _ftrl(0.1, 0.3, 0.3))
    params = {"initial_accumulator_value": 0.0, "l2_regularization_strength": 0.1}
    close(kerass("Ftrl", learning_rate=0.05, **params), ours("ftrl", lr=0.05, lambda_2=0.2))
    close(ours("ftrl", lr=0.05, lr_power=-0.3), _ftrl(0.0, 0.3, 0.5))


def _ftrl(first: float, power: float, below: float) -> list[np.ndarray]:
    """Of powers of the sum of squares in the rate's change and in the denominator."""
    theta, n, z, path = START, np.full_like(START, first), np.zeros_like(START), []
    for g in GRADS:
        z = z + g - ((n + g**2) ** power - n**power) / 0.05 * theta
        n = n + g**2
        theta = -z / (n**below / 0.05)
        path.append(theta)
    return path


@differs("optimizer", "nadam", "optax")
def _() -> None:
    theta, m, v, wanted = START, 0.0, 0.0, []
    for t, g in enumerate(GRADS, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        ahead = 0.9 * m / (1 - 0.9 ** (t + 1)) + 0.1 * g / (1 - 0.9**t)
        theta = theta - 0.05 * ahead / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        wanted.append(theta)
    close(RECORDED["optimizers"]["nadam"], wanted)
    assert not np.allclose(wanted, ours("nadam", lr=0.05), rtol=1e-3)


@differs("optimizer", "lbfgs", "torch")
def _() -> None:
    assert default(torch.optim.LBFGS, "line_search_fn") is None


@differs("optimizer", "muon", "torch")
def _() -> None:
    assert default(torch.optim.Muon, "adjust_lr_fn") in (None, "original")
    with pytest.raises(ValueError, match="2D"):
        torch.optim.Muon([torch.zeros(3, requires_grad=True)])
    dlblocks.optimizer("muon", [torch.zeros(3, requires_grad=True)])


@differs("optimizer", "acprop", "optax")
def _() -> None:
    theta, m, s, wanted = START, np.zeros_like(START), np.zeros_like(START), []
    for t, g in enumerate(GRADS, 1):
        root = 1.0 if t == 1 else np.sqrt(s / (1 - 0.999 ** (t - 1)))
        theta = theta - 0.05 * g / root
        s = 0.999 * s + 0.001 * (g - m) ** 2
        m = 0.9 * m + 0.1 * g
        wanted.append(theta)
    close(RECORDED["optimizers"]["acprop"], wanted)
    assert not np.allclose(wanted, ours("acprop", lr=0.05), rtol=1e-3)


@differs("optimizer", "rprop", "optax")
def _() -> None:
    theta, size, last, wanted = START, np.full_like(START, 0.05), np.zeros_like(START), []
    for g in GRADS:
        turned = g * last < 0
        size = np.clip(size * np.select([g * last > 0, turned], [1.2, 0.5], 1.0), 1e-6, 50)
        theta = theta - np.where(turned, 0, last)
        last = np.where(turned, 0, size * np.sign(g))
        wanted.append(theta)
    close(RECORDED["optimizers"]["rprop"], wanted)
    assert not np.allclose(wanted, ours("rprop", lr=0.05), rtol=1e-3)


# Schedulers.


@differs("scheduler", "cosine", "torch")
def _() -> None:
    theta = torch.zeros(1, requires_grad=True)
    opt = torch.optim.SGD([theta], lr=0.4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 4, eta_min=0.1)
    rates = []
    for _ in range(8):
        rates.append(opt.param_groups[0]["lr"])
        opt.step()
        scheduler.step()
    assert rates[4] == pytest.approx(0.1)
    assert rates[7] > rates[5] > rates[4]


@differs("scheduler", "one_cycle", "torch")
def _() -> None:
    cycle = torch.optim.lr_scheduler.OneCycleLR
    assert default(cycle, "max_lr") is inspect.Parameter.empty
    assert default(cycle, "cycle_momentum") is True
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4, momentum=0.9)
    with pytest.raises(ZeroDivisionError):
        cycle(opt, 0.4, 10, pct_start=0.1)
    scheduler = cycle(opt, 0.4, 2)
    opt.step()
    scheduler.step()
    scheduler.step()
    with pytest.raises(ValueError, match="Tried to step 3 times"):
        scheduler.step()


def lrs(name: str, total: int, **params: Any) -> list[float]:
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = dlblocks.scheduler(name, opt, total_steps=total, **params)
    rates = []
    for _ in range(total):
        rates.append(opt.param_groups[0]["lr"])
        opt.step()
        scheduler.step()
    return rates


@differs("scheduler", "one_cycle", "optax")
def _() -> None:
    """Recorded with 19 transition_steps: int(0.3 * 19) = 5, and 0.3 * 20 - 1 = 5 too; of 21, 6 and not 5.6."""
    close(RECORDED["schedules"]["one_cycle"], lrs("one_cycle", 20))
    theirs = np.array(RECORDED["schedules"]["one_cycle of 21 steps"])
    assert theirs.argmax() == 6
    assert theirs[6] == pytest.approx(1.0)
    assert max(lrs("one_cycle", 22)[:20]) < 0.999


@differs("scheduler", "polynomial", "torch")
def _() -> None:
    assert default(torch.optim.lr_scheduler.PolynomialLR, "total_iters") == 5


@differs("scheduler", "reduce_on_plateau", "keras")
def _() -> None:
    """A metric that stands still falls first after `patience` epochs there, after one more here."""
    callback = keras.callbacks.ReduceLROnPlateau(monitor="loss", factor=0.5, patience=2, min_delta=0.1)
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile(optimizer=keras.optimizers.SGD(1.0), loss="mse")
    callback.set_model(model)
    callback.on_train_begin()
    theirs = []
    for epoch in range(6):
        # Better by 0.05 each time: less than min_delta, absolute, though 5 % of the best or more.
        callback.on_epoch_end(epoch, {"loss": 1.0 - 0.05 * epoch * (epoch < 2)})
        theirs.append(float(model.optimizer.learning_rate))
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = dlblocks.scheduler(
        "reduce_on_plateau", opt, factor=0.5, patience=2, threshold=0.1, threshold_mode="abs"
    )
    rates = []
    for epoch in range(6):
        scheduler.step(1.0 - 0.05 * epoch * (epoch < 2))
        rates.append(opt.param_groups[0]["lr"])
    assert theirs.index(0.5) + 1 == rates.index(0.5)


def declared() -> set[tuple[str, str, str]]:
    blocks = [REGISTRY.get(kind, name) for kind in REGISTRY.kinds for name in REGISTRY.names(kind)]
    return {(block.kind, block.name, library) for block in blocks for library in block.differs_from}


def test_every_declared_difference_is_checked_and_no_other() -> None:
    assert set(CHECKS) == {key for key in declared() if key[2] != "timm"}


@pytest.mark.parametrize("key", sorted(CHECKS), ids="-".join)
def test_it_is_just_that(key: tuple[str, str, str]) -> None:
    CHECKS[key]()
