"""Live against timm: each activation, initialiser, loss, optimiser and scheduler that both have."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm.loss
import timm.optim
import timm.scheduler
import torch
from scipy import stats
from timm.layers import create_act, weight_init
from timm.models import metaformer
from torch import nn

import dlblocks
from dlblocks.registry import REGISTRY

# timm's name -> ours and our parameters.
ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "celu": ("celu", {}),
    "elu": ("elu", {}),
    "gelu": ("gelu", {}),
    "gelu_tanh": ("gelu", {"approximate": "tanh"}),
    "hard_mish": ("hard_mish", {}),
    "hard_sigmoid": ("hard_sigmoid", {}),
    "hard_swish": ("hardswish", {}),
    "identity": ("linear", {}),
    "leaky_relu": ("leaky_relu", {"negative_slope": 0.01}),
    "mish": ("mish", {}),
    "prelu": ("prelu", {}),
    "quick_gelu": ("quick_gelu", {}),
    "relu": ("relu", {}),
    "relu6": ("relu6", {}),
    "selu": ("selu", {}),
    "sigmoid": ("sigmoid", {}),
    "silu": ("silu", {}),
    "swish": ("silu", {}),
    "tanh": ("tanh", {}),
}
OTHER_NAMES = {"hardsigmoid", "hardswish"}


def test_no_activation_is_left_out() -> None:
    names = set(create_act._ACT_LAYER_DEFAULT)
    assert names == set(ACTIVATIONS) | OTHER_NAMES


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str) -> None:
    our_name, params = ACTIVATIONS[name]
    x = torch.randn(50, 6, dtype=torch.float64) * 3
    results = []
    for module in (
        dlblocks.activation(our_name, **params).double(),
        create_act.create_act_layer(name).double(),
    ):
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        (y * torch.arange(1.0, 7.0)).sum().backward()
        results.append((y.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-7)


def test_those_of_metaformers() -> None:
    x = torch.randn(50, 6)
    torch.testing.assert_close(dlblocks.activation("squared_relu")(x), metaformer.SquaredReLU()(x))
    layer = metaformer.StarReLU()
    assert [p.item() for p in layer.parameters()] == [1.0, 0.0]
    torch.testing.assert_close(dlblocks.activation("star_relu", scale=1.0, bias=0.0)(x), layer(x))


# timm's function -> timm's parameters, ours and our parameters.
INITIALIZERS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "trunc_normal_": ({"std": 0.3, "a": -0.6, "b": 0.6}, "truncated_normal", {"std": 0.3}),
    "trunc_normal_tf_": ({"std": 0.3}, "truncated_normal", {"std": 0.3}),
    "variance_scaling_": (
        {"scale": 1.7, "mode": "fan_avg", "distribution": "uniform"},
        "variance_scaling",
        {"scale": 1.7, "mode": "fan_avg", "distribution": "uniform"},
    ),
    "lecun_normal_": ({}, "lecun_normal", {}),
}


def test_no_initializer_is_left_out() -> None:
    found = {name for name in vars(weight_init) if name.endswith("_") and not name.startswith("_")}
    # Of single tensors; init_weight_vit and init_weight_jax choose one for each layer, as init.rules does.
    assert found == set(INITIALIZERS)


@pytest.mark.parametrize("name", INITIALIZERS)
def test_initializers(name: str) -> None:
    their_params, our_name, params = INITIALIZERS[name]
    torch.manual_seed(0)
    wanted = torch.empty(300, 200)
    getattr(weight_init, name)(wanted, **their_params)
    ours = dlblocks.initializer(our_name, **params)(torch.empty(300, 200))
    assert stats.ks_2samp(ours.flatten(), wanted.flatten()).pvalue > 1e-3
    assert ours.std().item() == pytest.approx(wanted.std().item(), rel=0.02)
    assert ours.abs().max().item() == pytest.approx(wanted.abs().max().item(), rel=0.02)


COUNTS, INSTANCES = (5.0, 40.0, 20.0, 10.0, 30.0), 90
# timm's class -> timm's parameters, ours, our parameters, whether the target is indices.
LOSSES: dict[str, tuple[dict[str, Any], str, dict[str, Any], bool]] = {
    "AsymmetricLossMultiLabel": ({"reduction": "mean"}, "asymmetric", {}, False),
    "AsymmetricLossSingleLabel": (
        {"gamma_pos": 1.0},
        "asymmetric_single_label",
        {"gamma_pos": 1.0},
        True,
    ),
    "BinaryCrossEntropy": (
        {"smoothing": 0.1, "smooth_dense": True},
        "bce",
        {"label_smoothing": 0.1},
        False,
    ),
    "DistributionBalancedLoss": (
        {"class_counts": COUNTS, "num_samples": INSTANCES},
        "distribution_balanced",
        {"counts": list(COUNTS), "instances": INSTANCES},
        False,
    ),
    "LabelSmoothingCrossEntropy": ({"smoothing": 0.2}, "cross_entropy", {"label_smoothing": 0.2}, True),
    "PolyBinaryCrossEntropy": (
        {"gamma": 1.5, "alpha": 0.3},
        "poly_binary",
        {"gamma": 1.5, "alpha": 0.3},
        False,
    ),
    "PolyCrossEntropy": ({}, "poly_cross_entropy", {}, True),
    "SoftTargetCrossEntropy": ({}, "cross_entropy", {}, False),
    "ZlprLoss": ({}, "zlpr", {}, False),
}
NOT_LOSSES = {
    "JsdCrossEntropy": "compares a clean with augmented copies of a picture, which the data has to bring",
    "TwoWayLoss": "compares the instances of a batch with each other, so that none has a value of its own",
}


def test_no_loss_is_left_out_without_a_reason() -> None:
    values = vars(timm.loss).items()
    found = {name for name, value in values if isinstance(value, type) and issubclass(value, nn.Module)}
    assert found == set(LOSSES) | set(NOT_LOSSES)


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str) -> None:
    """Values and gradients; timm computes some in float32 only."""
    their_params, our_name, params, of_indices = LOSSES[name]
    torch.manual_seed(0)
    x = torch.randn(9, 5, requires_grad=True)
    target = torch.randint(5, (9,)) if of_indices else torch.randint(2, (9, 5)).float()
    if name == "SoftTargetCrossEntropy":
        target = torch.randn(9, 5).softmax(-1)
    got = dlblocks.loss(our_name, **params)(x, target)
    wanted = getattr(timm.loss, name)(**their_params)(x, target)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(value, x)[0] for value in (got, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


def _ours(name: str, **params: Any) -> Callable[[list[torch.Tensor]], torch.optim.Optimizer]:
    return lambda tensors: dlblocks.optimizer(name, tensors, **params)


def _timm(name: str, **params: Any) -> Callable[[list[torch.Tensor]], torch.optim.Optimizer]:
    def build(tensors: list[torch.Tensor]) -> torch.optim.Optimizer:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return timm.optim.create_optimizer_v2([{"params": tensors}], opt=name, **params)

    return build


_SAME: dict[str, Any] = {"lr": 0.05, "weight_decay": 0.1}
# What makes the base of a cautious one, and timm's, the other's.
_BASES: dict[str, dict[str, Any]] = {
    "sgdw": {"nesterov": True},
    "sgdp": {"nesterov": True},
    "adamp": {"nesterov": True, "wd_ratio": 0.01},
    "mars": {"betas": [0.9, 0.99]},
}
_THEIRS: dict[str, dict[str, Any]] = {name: {"clip_exp": 0.25} for name in ("cadopt", "cadoptw")}


def _both(name: str, **params: Any) -> tuple[Any, Any]:
    return _ours(name, **_SAME, **params), _timm(name, **_SAME, **params)


def _cautious(base: str, name: str, **params: Any) -> tuple[Any, Any]:
    inner = {"name": base, **params, **_BASES.get(base, {})}
    return _ours("cautious", base=inner), _timm(name, **params, **_THEIRS.get(name, {}))


# timm's name -> how ours and timm's are made.
OPTIMIZERS = {
    "sgd": (_ours("sgd", lr=0.1, momentum=0.8, nesterov=True), _timm("sgd", lr=0.1, momentum=0.8)),
    "adam": (_ours("adam", lr=0.05), _timm("adam", lr=0.05)),
    "adamw": (_ours("adamw", lr=0.05, weight_decay=0.1), _timm("adamw", lr=0.05, weight_decay=0.1)),
    "adamax": (_ours("adamax", lr=0.05), _timm("adamax", lr=0.05)),
    "nadam": (_ours("nadam", lr=0.05), _timm("nadam", lr=0.05)),
    "radam": (_ours("radam", lr=0.05, betas=[0.9, 0.9]), _timm("radam", lr=0.05, betas=(0.9, 0.9))),
    "adagrad": (_ours("adagrad", lr=0.05), _timm("adagrad", lr=0.05)),
    "adadelta": (_ours("adadelta", lr=0.5), _timm("adadelta", lr=0.5)),
    "rmsprop": (_ours("rmsprop", lr=0.02, alpha=0.9, momentum=0.5), _timm("rmsprop", lr=0.02, momentum=0.5)),
    "momentum": (_ours("sgd", lr=0.1, momentum=0.8), _timm("momentum", lr=0.1, momentum=0.8)),
    "nesterov": (
        _ours("sgd", lr=0.1, momentum=0.8, nesterov=True),
        _timm("nesterov", lr=0.1, momentum=0.8),
    ),
    "lamb": (
        _ours("lamb", lr=0.05, weight_decay=0.1),
        _timm("lamb", lr=0.05, weight_decay=0.1, max_grad_norm=None),
    ),
    "larc": (
        _ours("larc", lr=0.1, momentum=0.8, weight_decay=0.1),
        _timm("larc", lr=0.1, momentum=0.8, weight_decay=0.1),
    ),
    "muon": (
        _ours("muon", lr=0.05, momentum=0.8, nesterov=False),
        _timm("muon", lr=0.05, momentum=0.8, weight_decay=0.1, ns_coefficients="original"),
    ),
    "nmuon": (
        _ours("muon", lr=0.05, momentum=0.8),
        _timm("nmuon", lr=0.05, momentum=0.8, weight_decay=0.1, ns_coefficients="original"),
    ),
    "rmsproptf": (
        _ours("rmsprop_tf", lr=0.02, momentum=0.5, weight_decay=0.1),
        _timm("rmsproptf", lr=0.02, momentum=0.5, weight_decay=0.1),
    ),
    "cadamw": _cautious("adamw", "cadamw", **_SAME),
    "cadamc": _cautious("adamc", "cadamc", **_SAME),
    "cadopt": _cautious("adopt", "cadopt", lr=0.05, weight_decay=0.0),
    "cadoptw": _cautious("adopt", "cadoptw", **_SAME),
    "crmsproptf": _cautious("rmsprop_tf", "crmsproptf", lr=0.02, momentum=0.5),
    # From here on of the package pytorch-optimizer.
    "claprop": _cautious("laprop", "claprop", lr=0.05, weight_decay=0.0),
    "clion": _cautious("lion", "clion", **_SAME),
    "cmars": _cautious("mars", "cmars", **_SAME),
    "csgdw": _cautious("sgdw", "csgdw", **_SAME, momentum=0.8),
    "clionc": _cautious("lion", "clionc", **_SAME),
    "csgdc": _cautious("sgdw", "csgdc", **_SAME, momentum=0.8),
    "adabelief": _both("adabelief"),
    "adan": _both("adan"),
    "adopt": (_ours("adopt", lr=0.05), _timm("adopt", lr=0.05, weight_decay=0.0, clip_exp=0.25)),
    "adanw": (_ours("adan", **_SAME, weight_decouple=True), _timm("adanw", **_SAME)),
    "laprop": _both("laprop"),
    "lars": _both("lars", momentum=0.8),
    "nlars": (
        _ours("lars", **_SAME, momentum=0.8, nesterov=True),
        _timm("nlars", **_SAME, momentum=0.8),
    ),
    "lion": _both("lion"),
    "madgrad": _both("madgrad"),
    "novograd": _both("novograd"),
    "sgdp": (
        _ours("sgdp", **_SAME, momentum=0.8, nesterov=True),
        _timm("sgdp", **_SAME, momentum=0.8),
    ),
    "sgdw": (
        _ours("sgdw", **_SAME, momentum=0.8, nesterov=True),
        _timm("sgdw", **_SAME, momentum=0.8),
    ),
    "adamc": _both("adamc"),
    "adamp": (
        _ours("adamp", **_SAME, wd_ratio=0.01, nesterov=True),
        _timm("adamp", **_SAME),
    ),
    "mars": _both("mars", betas=[0.9, 0.99]),
}

# Same name, another update; the parameters are as near as they can be set.
OTHER_UPDATES = {
    # Ours is torch's, timm's is fairseq's.
    "adafactor": _both("adafactor"),
    # Ours is pytorch-optimizer's, which corrects the bias of the second moment.
    "adamuon": _both("adamuon", betas=[0.9, 0.999], eps=1e-8),
    # timm's mask a part of the step, before the rest is added or the step is projected.
    "csgdp": _cautious("sgdp", "csgdp", **_SAME, momentum=0.8),
    "cadamp": _cautious("adamp", "cadamp", **_SAME),
    "cadan": _cautious("adan", "cadan", **_SAME),
    "cadanw": _cautious("adan", "cadanw", **_SAME),
    "clamb": _cautious("lamb", "clamb", **_SAME),
}

# timm's names that are not compared -> why.
NOT_OFFERED = {
    "the cautious variant of one that is not compared itself, below": (
        "cadafactor cadafactorbv cadafactorbvc cadoptc clambw cnadamc cnadamw"
    ),
    "needs CUDA and another package (bitsandbytes, apex)": (
        "bnbadam bnbadam8bit bnbadamw bnbadamw8bit bnbademamix bnbademamix8bit bnblion bnblion8bit bnbsgd"
        " bnbsgd8bit fusedadam fusedadamw fusedlamb fusednovograd fusedsgd"
    ),
    "an older copy of what timm and we have": "adamwlegacy nadamlegacy radamlegacy",
    "a variant with a decoupled decay": "adoptw lambw madgradw nadamw nesterovw novogradw radamw rmsproptfw",
    "a variant with a decay corrected for the schedule": (
        "adoptc lambcd lapropc lionc nadamc novogradc rmsproptfc sgdc"
    ),
    "a variant that clips the trust ratio, or adds Nesterov's step or a rectification": (
        "lambc lambcw nadamuon nlarc radabelief"
    ),
    "big_vision's adafactor; ours is torch's": "adafactorbv adafactorbvc",
    "draws random numbers, so that two cannot be compared step by step": "kron kronc kronw adahessian",
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name: str) -> None:
    ours, timms = _paths(OPTIMIZERS[name])
    np.testing.assert_allclose(ours, timms, rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("name", OTHER_UPDATES)
def test_those_of_another_update_do_differ(name: str) -> None:
    ours, timms = _paths(OTHER_UPDATES[name])
    assert np.abs(ours - timms).max() > 1e-3


def test_no_optimizer_is_left_out_without_a_reason() -> None:
    left = [name for names in NOT_OFFERED.values() for name in names.split()]
    told = [*OPTIMIZERS, *OTHER_UPDATES, *left]
    assert len(told) == len(set(told))
    assert set(told) == set(timm.optim.list_optimizers())


def _paths(builds: tuple[Any, Any]) -> tuple[Any, Any]:
    """The parameters after each of ten steps.

    No gradient is near zero, where it would matter at which place eps is added; and the matrix is large
    enough for timm's Muon, which takes small ones for vectors.
    """
    start = np.random.default_rng(0).normal(size=(20, 17))
    grads = np.random.default_rng(1).normal(size=(10, 20, 17))
    grads += 0.2 * np.sign(grads)
    paths = []
    for build in builds:
        theta = torch.nn.Parameter(torch.tensor(start))
        opt = build([theta])
        path = []
        for grad in grads:
            theta.grad = torch.tensor(grad)
            opt.step()
            path.append(theta.detach().numpy().copy())
        paths.append(np.array(path))
    return paths[0], paths[1]


T = 20
# timm's class -> its parameters, our name and parameters; timm's floor is absolute.
SCHEDULERS = {
    timm.scheduler.CosineLRScheduler: ({"t_initial": T, "lr_min": 0.04}, "cosine", {"min_lr_ratio": 0.1}),
    timm.scheduler.TanhLRScheduler: (
        {"t_initial": T, "lb": -6.0, "ub": 3.0, "lr_min": 0.04},
        "tanh",
        {"min_lr_ratio": 0.1},
    ),
    timm.scheduler.StepLRScheduler: (
        {"decay_t": 6, "decay_rate": 0.3},
        "step",
        {"step_size": 6, "gamma": 0.3},
    ),
    timm.scheduler.MultiStepLRScheduler: (
        # One epoch later, since timm's falls one earlier.
        {"decay_t": [6, 13], "decay_rate": 0.3},
        "multistep",
        {"milestones": [5, 12], "gamma": 0.3},
    ),
    timm.scheduler.PolyLRScheduler: (
        {"t_initial": T, "power": 2.0, "lr_min": 0.04},
        "polynomial",
        {"power": 2.0, "min_lr_ratio": 0.1},
    ),
    timm.scheduler.WSDLRScheduler: (
        {"t_initial": T, "decay_t": 5, "decay_fn": "linear", "lr_min": 0.04},
        "warmup_stable_decay",
        {"warmup": 0.0, "decay": 0.25, "min_lr_ratio": 0.1},
    ),
}


def test_no_scheduler_is_left_out() -> None:
    kinds = {value for key, value in vars(timm.scheduler).items() if key.endswith("LRScheduler")}
    # timm's is torch's ReduceLROnPlateau, as ours is, and deprecated.
    assert kinds == {*SCHEDULERS, timm.scheduler.PlateauLRScheduler}


@pytest.mark.parametrize("kind", SCHEDULERS, ids=lambda kind: kind.__name__)
def test_schedulers(kind: Any) -> None:
    their_params, name, params = SCHEDULERS[kind]
    opts = [torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4) for _ in range(2)]
    ours = dlblocks.scheduler(name, opts[0], total_steps=T, **params)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        timms = kind(opts[1], **their_params)
    for t in range(T):
        timms.step(t)
        got, wanted = (opt.param_groups[0]["lr"] for opt in opts)
        # timm's tanh is shifted so that it begins at exactly lr; ours is the paper's.
        tolerance = 1e-5 if name == "tanh" else 1e-9
        assert got == pytest.approx(wanted, rel=tolerance), t
        opts[0].step()
        ours.step()


def test_tanh_differs_as_declared() -> None:
    import inspect

    parameters = inspect.signature(timm.scheduler.TanhLRScheduler).parameters
    assert (parameters["lb"].default, parameters["ub"].default) == (-7.0, 3.0)
    assert "lower -7" in REGISTRY.get("scheduler", "tanh").differs_from["timm"]


def test_every_difference_from_timm_is_checked_here() -> None:
    blocks = [REGISTRY.get(kind, name) for kind in REGISTRY.kinds for name in REGISTRY.names(kind)]
    known = {"star_relu", "tanh", "multistep", "cautious"}
    assert {b.name for b in blocks if "timm" in b.differs_from} == known
