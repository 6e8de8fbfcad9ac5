"""Against what JAX and optax computed: recorded in jax_values.json by record_jax.py, which says with what versions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dlblocks
from dlblocks.registry import REGISTRY

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


# Ours: JAX's name -> the parameters at which the two are one.
INITIALIZERS: dict[str, dict[str, Any]] = {
    "constant": {"value": 0.3},
    "normal": {"std": 0.01},
    "uniform": {"low": 0.0, "high": 0.01},
    "truncated_normal": {"std": 0.01},
}
NOT_INITIALIZERS = {
    "Initializer": "the type of all",
    **dict.fromkeys(("kaiming_normal", "kaiming_uniform"), "other names of he_normal and he_uniform"),
    **dict.fromkeys(("xavier_normal", "xavier_uniform"), "other names of glorot_normal and glorot_uniform"),
}
UNBOUNDED = ("normal", "orthogonal", "delta_orthogonal")
SHAPES = {"matrix": (300, 400), "kernel": (120, 80, 5, 3)}  # JAX's are the other way round


def test_no_initializer_of_theirs_is_left_out() -> None:
    recorded = {name.split()[0] for name in RECORDED["initializers"]}
    assert set(RECORDED["names"]["initializers"]) == recorded | set(NOT_INITIALIZERS)


@pytest.mark.parametrize("name", RECORDED["initializers"])
def test_initializers(name: str) -> None:
    """The same mean, deviation and reach."""
    ours, *general = name.split()
    params = INITIALIZERS.get(ours, {})
    if general:
        params = {"scale": 1.5, "mode": general[0], "distribution": general[1]}
    for kind, wanted in RECORDED["initializers"][name].items():
        fill = dlblocks.initializer(ours, **params)
        values = fill(
            torch.empty(SHAPES[kind], dtype=torch.float64), generator=torch.Generator().manual_seed(0)
        )
        # Both are samples of n numbers: the means are within 5 deviations of a difference of means.
        error = 5 * wanted["std"] * (2 / values.numel()) ** 0.5
        assert values.mean().item() == pytest.approx(wanted["mean"], abs=error + 1e-12)
        assert values.std().item() == pytest.approx(wanted["std"], rel=0.01, abs=1e-12)
        # A bounded distribution reaches its bound; an unbounded one about as far as another sample.
        unbounded = ours in UNBOUNDED or general[1:] == ["normal"]
        for got, reach in ((values.max(), wanted["max"]), (values.min(), wanted["min"])):
            assert got.item() == pytest.approx(reach, rel=0.25 if unbounded else 0.005, abs=1e-6)


def of_two(x: Tensor) -> Tensor:
    """Each number a logit against 0, as optax's sparsemax_loss takes it."""
    return torch.stack([torch.zeros_like(x), x], -1).reshape(-1, 2)


TEMPLATE = (2, 12, 2)  # pictures, places, classes
MASKS = torch.stack([LABELS[:3], 1 - LABELS[:3]], -1).reshape(TEMPLATE).argmax(-1)
SEQUENCES = (torch.tensor([[1, 3, 3], [2, 1, 0]]), torch.tensor([6, 6]), torch.tensor([3, 2]))

