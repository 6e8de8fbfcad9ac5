"""Live against Keras 3, which computes with torch: each block that both have, on random numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import dlblocks

# Keras 3.15 asks numpy 2 for an array in the manner of numpy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
Array = np.ndarray


@contextmanager
def double_precision() -> Iterator[None]:
    keras.config.set_floatx("float64")
    try:
        yield
    finally:
        keras.config.set_floatx("float32")


def exported(module: Any, kind: type) -> set[str]:
    """The public names of a module that are classes of a kind."""
    values = ((name, getattr(module, name)) for name in dir(module) if name[0].isupper())
    return {name for name, value in values if isinstance(value, type) and issubclass(value, kind)}


# Activations: Keras's name -> ours, our parameters, Keras's parameters.
ACTIVATIONS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "celu": ("celu", {"alpha": 0.7}, {"alpha": 0.7}),
    "elu": ("elu", {"alpha": 0.7}, {"alpha": 0.7}),
    "exponential": ("exponential", {}, {}),
    "gelu": ("gelu", {}, {}),
    "glu": ("glu", {}, {}),
    "hard_shrink": ("hard_shrink", {"lambd": 0.3}, {"threshold": 0.3}),
    "hard_sigmoid": ("hard_sigmoid", {}, {}),
    "hard_silu": ("hardswish", {}, {}),
    "hard_swish": ("hardswish", {}, {}),
    "hard_tanh": ("hard_tanh", {}, {}),
    "leaky_relu": ("leaky_relu", {"negative_slope": 0.2}, {}),
    "linear": ("linear", {}, {}),
    "log_sigmoid": ("log_sigmoid", {}, {}),
    "log_softmax": ("log_softmax", {}, {}),
    "mish": ("mish", {}, {}),
    "relu": ("relu", {}, {}),
    "relu6": ("relu6", {}, {}),
    "selu": ("selu", {}, {}),
    "sigmoid": ("sigmoid", {}, {}),
    "silu": ("silu", {}, {}),
    "soft_shrink": ("soft_shrink", {"lambd": 0.3}, {"threshold": 0.3}),
    "softmax": ("softmax", {}, {}),
    "softplus": ("softplus", {}, {}),
    "softsign": ("softsign", {}, {}),
    "sparse_plus": ("sparse_plus", {}, {}),
    "sparse_sigmoid": ("sparse_sigmoid", {}, {}),
    "squareplus": ("squareplus", {"b": 2.5}, {"b": 2.5}),
    "swish": ("silu", {}, {}),
    "tanh": ("tanh", {}, {}),
    "tanh_shrink": ("tanh_shrink", {}, {}),
    "threshold": ("threshold", {"threshold": 0.4, "value": 2.0}, {"threshold": 0.4, "default_value": 2.0}),
}


def test_no_activation_of_theirs_is_left_out() -> None:
    theirs = {name for name in dir(keras.activations) if not name.startswith("_")}
    # Keras's sparsemax is another function: see test_differences.
    assert theirs - {"deserialize", "get", "serialize", "sparsemax"} == set(ACTIVATIONS)


@pytest.mark.parametrize("theirs", ACTIVATIONS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e4])
def test_activations(theirs: str, scale: float) -> None:
    name, params, their_params = ACTIVATIONS[theirs]
    x = torch.randn(40, 6, dtype=torch.float64) * (scale if name != "exponential" else min(scale, 30.0))
    results = []
    for function in (
        dlblocks.activation(name, **params).double(),
        lambda x: getattr(keras.activations, theirs)(x, **their_params),
    ):
        leaf = x.clone().requires_grad_()
        y = function(leaf)
        (y * torch.arange(1.0, y.shape[-1] + 1, dtype=y.dtype)).sum().backward()
        results.append((y.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-7)


# Initialisers: Keras's class -> ours, our parameters, Keras's parameters.
INITIALIZERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "Constant": ("constant", {"value": 0.3}, {"value": 0.3}),
    "GlorotNormal": ("glorot_normal", {}, {}),
    "GlorotUniform": ("glorot_uniform", {}, {}),
    "HeNormal": ("he_normal", {}, {}),
    "HeUniform": ("he_uniform", {}, {}),
    "Identity": ("identity", {"gain": 2.0}, {"gain": 2.0}),
    "LecunNormal": ("lecun_normal", {}, {}),
    "LecunUniform": ("lecun_uniform", {}, {}),
    "Ones": ("ones", {}, {}),
    "Orthogonal": ("orthogonal", {"gain": 2.0}, {"gain": 2.0}),
    "RandomNormal": ("normal", {}, {}),
    "RandomUniform": ("uniform", {}, {}),
    "TruncatedNormal": ("truncated_normal", {"std": 0.05}, {"stddev": 0.05}),
    "VarianceScaling": (
        "variance_scaling",
        {"scale": 1.7, "mode": "fan_avg", "distribution": "truncated_normal"},
        {"scale": 1.7, "mode": "fan_avg", "distribution": "truncated_normal"},
    ),
    "Zeros": ("zeros", {}, {}),
}
NOT_INITIALIZERS = {
    "STFT": "the window of a short-time Fourier transform",
    "STFTInitializer": "the window of a short-time Fourier transform",
    "Initializer": "the base class",
    "IdentityInitializer": "alias",
    "OrthogonalInitializer": "alias",
}


def test_no_initializer_of_theirs_is_left_out() -> None:
    theirs = exported(keras.initializers, keras.initializers.Initializer)
    assert theirs == set(INITIALIZERS) | set(NOT_INITIALIZERS)


EXACT = ("constant", "ones", "zeros", "identity")


@pytest.mark.parametrize("theirs", INITIALIZERS)
@pytest.mark.parametrize("shape", [(300, 120), (24, 16, 5, 5), (40, 60, 9)])
def test_initializers(theirs: str, shape: tuple[int, ...]) -> None:
    """Ours is (out, in, *kernel), Keras's (*kernel, in, out)."""
    name, params, their_params = INITIALIZERS[theirs]
    if name == "identity":
        shape = shape[:2]  # Keras has it for matrices only
    same_distribution(name, params, getattr(keras.initializers, theirs)(**their_params), shape)


