"""Against what JAX and optax computed: recorded in jax_values.json by record_jax.py, which says with what versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dlblocks

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("jax_values.json").read_text())
X = torch.tensor(RECORDED["x"], dtype=torch.float64)
Y = X.flip(0)
LABELS = (Y > 0).double()
INDICES = torch.tensor([0, 3, 7, 2, 2, 5])

# JAX's name -> ours and the parameters at which the two are one.
ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "gelu": ("gelu", {"approximate": "tanh"}),
    "hard_silu": ("hardswish", {}),
    "leaky_relu": ("leaky_relu", {"negative_slope": 0.01}),
    "soft_sign": ("softsign", {}),
}
NOT_ACTIVATIONS = {
    **dict.fromkeys(("dot_product_attention", "scaled_dot_general", "scaled_matmul"), "layers"),
    **dict.fromkeys(("log1mexp", "logmeanexp", "logsumexp", "standardize", "one_hot"), "functions of arrays"),
    "get_scaled_dot_general_config": "a helper",
    **dict.fromkeys(("hard_swish", "swish", "identity"), "other names"),
}


def test_no_activation_of_theirs_is_left_out() -> None:
    assert set(RECORDED["names"]["activations"]) == set(RECORDED["activations"]) | set(NOT_ACTIVATIONS)


@pytest.mark.parametrize("theirs", RECORDED["activations"])
def test_activations(theirs: str) -> None:
    name, params = ACTIVATIONS.get(theirs, (theirs, {}))
    x = X.clone().requires_grad_()
    y = dlblocks.activation(name, **params).double()(x)
    (y * torch.arange(1.0, y.shape[-1] + 1)).sum().backward()
    wanted = RECORDED["activations"][theirs]
    np.testing.assert_allclose(y.detach(), wanted["y"], rtol=1e-9, atol=1e-11)
    assert x.grad is not None
    # torch's hard sigmoid has its slope of 1/6 in float32.
    np.testing.assert_allclose(x.grad, wanted["gradient"], rtol=1e-7, atol=1e-11)


INITIALIZERS: dict[str, dict[str, Any]] = {
    "normal": {"std": 0.01},
    "uniform": {"low": 0.0, "high": 0.01},
    "truncated_normal": {"std": 0.01},
    "variance_scaling": {"scale": 1.5, "mode": "fan_avg", "distribution": "normal"},
}


@pytest.mark.parametrize("name", RECORDED["initializers"])
def test_initializers(name: str) -> None:
    """The same deviation and reach of a (400, 300) matrix, which JAX calls (in, out)."""
    fill = dlblocks.initializer(name, **INITIALIZERS.get(name, {}))
    values = fill(torch.empty(300, 400, dtype=torch.float64), generator=torch.Generator().manual_seed(0))
    wanted = RECORDED["initializers"][name]
    assert values.std().item() == pytest.approx(wanted["std"], rel=0.01)
    # Unbounded distributions reach about as far; bounded ones to the bound.
    for got, bound in ((values.max(), wanted["max"]), (values.min(), wanted["min"])):
        assert got.item() == pytest.approx(bound, rel=0.25, abs=1e-5)


# optax's name -> ours, our parameters, our arguments.
LOSSES: dict[str, tuple[str, dict[str, Any], tuple[Tensor, ...]]] = {
    "squared_error": ("mse", {}, (X, Y)),
    "huber_loss": ("huber", {"delta": 0.7}, (X, Y)),
    "log_cosh": ("log_cosh", {}, (X, Y)),
    "cosine_distance": ("cosine_similarity", {}, (X, Y)),
    "sigmoid_binary_cross_entropy": ("bce", {}, (X, LABELS)),
    "sigmoid_focal_loss": ("binary_focal", {"alpha": 0.3, "gamma": 1.5}, (X, LABELS)),
    "softmax_cross_entropy_with_integer_labels": ("cross_entropy", {}, (X, INDICES)),
    "softmax_cross_entropy": ("cross_entropy", {}, (X, Y.softmax(-1))),
    "poly_loss_cross_entropy": ("poly_cross_entropy", {"epsilon": 1.5}, (X, INDICES)),
    "kl_divergence": ("kl_div", {}, (X.log_softmax(-1), Y.softmax(-1))),
    "generalized_kl_divergence": ("generalized_kl", {}, (X.log_softmax(-1), Y.softmax(-1))),
    "hinge_loss": ("hinge", {}, (X, LABELS)),
    "perceptron_loss": ("perceptron", {}, (X, LABELS)),
    "multiclass_hinge_loss": ("categorical_hinge", {}, (X, INDICES)),
    "multiclass_perceptron_loss": ("categorical_hinge", {"margin": 0.0}, (X, INDICES)),
    "multiclass_sparsemax_loss": ("sparsemax_loss", {}, (X, INDICES)),
}
SUMMED = ("kl_divergence", "generalized_kl_divergence")  # theirs: over the classes
NOT_LOSSES = {
    "l2_loss": "half of squared_error: see test_differences",
    "ranking_softmax_loss": "undivided relevances: see test_differences",
    "convex_kl_divergence": "an older name",
    "cosine_similarity": "1 minus cosine_distance",
    "kl_divergence_with_log_targets": "kl_div with log_target",
    "safe_softmax_cross_entropy": "softmax_cross_entropy for logits of minus infinity",
    "sparsemax_loss": "sparsemax_loss of two classes",
    "smooth_labels": "a transformation of targets",
    "make_fenchel_young_loss": "makes losses of functions",
    "ctc_loss_with_forward_probs": "ctc, with its intermediate results",
    **dict.fromkeys(
        ("binary_dice_loss", "dice_loss", "multiclass_generalized_dice_loss", "ctc_loss", "ntxent", "triplet_margin_loss"),
        "held to closed formulas and torch in tests/losses",
    ),
}  # fmt: skip


def test_no_loss_of_theirs_is_left_out() -> None:
    assert set(RECORDED["names"]["losses"]) == set(LOSSES) | set(NOT_LOSSES)


@pytest.mark.parametrize("theirs", LOSSES)
def test_losses(theirs: str) -> None:
    name, params, arguments = LOSSES[theirs]
    got = dlblocks.loss(name, **params, reduction="none")(*arguments)
    got = got.sum(-1) if theirs in SUMMED else got
    np.testing.assert_allclose(got, RECORDED["losses"][theirs], rtol=1e-8, atol=1e-10)


# optax's name -> ours and the parameters at which the two are one.
OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("sgd", {"lr": 0.05, "momentum": 0.8, "nesterov": True}),
    "adam": ("adam", {"lr": 0.05}),
    "adamw": ("adamw", {"lr": 0.05, "weight_decay": 0.1}),
    "adamax": ("adamax", {"lr": 0.05, "eps": 1e-30}),
    "rmsprop": ("rmsprop", {"lr": 0.02, "alpha": 0.8, "eps": 1e-3}),
    "adagrad": ("adagrad", {"lr": 0.1, "initial_accumulator_value": 0.3, "eps": 1e-30}),
    "adadelta": ("adadelta", {"lr": 0.5, "rho": 0.8, "eps": 1e-3}),
    "lion": ("lion", {"lr": 0.05, "betas": [0.8, 0.9]}),
    "lamb": ("lamb", {"lr": 0.05, "weight_decay": 0.1}),
    "adabelief": ("adabelief", {"lr": 0.05}),
    "sign_sgd": ("signum", {"lr": 0.05, "momentum": 0.0}),
    "optimistic_gradient_descent": ("optimistic_gradient_descent", {"lr": 0.05}),
    "optimistic_adam": ("optimistic_adam", {"lr": 0.05}),
    "dog": ("dog", {}),
    "dowg": ("dowg", {}),
    "cocob": ("cocob", {}),
}
# In test_differences, or held to their papers in tests/optimizers.
ELSEWHERE = {"nadam", "acprop", "rprop", "amsgrad", "radam", "yogi", "adan", "ademamix"}


def test_every_recorded_path_is_compared() -> None:
    assert set(RECORDED["optimizers"]) == set(OPTIMIZERS) | ELSEWHERE


@pytest.mark.parametrize("theirs", OPTIMIZERS)
def test_optimizers(theirs: str) -> None:
    name, params = OPTIMIZERS[theirs]
    theta = torch.tensor(RECORDED["start"], dtype=torch.float64, requires_grad=True)
    opt = dlblocks.optimizer(name, [theta], **params)
    for grad, wanted in zip(RECORDED["grads"], RECORDED["optimizers"][theirs], strict=True):
        theta.grad = torch.tensor(grad, dtype=torch.float64)
        opt.step()
        np.testing.assert_allclose(theta.detach(), wanted, rtol=1e-7, atol=1e-9)


# optax's schedule -> ours and the parameters at which the two are one, in a run of 20 steps.
SCHEDULES: dict[str, dict[str, Any]] = {
    "cosine": {"min_lr_ratio": 0.1},
    "warmup_cosine": {"warmup": 5, "start_factor": 0.1, "min_lr_ratio": 0.2},
    "polynomial": {"power": 2.0, "min_lr_ratio": 0.1},
    "exponential": {"gamma": 0.9},
    "piecewise": {"points": [0.25, 0.6], "factors": [0.5, 0.1]},
    "warmup_exponential": {"warmup": 5, "start_factor": 0.1, "final_factor": 0.01},
    "linear_warmup": {"warmup": 5, "start_factor": 0.1},
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name: str) -> None:
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = dlblocks.scheduler(name, opt, total_steps=20, **SCHEDULES[name])
    for wanted in RECORDED["schedules"][name]:
        assert opt.param_groups[0]["lr"] == pytest.approx(wanted, rel=1e-6, abs=1e-9)
        opt.step()
        scheduler.step()