# optax's name -> ours, our parameters, our arguments from X.
LOSSES: dict[str, tuple[str, dict[str, Any], Callable[[Tensor], tuple[Tensor, ...]]]] = {
    "squared_error": ("mse", {}, lambda x: (x, Y)),
    "huber_loss": ("huber", {"delta": 0.7}, lambda x: (x, Y)),
    "log_cosh": ("log_cosh", {}, lambda x: (x, Y)),
    "cosine_distance": ("cosine_similarity", {}, lambda x: (x, Y)),
    "sigmoid_binary_cross_entropy": ("bce", {}, lambda x: (x, LABELS)),
    "sigmoid_focal_loss": ("binary_focal", {"alpha": 0.3, "gamma": 1.5}, lambda x: (x, LABELS)),
    "softmax_cross_entropy_with_integer_labels": ("cross_entropy", {}, lambda x: (x, INDICES)),
    "softmax_cross_entropy": ("cross_entropy", {}, lambda x: (x, Y.softmax(-1))),
    "safe_softmax_cross_entropy": ("cross_entropy", {}, lambda x: (x, Y.softmax(-1))),
    "poly_loss_cross_entropy": ("poly_cross_entropy", {"epsilon": 1.5}, lambda x: (x, INDICES)),
    "kl_divergence": ("kl_div", {}, lambda x: (x.log_softmax(-1), Y.softmax(-1))),
    "kl_divergence_with_log_targets": (
        "kl_div",
        {"log_target": True},
        lambda x: (x.log_softmax(-1), Y.log_softmax(-1)),
    ),
    "generalized_kl_divergence": ("generalized_kl", {}, lambda x: (x.log_softmax(-1), Y.softmax(-1))),
    "hinge_loss": ("hinge", {}, lambda x: (x, LABELS)),
    "perceptron_loss": ("perceptron", {}, lambda x: (x, LABELS)),
    "sparsemax_loss": ("sparsemax_loss", {}, lambda x: (of_two(x), LABELS.long().flatten())),
    "multiclass_hinge_loss": ("categorical_hinge", {}, lambda x: (x, INDICES)),
    "multiclass_perceptron_loss": ("categorical_hinge", {"margin": 0.0}, lambda x: (x, INDICES)),
    "multiclass_sparsemax_loss": ("sparsemax_loss", {}, lambda x: (x, INDICES)),
    "dice_loss": ("dice", {"smooth": 2.0}, lambda x: (x.reshape(TEMPLATE).transpose(1, 2), MASKS)),
    "binary_dice_loss": ("dice", {"smooth": 2.0}, lambda x: (x, LABELS)),
    "ctc_loss": (
        "ctc",
        {},
        lambda x: (x.reshape(2, 6, 4).log_softmax(-1).transpose(0, 1), *SEQUENCES),
    ),
}
SUMMED = ("kl_divergence", "kl_divergence_with_log_targets", "generalized_kl_divergence")  # over the classes
# In test_optimizer_differences.
LOSSES_THAT_DIFFER = {
    "l2_loss", "ranking_softmax_loss", "multiclass_generalized_dice_loss", "ntxent", "triplet_margin_loss"
}  # fmt: skip
NOT_LOSSES = {
    "convex_kl_divergence": "an older name of generalized_kl_divergence",
    "cosine_similarity": "1 minus cosine_distance",
    "smooth_labels": "a transformation of targets",
    "make_fenchel_young_loss": "makes losses of functions",
    "ctc_loss_with_forward_probs": "ctc_loss, with its intermediate results",
}


def test_no_loss_of_theirs_is_left_out() -> None:
    assert set(RECORDED["losses"]) == set(LOSSES) | LOSSES_THAT_DIFFER
    assert set(RECORDED["names"]["losses"]) == set(RECORDED["losses"]) | set(NOT_LOSSES)