@pytest.mark.parametrize("mode", ["fan_in", "fan_out", "fan_avg"])
@pytest.mark.parametrize("distribution", ["truncated_normal", "uniform"])
@pytest.mark.parametrize("shape", [(300, 120), (24, 16, 5, 5)])
def test_variance_scaling(mode: str, distribution: str, shape: tuple[int, ...]) -> None:
    params = {"scale": 1.7, "mode": mode, "distribution": distribution}
    same_distribution("variance_scaling", params, keras.initializers.VarianceScaling(**params), shape)
    # Keras's normal is its truncated_normal: see test_differences.
    untruncated = keras.initializers.VarianceScaling(1.7, mode, "untruncated_normal")
    same_distribution("variance_scaling", params | {"distribution": "normal"}, untruncated, shape)


def same_distribution(
    name: str, params: dict[str, Any], theirs: keras.initializers.Initializer, shape: tuple[int, ...]
) -> None:
    ours = dlblocks.initializer(name, **params)(torch.empty(shape)).numpy()
    keras.utils.set_random_seed(0)
    wanted = theirs(shape=(*shape[2:], shape[1], shape[0])).detach().numpy()
    if name in EXACT:
        np.testing.assert_array_equal(ours, np.moveaxis(wanted, (-1, -2), (0, 1)))
        return
    if name == "orthogonal":
        # Both are orthonormal on their shorter side, of all but the outputs as one dimension.
        for matrix in (ours.reshape(shape[0], -1), wanted.reshape(-1, shape[0])):
            tall = matrix if len(matrix) > len(matrix.T) else matrix.T
            np.testing.assert_allclose(tall.T @ tall, 4 * np.eye(tall.shape[1]), atol=1e-4)
        return
    # The same distribution: one of two samples of it is as far from the other as this with p > 0.001.
    assert stats.ks_2samp(ours.ravel(), wanted.ravel()).pvalue > 1e-3
    assert ours.mean() == pytest.approx(wanted.mean(), abs=float(5 * wanted.std() * (2 / ours.size) ** 0.5))
    assert ours.std() == pytest.approx(wanted.std(), rel=0.03)
    unbounded = name == "normal" or params.get("distribution") == "normal"
    assert np.abs(ours).max() == pytest.approx(np.abs(wanted).max(), rel=0.25 if unbounded else 0.01)


