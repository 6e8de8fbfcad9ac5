"""Live against torch: each block that both have and that is not torch's own object, and torch's lists in full."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn.modules import activation as activations
from torch.nn.modules import loss as losses
from torch.optim import lr_scheduler

import dlblocks
from dlblocks.registry import REGISTRY, names


def wrapped(kind: str, module: str) -> set[str]:
    """What of a module of torch is a block as it stands."""
    targets = (str(REGISTRY.get(kind, name).target).partition(":") for name in names(kind))
    return {attribute for origin, _, attribute in targets if origin == module}


NOT_ACTIVATIONS = {
    "MultiheadAttention": "a layer",
    "Softmax2d": "softmax with dim=-3",
}


def test_no_activation_of_torchs_is_left_out() -> None:
    assert set(activations.__all__) == (
        wrapped("activation", "torch.nn") - {"Identity"} | set(NOT_ACTIVATIONS)
    )


# Losses: torch's class -> ours, parameters of both, parameters of torch's alone, the example.
LOSSES: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "BCEWithLogitsLoss": ("bce", {}, {}, "labels"),
    "BCELoss": ("bce", {}, {}, "probabilities"),
    "CTCLoss": ("ctc", {"blank": 1}, {}, "sequences"),
    "CosineEmbeddingLoss": ("cosine_embedding", {"margin": 0.3}, {}, "pairs"),
    "CrossEntropyLoss": ("cross_entropy", {"label_smoothing": 0.2}, {}, "classes"),
    "GaussianNLLLoss": ("gaussian_nll", {"full": True}, {}, "variances"),
    "HingeEmbeddingLoss": ("hinge_embedding", {"margin": 0.7}, {}, "distances"),
    "HuberLoss": ("huber", {"delta": 0.6}, {}, "values"),
    "KLDivLoss": ("kl_div", {}, {}, "distributions"),
    "L1Loss": ("mae", {}, {}, "values"),
    "MSELoss": ("mse", {}, {}, "values"),
    "MarginRankingLoss": ("margin_ranking", {"margin": 0.4}, {}, "order"),
    "MultiLabelSoftMarginLoss": ("soft_margin", {}, {}, "labels"),
    "MultiMarginLoss": ("multi_margin", {"p": 2, "margin": 0.8}, {}, "classes"),
    "NLLLoss": ("nll", {}, {}, "log probabilities"),
    "PoissonNLLLoss": ("poisson_nll", {"full": True}, {}, "counts"),
    "SmoothL1Loss": ("smooth_l1", {"beta": 0.6}, {}, "values"),
    "SoftMarginLoss": ("soft_margin", {}, {}, "signs"),
    "TripletMarginLoss": ("triplet", {"margin": 0.9, "swap": True}, {}, "triplets"),
    "TripletMarginWithDistanceLoss": (
        "triplet",
        {"margin": 0.9},
        {"distance_function": nn.PairwiseDistance()},
        "triplets",
    ),
}
NOT_LOSSES = {
    "MultiLabelMarginLoss": "takes other targets: see test_differences",
    "LinearCrossEntropyLoss": "a linear layer and its cross-entropy in one",
    "NLLLoss2d": "an older name of NLLLoss",
}


def test_no_loss_of_torchs_is_left_out() -> None:
    assert set(losses.__all__) == set(LOSSES) | set(NOT_LOSSES)


def example(kind: str) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What is to be learnt, and our and torch's arguments made of it."""
    x = torch.randn(12, 6, dtype=torch.float64, requires_grad=True)
    y = torch.randn(12, 6, dtype=torch.float64)
    labels, classes = torch.randint(2, (12, 6)).double(), torch.randint(6, (12,))
    same = torch.randint(2, (12,)) * 2.0 - 1
    match kind:
        case "values":
            arguments: tuple[Tensor, ...] = (x, y)
        case "labels":
            arguments = (x, labels)
        case "classes":
            arguments = (x, classes)
        case "log probabilities":
            arguments = (x.log_softmax(-1), classes)
        case "distributions":
            arguments = (x.log_softmax(-1), y.softmax(-1))
        case "counts":
            arguments = (x, labels * 4)
        case "pairs":
            arguments = (x, y, same)
        case "distances":
            arguments = (x.abs()[:, 0], same)
        case "order":
            arguments = (x[:, 0], x[:, 1], same)
        case "triplets":
            arguments = (x, y, y.flip(0))
        case "sequences":
            targets = torch.randint(2, 6, (3, 2))
            arguments = (
                x.reshape(4, 3, 6).log_softmax(-1),
                targets,
                torch.full((3,), 4),
                torch.full((3,), 2),
            )
        case "probabilities":
            return x, (x, labels), (x.sigmoid(), labels)
        case "signs":
            return x, (x, labels), (x, 2 * labels - 1)
        case "variances":
            return x, (x, y[:, :3]), (x[:, :3], y[:, :3], x[:, 3:].exp())
    return x, arguments, arguments


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides the total loss:UserWarning")
@pytest.mark.parametrize("theirs", LOSSES)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_losses(theirs: str, reduction: str) -> None:
    name, params, their_params, kind = LOSSES[theirs]
    x, arguments, their_arguments = example(kind)
    got = dlblocks.loss(name, **params, reduction=reduction)(*arguments)
    wanted = getattr(nn, theirs)(**params, **their_params, reduction=reduction)(*their_arguments)
    if theirs == "MultiLabelSoftMarginLoss":  # its value of an instance is the mean over the labels
        got = {"none": got.mean(-1) if got.ndim > 1 else got, "mean": got, "sum": got / 6}[reduction]
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-11)
    weights = torch.arange(1.0, got.numel() + 1)
    gradients = [
        torch.autograd.grad((y.flatten() * weights).sum(), x, retain_graph=True)[0] for y in (got, wanted)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-11)