@pytest.mark.parametrize("theirs", LOSSES)
def test_losses(theirs: str) -> None:
    """Values, and the gradient of their sum weighted by 1, 2, ..."""
    name, params, arguments = LOSSES[theirs]
    x = X.clone().requires_grad_()
    got = dlblocks.loss(name, **params, reduction="none")(*arguments(x))
    got = got.sum(-1) if theirs in SUMMED else got
    wanted = RECORDED["losses"][theirs]
    values = got.flatten()
    np.testing.assert_allclose(values.detach(), np.ravel(wanted["y"]), rtol=1e-8, atol=1e-10)
    (values * torch.arange(1.0, len(values) + 1)).sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad, wanted["gradient"], rtol=1e-7, atol=1e-10)


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
    "radam": ("radam", {"lr": 0.05, "betas": [0.9, 0.9]}),
    "yogi": ("yogi", {"lr": 0.05}),
    "ademamix": ("ademamix", {"lr": 0.05, "betas": [0.9, 0.999, 0.99]}),
    "signum": ("signum", {"lr": 0.05, "momentum": 0.8}),
    "fromage": ("fromage", {"lr": 0.05}),
    "madgrad": ("madgrad", {"lr": 0.05}),
    "novograd": ("novograd", {"lr": 0.05, "betas": [0.9, 0.25], "eps": 1e-6}),
    "sm3": ("sm3", {"lr": 0.05, "momentum": 0.9}),
    "sign_sgd": ("signum", {"lr": 0.05, "momentum": 0.0}),
    "optimistic_gradient_descent": ("optimistic_gradient_descent", {"lr": 0.05}),
    "optimistic_adam": ("optimistic_adam", {"lr": 0.05}),
    "dog": ("dog", {}),
    "dowg": ("dowg", {}),
    "cocob": ("cocob", {}),
    "adamaxw": ("adamaxw", {"lr": 0.05, "eps": 1e-30, "weight_decay": 0.1}),
    # Its momentum does not warm up.
    "nadamw": (
        "nadam",
        {"lr": 0.05, "momentum_decay": 1e4, "weight_decay": 0.1, "decoupled_weight_decay": True},
    ),
    "noisy_sgd": ("noisy_sgd", {"lr": 0.05, "eta": 0.0}),
    "polyak_sgd": ("polyak_sgd", {"lr": 0.05}),
    "momo": ("momo", {"lr": 0.05}),
    "momo_adam": ("momo_adam", {"lr": 0.05}),
    "adopt": ("adopt", {"lr": 0.05}),
    "simplified_ademamix": ("simplified_ademamix", {"lr": 0.005, "alpha": 2.0, "weight_decay": 0.1}),
    "schedule_free_sgd": ("schedule_free_sgd", {"lr": 0.05, "weight_decay": 0.1}),
    "schedule_free_adamw": ("schedule_free_adamw", {"lr": 0.05, "weight_decay": 0.1}),
    "adafactor": ("adafactor", {"lr": 0.05}),
}
# The same of a matrix.
MATRIX_OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "adafactor": ("adafactor", {"lr": 0.05}),
    "lars": ("lars", {"lr": 0.05}),
    "muon": ("muon", {"lr": 0.05, "weight_decay": 0.1, "nesterov": False}),
}
# Down a quadratic, where the rates that they find grow; lr is theirs, 1.
_FOUND = {"d0": 1e-2, "weight_decay": 0.1, "weight_decouple": True, "bias_correction": True}
DESCENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "prodigy": ("prodigy", _FOUND),
    "dadapt_adamw": ("d_adapt_adam", _FOUND),
    "dog": ("dog", {}),
    "dowg": ("dowg", {}),
}
# Numbers that one of the two keeps in float32: nadam's product of the momenta, the decay rate of adafactor, the
# sums of prodigy and dadapt_adamw.
IN_FLOAT32 = {"adafactor", "dadapt_adamw", "nadamw", "prodigy"}
# In test_optimizer_differences.
OPTIMIZERS_THAT_DIFFER = {"acprop", "adan", "amsgrad", "lars", "nadam", "rprop", "sophia"}
MATRIX_OPTIMIZERS_THAT_DIFFER = {"lars with decay", "muon with nesterov"}
DESCENTS_THAT_DIFFER = {"lbfgs"}
WRAPPERS = {"sam"}
NOT_OPTIMIZERS = {
    **dict.fromkeys(
        ("galore", "mechanize", "normalize", "reduce_on_plateau", "schedule_free",
         "schedule_free_eval_params", "split_real_and_imaginary", "hutchinson_estimator_diag_hessian",
         "differentially_private_aggregate"),
        "wraps another optimiser, or is a part of one",
    ),
    "dpsgd": "not offered: needs the gradient of each instance",
}  # fmt: skip
# Recorded under the name that the block has here.
RECORDED_AS = {"optimistic_adam_v2": "optimistic_adam"}


def test_no_optimizer_of_theirs_is_left_out() -> None:
    assert set(RECORDED["optimizers"]) == set(OPTIMIZERS) | OPTIMIZERS_THAT_DIFFER
    assert set(RECORDED["matrix_optimizers"]) == set(MATRIX_OPTIMIZERS) | MATRIX_OPTIMIZERS_THAT_DIFFER
    assert set(RECORDED["descents"]) == set(DESCENTS) | DESCENTS_THAT_DIFFER | WRAPPERS
    theirs = {n for n in RECORDED["names"]["optimizers"] if not n.startswith("scale_by_")}
    theirs = {RECORDED_AS.get(name, name) for name in theirs}
    recorded = {*RECORDED["optimizers"], *MATRIX_OPTIMIZERS, *RECORDED["descents"]}
    assert theirs == recorded | set(NOT_OPTIMIZERS)


def test_what_is_said_not_to_be_offered_is_not() -> None:
    for name, reason in NOT_OPTIMIZERS.items():
        assert not (reason.startswith("not offered") and REGISTRY.has("optimizer", name)), name


def assert_same_path(
    theirs: str, name: str, params: dict[str, Any], start: Any, grads: Any, wanted: Any
) -> None:
    theta = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    opt = dlblocks.optimizer(name, [theta], **params)
    if REGISTRY.get("optimizer", name).tags.get("switches"):
        opt.train()
    atol = 3e-7 if theirs in IN_FLOAT32 else 1e-9
    for t, values in enumerate(wanted):
        theta.grad = torch.tensor(grads(t, theta), dtype=torch.float64)
        loss = torch.tensor(RECORDED["seen_losses"][t % 6], dtype=torch.float64)
        opt.step(lambda loss=loss: loss)
        np.testing.assert_allclose(theta.detach(), values, rtol=1e-7, atol=atol)