# Losses: Keras's class -> ours, our parameters, Keras's parameters, which example.
LOSSES: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "BinaryCrossentropy": (
        "bce",
        {"label_smoothing": 0.1},
        {"from_logits": True, "label_smoothing": 0.1},
        "labels",
    ),
    "BinaryFocalCrossentropy": (
        "binary_focal",
        {"gamma": 1.5},
        {"from_logits": True, "gamma": 1.5},
        "labels",
    ),
    "CategoricalCrossentropy": ("cross_entropy", {}, {"from_logits": True}, "one_hot"),
    "CategoricalFocalCrossentropy": ("focal", {}, {"from_logits": True, "alpha": 1.0}, "one_hot"),
    "CategoricalGeneralizedCrossEntropy": (
        "generalized_cross_entropy",
        {"q": 0.5},
        {"q": 0.5},
        "chosen probabilities",
    ),
    "CategoricalHinge": ("categorical_hinge", {}, {}, "one_hot"),
    "CosineSimilarity": ("cosine_similarity", {}, {}, "values"),
    "Hinge": ("hinge", {}, {}, "labels"),
    "Huber": ("huber", {"delta": 0.7}, {"delta": 0.7}, "values"),
    "KLDivergence": ("kl_div", {}, {}, "distributions"),
    "LogCosh": ("log_cosh", {}, {}, "values"),
    "MeanAbsoluteError": ("mae", {}, {}, "values"),
    "MeanAbsolutePercentageError": ("mape", {}, {}, "values"),
    "MeanSquaredError": ("mse", {}, {}, "values"),
    "MeanSquaredLogarithmicError": ("msle", {}, {}, "positive"),
    "Poisson": ("poisson_nll", {}, {}, "rates"),
    "SparseCategoricalCrossentropy": ("cross_entropy", {}, {"from_logits": True}, "indices"),
    "SquaredHinge": ("squared_hinge", {}, {}, "labels"),
    "Dice": ("dice", {"smooth": 0.0}, {}, "region"),
    "Tversky": ("tversky", {"alpha": 0.4, "beta": 0.6, "smooth": 0.0}, {"alpha": 0.6, "beta": 0.4}, "region"),
    "Circle": ("circle", {"margin": 0.3, "gamma": 8.0}, {"margin": 0.3, "gamma": 8.0}, "embeddings"),
    "CTC": ("ctc", {}, {}, "sequences"),
}
# Theirs, which adds up n instances, in our terms, where entries say so: see test_differences.
ADJUSTED: dict[str, Callable[[Tensor, int], Tensor]] = {
    "MeanAbsolutePercentageError": lambda theirs, _: theirs / 100,
    "CosineSimilarity": lambda theirs, n: theirs + n,
}


def test_no_loss_of_theirs_is_left_out() -> None:
    assert exported(keras.losses, keras.losses.Loss) - {"Loss"} == set(LOSSES)


def example(kind: str) -> tuple[Tensor, tuple[Any, ...], tuple[Any, Any]]:
    """What is to be learnt, our arguments made of it, and Keras's target and prediction."""
    x = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    y = torch.randn(8, 5, dtype=torch.float64)
    labels = torch.randint(2, (8, 5)).double()
    indices = torch.randint(5, (8,))
    one_hot = torch.nn.functional.one_hot(indices, 5).double()
    match kind:
        case "values":
            return x, (x, y), (y, x)
        case "positive":
            return x, (x.abs(), y.abs()), (y.abs(), x.abs())
        case "rates":
            return x, (x, labels * 3), (labels * 3, x.exp())
        case "labels":
            return x, (x, labels), (labels, x)
        case "one_hot":
            return x, (x, indices), (one_hot, x)
        case "indices":
            return x, (x, indices), (indices, x)
        case "chosen probabilities":
            return x, (x, indices), (indices, x.softmax(-1))
        case "distributions":
            return x, (x.log_softmax(-1), y.softmax(-1)), (y.softmax(-1), x.softmax(-1))
        case "region":
            return x, (x[:1], labels[:1]), (labels[:1], x[:1].sigmoid())
        case "embeddings":
            groups = torch.tensor([0, 1, 0, 2, 1, 0, 2, 2])
            return x, (x, groups), (groups, torch.nn.functional.normalize(x, dim=1))
    logits = torch.randn(3, 9, 5, requires_grad=True)
    targets = torch.randint(1, 5, (3, 4))
    lengths = (torch.full((3,), 9), torch.full((3,), 4))
    return logits, (logits.log_softmax(-1).transpose(0, 1), targets, *lengths), (targets, logits)


# Keras's mean of circle leaves out anchors that cost nothing: see test_differences. Its mean of CTC is over
# instances, torch's also divides by the lengths. Regions have one value, whatever the reduction.
NO_MEAN = ("Circle", "CTC")
OTHER_GRADIENT = ("Circle",)  # see test_differences