# Initialisers: torch's function -> ours, our parameters, torch's.
INITIALIZERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "constant_": ("constant", {"value": 0.4}, {"val": 0.4}),
    "dirac_": ("identity", {"groups": 2}, {"groups": 2}),
    "eye_": ("identity", {}, {}),
    "kaiming_normal_": ("kaiming_normal", {"a": 0.5, "mode": "fan_out"}, {"a": 0.5, "mode": "fan_out"}),
    "kaiming_uniform_": ("kaiming_uniform", {"nonlinearity": "tanh"}, {"nonlinearity": "tanh"}),
    "normal_": ("normal", {"mean": 1.0, "std": 0.3}, {"mean": 1.0, "std": 0.3}),
    "ones_": ("ones", {}, {}),
    "orthogonal_": ("orthogonal", {"gain": 1.5}, {"gain": 1.5}),
    "trunc_normal_": ("truncated_normal", {"std": 0.3}, {"std": 0.3, "a": -0.6, "b": 0.6}),
    "uniform_": ("uniform", {"low": -1.0, "high": 2.0}, {"a": -1.0, "b": 2.0}),
    "xavier_normal_": ("xavier_normal", {"gain": 1.5}, {"gain": 1.5}),
    "xavier_uniform_": ("xavier_uniform", {"gain": 1.5}, {"gain": 1.5}),
    "zeros_": ("zeros", {}, {}),
}
NOT_INITIALIZERS = {"sparse_": "sets other zeros: see test_differences"}
EXACT = ("constant", "identity", "ones", "zeros")


def test_no_initializer_of_torchs_is_left_out() -> None:
    theirs = {name for name in dir(nn.init) if name.endswith("_") and not name.startswith("_")}
    assert theirs == set(INITIALIZERS) | set(NOT_INITIALIZERS)