@pytest.mark.parametrize("theirs", OPTIMIZERS)
def test_optimizers(theirs: str) -> None:
    grads, wanted = RECORDED["grads"], RECORDED["optimizers"][theirs]
    assert_same_path(theirs, *OPTIMIZERS[theirs], RECORDED["start"], lambda t, _: grads[t], wanted)


@pytest.mark.parametrize("theirs", MATRIX_OPTIMIZERS)
def test_optimizers_of_matrices(theirs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Muon's matrices are made orthogonal in bfloat16; in the precision of optax the two are one.
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda x: x)
    start, grads = RECORDED["matrix_start"], RECORDED["matrix_grads"]
    wanted = RECORDED["matrix_optimizers"][theirs]
    assert_same_path(theirs, *MATRIX_OPTIMIZERS[theirs], start, lambda t, _: grads[t], wanted)


@pytest.mark.parametrize("theirs", DESCENTS)
def test_optimizers_that_find_their_rate(theirs: str) -> None:
    curvature = np.array(RECORDED["curvature"])
    wanted = RECORDED["descents"][theirs]
    assert_same_path(
        theirs,
        *DESCENTS[theirs],
        RECORDED["start"],
        lambda _, theta: curvature * theta.detach().numpy(),
        wanted,
    )


def test_sam() -> None:
    theta = torch.tensor(RECORDED["start"], dtype=torch.float64, requires_grad=True)
    curvature = torch.tensor(RECORDED["curvature"])
    base = {"name": "sgd", "momentum": 0.8}
    opt = dlblocks.optimizer("sam", [theta], base=base, lr=0.05, rho=0.1)

    def closure() -> Tensor:
        opt.zero_grad()
        loss = (curvature * theta.square()).sum() / 2
        loss.backward()
        return loss

    for wanted in RECORDED["descents"]["sam"]:
        opt.step(closure)
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
    "constant": {},
    "warmup_constant": {"warmup": 5, "start_factor": 0.1},
    "multistep": {"milestones": [5, 12], "gamma": 0.1},
    "cosine_restarts": {"cycles": 2, "growth": 3.0, "min_lr_ratio": 0.1},
    "linear_one_cycle": {"points": [0.3, 0.85, 1.0], "factors": [25.0, 1.0, 1e-4]},  # three phases
    "one_cycle": {},  # at a T where the two peak at one step: see test_differences
}
# optax's name -> the name above.
RECORDED_SCHEDULES = {
    "constant_schedule": "constant",
    "cosine_decay_schedule": "cosine",
    "cosine_onecycle_schedule": "one_cycle",
    "exponential_decay": "exponential",
    "linear_onecycle_schedule": "linear_one_cycle",
    "linear_schedule": "linear_warmup",
    "piecewise_constant_schedule": "multistep",
    "piecewise_interpolate_schedule": "piecewise",
    "polynomial_schedule": "polynomial",
    "sgdr_schedule": "cosine_restarts",
    "warmup_constant_schedule": "warmup_constant",
    "warmup_cosine_decay_schedule": "warmup_cosine",
    "warmup_exponential_decay_schedule": "warmup_exponential",
}
NOT_SCHEDULES = {
    "join_schedules": "puts schedules together",
    **dict.fromkeys(("inject_hyperparams", "inject_stateful_hyperparams"), "give schedules to optimisers"),
}


def test_no_schedule_of_theirs_is_left_out() -> None:
    assert set(RECORDED["names"]["schedules"]) == set(RECORDED_SCHEDULES) | set(NOT_SCHEDULES)
    assert set(SCHEDULES) == set(RECORDED_SCHEDULES.values())
    assert set(RECORDED["schedules"]) == set(SCHEDULES) | {"one_cycle of 21 steps"}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name: str) -> None:
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    ours = "piecewise" if name == "linear_one_cycle" else name
    scheduler = dlblocks.scheduler(ours, opt, total_steps=20, **SCHEDULES[name])
    for wanted in RECORDED["schedules"][name]:
        assert opt.param_groups[0]["lr"] == pytest.approx(wanted, rel=1e-6, abs=1e-9)
        opt.step()
        scheduler.step()