@pytest.mark.parametrize("theirs", LOSSES)
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_losses(theirs: str, reduction: str) -> None:
    """Values and gradients. Keras takes the mean over the outputs of an instance first."""
    name, params, their_params, kind = LOSSES[theirs]
    if reduction == "mean" and theirs in NO_MEAN:
        reduction = "none"
    x, ours, (y_true, y_pred) = example(kind)
    got = dlblocks.loss(name, **params, reduction="none")(*ours)
    if got.ndim > 1:
        got = got.sum(-1) if name == "kl_div" else got.mean(-1)
    got = {"none": got, "sum": got.sum(), "mean": got.mean()}[reduction]
    if reduction == "mean":
        whole = dlblocks.loss(name, **params)(*ours)
        torch.testing.assert_close(whole, got)
    their_reduction = "sum_over_batch_size" if reduction == "mean" else reduction
    with double_precision():
        wanted = getattr(keras.losses, theirs)(**their_params, reduction=their_reduction)(y_true, y_pred)
    if theirs in ADJUSTED:
        wanted = ADJUSTED[theirs](wanted, len(x) if reduction == "sum" else 1)
    # Keras clips probabilities at 1e-7, and the logarithms of quotients likewise.
    close = {"rtol": 1e-5, "atol": 1e-5, "check_dtype": False}
    torch.testing.assert_close(got.flatten(), wanted.flatten(), **close)
    if theirs in OTHER_GRADIENT:
        return
    weights = torch.arange(1.0, got.numel() + 1)
    gradients = [
        torch.autograd.grad((y.flatten() * weights).sum(), x, retain_graph=True)[0] for y in (got, wanted)
    ]
    torch.testing.assert_close(*gradients, **close)


# Optimisers: Keras's class -> ours, our parameters, Keras's. An eps of (nearly) 0 sets aside where it is added.
TINY = 1e-30
OPTIMIZERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "SGD": (
        "sgd",
        {"lr": 0.05, "momentum": 0.8, "nesterov": True},
        {"learning_rate": 0.05, "momentum": 0.8, "nesterov": True},
    ),
    "Adam": ("adam", {"lr": 0.05, "eps": TINY}, {"learning_rate": 0.05, "epsilon": TINY}),
    "AdamW": (
        "adamw",
        {"lr": 0.05, "eps": TINY, "weight_decay": 0.1},
        {"learning_rate": 0.05, "epsilon": TINY, "weight_decay": 0.1},
    ),
    "RMSprop": (
        "rmsprop",
        {"lr": 0.02, "alpha": 0.8, "eps": TINY, "momentum": 0.5},
        {"learning_rate": 0.02, "rho": 0.8, "epsilon": TINY, "momentum": 0.5},
    ),
    "Adagrad": (
        "adagrad",
        {"lr": 0.1, "initial_accumulator_value": 0.3, "eps": TINY},
        {"learning_rate": 0.1, "initial_accumulator_value": 0.3, "epsilon": TINY},
    ),
    "Adadelta": (
        "adadelta",
        {"lr": 0.5, "rho": 0.8, "eps": 1e-3},
        {"learning_rate": 0.5, "rho": 0.8, "epsilon": 1e-3},
    ),
    "Adamax": ("adamax", {"lr": 0.05, "eps": TINY}, {"learning_rate": 0.05, "epsilon": TINY}),
    "Nadam": (
        "nadam",
        {"lr": 0.05, "eps": TINY, "momentum_decay": 1.0},
        {"learning_rate": 0.05, "epsilon": TINY},
    ),
    "Lion": (
        "lion",
        {"lr": 0.05, "betas": [0.8, 0.9]},
        {"learning_rate": 0.05, "beta_1": 0.8, "beta_2": 0.9},
    ),
    "Lamb": ("lamb", {"lr": 0.05, "eps": 1e-3}, {"learning_rate": 0.05, "epsilon": 1e-3}),
    "Adafactor": ("adafactor", {"lr": 0.05}, {"learning_rate": 0.05}),
    "Ftrl": (
        "ftrl",
        {"lr": 0.05, "lambda_1": 0.1, "lambda_2": 0.2, "beta": 0.3},
        {
            "learning_rate": 0.05,
            "l1_regularization_strength": 0.1,
            "l2_regularization_strength": 0.1,
            "beta": 0.3,
            "initial_accumulator_value": 0.0,
        },
    ),
    "Muon": (
        "muon",
        {"lr": 0.05, "eps": TINY, "weight_decay": 0.1},
        {
            "learning_rate": 0.05,
            "adam_beta_2": 0.95,
            "epsilon": TINY,
            "weight_decay": 0.1,
            "adam_weight_decay": 0.1,
        },
    ),
}
# Those that treat a matrix as one.
OF_MATRICES = ("Lamb", "Adafactor", "Muon")
# In test_optimizer_differences.
OPTIMIZERS_THAT_DIFFER = {"ScheduleFreeAdamW"}
NOT_OPTIMIZERS = {
    "Optimizer": "the base class",
    "LossScaleOptimizer": "mixed precision is the Trainer's",
    "MultiOptimizer": "a container of optimisers",
}
SHAPES = {"vector": (6,), "matrix": (4, 3)}
START = {name: np.random.default_rng(0).normal(size=shape) for name, shape in SHAPES.items()}
GRADS = {name: np.random.default_rng(1).normal(size=(10, *shape)) for name, shape in SHAPES.items()}