@pytest.mark.parametrize("theirs", INITIALIZERS)
@pytest.mark.parametrize("shape", [(200, 120), (40, 24, 5, 5)])
def test_initializers(theirs: str, shape: tuple[int, ...]) -> None:
    name, params, their_params = INITIALIZERS[theirs]
    if name == "identity":
        shape = (40, 24, 5, 5) if theirs == "dirac_" else (200, 120)
    ours = dlblocks.initializer(name, **params)(torch.empty(shape))
    wanted = getattr(nn.init, theirs)(torch.empty(shape), **their_params)
    if name in EXACT:
        assert torch.equal(ours, wanted)
        return
    if name == "orthogonal":
        singular = [torch.linalg.svdvals(values.flatten(1)) for values in (ours, wanted)]
        torch.testing.assert_close(*singular, rtol=1e-4, atol=1e-5)
        return
    assert stats.ks_2samp(ours.flatten(), wanted.flatten()).pvalue > 1e-3
    assert ours.std().item() == pytest.approx(wanted.std().item(), rel=0.03)


NOT_OPTIMIZERS = {
    "Muon": "ours also takes what is no matrix: see test_optimizer_differences",
    "Optimizer": "the base class",
    **dict.fromkeys(("lr_scheduler", "swa_utils"), "modules"),
    "swap_in_optimizer_params_and_state": "a helper",
}


def test_no_optimizer_of_torchs_is_left_out() -> None:
    assert set(torch.optim.__all__) == wrapped("optimizer", "torch.optim") | set(NOT_OPTIMIZERS)


# Schedules: torch's class -> ours, our parameters, torch's parameters, for a run of T steps at a rate of 0.4.
T = 24
SCHEDULES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "CosineAnnealingLR": ("cosine", {"min_lr_ratio": 0.25}, {"T_max": T, "eta_min": 0.1}),
    "CosineAnnealingWarmRestarts": (
        "cosine_restarts",
        {"cycles": 2, "growth": 2.0, "min_lr_ratio": 0.25},
        {"T_0": T // 3, "T_mult": 2, "eta_min": 0.1},
    ),
    "CyclicLR": (
        "cyclic",
        {"cycles": 3, "base_factor": 0.25, "shape": "triangular2"},
        {
            "base_lr": 0.1,
            "max_lr": 0.4,
            "step_size_up": T // 6,
            "mode": "triangular2",
            "cycle_momentum": False,
        },
    ),
    "OneCycleLR": (
        "one_cycle",
        {"pct_start": 0.4, "anneal_strategy": "linear"},
        {
            "max_lr": 0.4,
            "total_steps": T,
            "pct_start": 0.4,
            "anneal_strategy": "linear",
            "cycle_momentum": False,
        },
    ),
    "PolynomialLR": ("polynomial", {"power": 2.0}, {"total_iters": T, "power": 2.0}),
}
NOT_SCHEDULES = {
    "LRScheduler": "the base class",
    **dict.fromkeys(("ChainedScheduler", "SequentialLR"), "put schedules together"),
    **dict.fromkeys(
        ("LambdaLR", "MultiplicativeLR"), "of a function: a partial is accepted in a block's place"
    ),
}


def test_no_scheduler_of_torchs_is_left_out() -> None:
    own = wrapped("scheduler", "torch.optim.lr_scheduler")
    assert set(lr_scheduler.__all__) == own | set(SCHEDULES) | set(NOT_SCHEDULES)


def curve(make: Callable[[torch.optim.Optimizer], Any]) -> list[float]:
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    scheduler, rates = make(opt), []
    for _ in range(T):
        rates.append(opt.param_groups[0]["lr"])
        opt.step()
        if len(rates) < T:
            scheduler.step()
    return rates


@pytest.mark.parametrize("theirs", SCHEDULES)
def test_schedules(theirs: str) -> None:
    name, params, their_params = SCHEDULES[theirs]
    ours = curve(lambda opt: dlblocks.scheduler(name, opt, total_steps=T, **params))
    wanted = curve(lambda opt: getattr(lr_scheduler, theirs)(opt, **their_params))
    np.testing.assert_allclose(ours, wanted, rtol=1e-9, atol=1e-12)