def our_path(name: str, params: dict[str, Any], kind: str) -> Array:
    theta = torch.tensor(START[kind], requires_grad=True)
    opt = dlblocks.optimizer(name, [theta], **params)
    path = []
    for grad in GRADS[kind]:
        theta.grad = torch.tensor(grad)
        opt.step()
        path.append(theta.detach().numpy().copy())
    return np.array(path)


def their_path(name: str, params: dict[str, Any], kind: str) -> Array:
    with double_precision():
        theta = keras.Variable(START[kind], dtype="float64")
        opt = getattr(keras.optimizers, name)(**params)
        opt.build([theta])
        path = []
        for grad in GRADS[kind]:
            opt.apply([torch.tensor(grad)], [theta])
            path.append(theta.value.detach().numpy().copy())
    return np.array(path)


def test_no_optimizer_of_theirs_is_left_out() -> None:
    theirs = exported(keras.optimizers, keras.optimizers.Optimizer)
    assert theirs - {"Optimizer"} == set(OPTIMIZERS) | OPTIMIZERS_THAT_DIFFER | set(NOT_OPTIMIZERS) - {
        "Optimizer"
    }


@pytest.mark.parametrize(
    ("theirs", "kind"),
    [(name, "vector") for name in OPTIMIZERS] + [(name, "matrix") for name in OF_MATRICES],
)
def test_optimizers(theirs: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Muon's matrices are made orthogonal in bfloat16; in the precision of Keras the two are one.
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda x: x)
    name, params, their_params = OPTIMIZERS[theirs]
    wanted = their_path(theirs, their_params, kind)
    np.testing.assert_allclose(our_path(name, params, kind), wanted, rtol=1e-6, atol=1e-7)


# Schedules: Keras's class -> ours, our parameters, Keras's.
T = 20
SCHEDULES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "CosineDecay": ("cosine", {"min_lr_ratio": 0.1}, {"decay_steps": T, "alpha": 0.1}),
    "CosineDecayRestarts": (
        "cosine_restarts",
        {"cycles": 2, "growth": 3.0, "peak_decay": 0.5},
        {"first_decay_steps": T // 4, "t_mul": 3.0, "m_mul": 0.5},
    ),
    "ExponentialDecay": ("exponential", {"gamma": 0.9}, {"decay_steps": 1, "decay_rate": 0.9}),
    "InverseTimeDecay": ("inverse_time", {"decay_rate": 0.3}, {"decay_steps": 1, "decay_rate": 0.3}),
    "PiecewiseConstantDecay": ("multistep", {"milestones": [5, 12], "gamma": 0.1}, {"boundaries": [4, 11], "values": [0.4, 0.04, 0.004]}),
    "PolynomialDecay": ("polynomial", {"power": 2.0, "min_lr_ratio": 0.1}, {"decay_steps": T, "power": 2.0, "end_learning_rate": 0.04}),
}  # fmt: skip


def test_no_schedule_of_theirs_is_left_out() -> None:
    base = keras.optimizers.schedules.LearningRateSchedule
    assert exported(keras.optimizers.schedules, base) - {"LearningRateSchedule"} == set(SCHEDULES)


@pytest.mark.parametrize("theirs", SCHEDULES)
def test_schedules(theirs: str) -> None:
    name, params, their_params = SCHEDULES[theirs]
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    ours = dlblocks.scheduler(name, opt, total_steps=T, **params)
    first = {} if theirs == "PiecewiseConstantDecay" else {"initial_learning_rate": 0.4}
    schedule = getattr(keras.optimizers.schedules, theirs)(**first, **their_params)
    for t in range(T):
        assert opt.param_groups[0]["lr"] == pytest.approx(float(schedule(t)), rel=1e-5, abs=1e-8), t
        opt.step()
        ours.step()
