"""Live against the losses and schedulers of pytorch-optimizer; its optimisers are in tests/optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import pytorch_optimizer
import torch
from pytorch_optimizer.lr_scheduler import LR_SCHEDULERS
from torch import Tensor
from torch.optim import Optimizer

import dlblocks

# Its class -> ours, our parameters, its parameters, the example. Regions are those of one picture: it takes
# the sums over the whole batch. Its eps keeps it from ours by 1e-6.
LOSSES: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "BCELoss": ("bce", {"label_smoothing": 0.1}, {"label_smooth": 0.1}, "probabilities"),
    "BCEFocalLoss": ("binary_focal", {"alpha": 0.25, "gamma": 1.5}, {"gamma": 1.5}, "probabilities"),
    "FocalLoss": ("binary_focal", {"gamma": 1.5}, {"gamma": 1.5}, "labels"),
    "FocalCosineLoss": ("focal_cosine", {"gamma": 1.5}, {"gamma": 1.5}, "classes"),
    "LDAMLoss": (
        "ldam",
        {"counts": [5, 40, 20, 10], "scale": 3.0},
        {"num_class_list": [5, 40, 20, 10], "s": 3.0},
        "classes",
    ),
    "BiTemperedLogisticLoss": (
        "bi_tempered",
        {"t1": 0.6, "t2": 1.5, "iterations": 5},
        {"t1": 0.6, "t2": 1.5},
        "classes",
    ),
    "DiceLoss": ("dice", {"smooth": 0.5}, {"mode": "multilabel", "label_smooth": 0.5}, "masks"),
    "JaccardLoss": ("jaccard", {"smooth": 0.5}, {"mode": "multilabel", "label_smooth": 0.5}, "masks"),
    "TverskyLoss": (
        "tversky",
        {"alpha": 0.2, "beta": 0.6, "smooth": 0.5},
        {"alpha": 0.2, "beta": 0.6, "smooth": 0.5},
        "mask",
    ),
    "FocalTverskyLoss": (
        "focal_tversky",
        {"alpha": 0.2, "beta": 0.6, "gamma": 1 / 1.5, "smooth": 0.5},
        {"alpha": 0.2, "beta": 0.6, "gamma": 1.5, "smooth": 0.5},
        "mask",
    ),
    "LovaszHingeLoss": ("lovasz", {}, {}, "mask"),
    "SoftF1Loss": ("soft_f1", {"beta": 0.7}, {"beta": 0.7}, "label"),
}
NOT_LOSSES = {"BinaryBiTemperedLogisticLoss": "bi_tempered of the classes -x and x"}


def test_no_loss_of_theirs_is_left_out() -> None:
    known = {name.lower() for name in (*LOSSES, *NOT_LOSSES)}
    assert set(pytorch_optimizer.get_supported_loss_functions()) == known


def example(kind: str) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """What is to be learnt, and our and their arguments made of it."""
    x = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    labels, classes = torch.randint(2, (9, 4)).double(), torch.randint(4, (9,))
    match kind:
        case "probabilities":
            return x, (x, labels), (x.sigmoid(), labels)
        case "labels":
            return x, (x, labels), (x, labels)
        case "label":
            return x, (x[:, :1], labels[:, :1]), (x[:, :1].sigmoid(), labels[:, :1])
        case "masks":
            both = x.T[None], labels.T[None]
            return x, both, both
        case "mask":
            both = x.T[:1], labels.T[:1]
            return x, both, both
    return x, (x, classes), (x, classes)


@pytest.mark.parametrize("theirs", LOSSES)
def test_losses(theirs: str) -> None:
    """Values and gradients."""
    name, params, their_params, kind = LOSSES[theirs]
    x, arguments, their_arguments = example(kind)
    got = dlblocks.loss(name, **params)(*arguments)
    wanted = getattr(pytorch_optimizer, theirs)(**their_params)(*their_arguments)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6, check_dtype=False)
    gradients = [torch.autograd.grad(y, x, retain_graph=True)[0] for y in (got, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


T, LR = 20, 0.4
_ABSOLUTE = {"max_lr": LR, "min_lr": 0.04}
_WARMED = {"t_max": T, **_ABSOLUTE, "init_lr": 0.04, "warmup_steps": 5}
_WARMUP = {"warmup": 5, "start_factor": 0.1, "min_lr_ratio": 0.1}


def _falling(shape: str) -> Callable[[Optimizer], Any]:
    return lambda opt: LR_SCHEDULERS["warmup_stable_decay"](opt, 0, 14, 6, cooldown_type=shape)


# Its name -> how it is made, our name and parameters.
SCHEDULERS: dict[str, tuple[Callable[[Optimizer], Any], str, dict[str, Any]]] = {
    "cosine": (lambda opt: LR_SCHEDULERS["cosine"](opt, **_WARMED), "warmup_cosine", _WARMUP),
    "linear": (lambda opt: LR_SCHEDULERS["linear"](opt, **_WARMED), "warmup_polynomial", _WARMUP),
    "rex": (
        lambda opt: LR_SCHEDULERS["rex"](opt, total_steps=T, **_ABSOLUTE),
        "rex",
        {"min_lr_ratio": 0.1},
    ),
    "cosine_annealing_with_warmup": (
        lambda opt: LR_SCHEDULERS["cosine_annealing_with_warmup"](opt, T // 2, gamma=0.5, **_ABSOLUTE),
        "cosine_restarts",
        {"cycles": 2, "peak_decay": 0.5, "min_lr_ratio": 0.1},
    ),
    **{
        f"warmup_stable_decay {theirs}": (
            _falling(theirs),
            "warmup_stable_decay",
            {"warmup": 0, "decay": 0.3, "shape": ours},
        )
        for theirs, ours in (
            ("linear", "linear"),
            ("1-sqrt", "sqrt"),
            ("1-square", "square"),
            ("cosine", "cosine"),
        )
    },
}
NOT_SCHEDULERS = {
    "chebyshev": "see test_differences",
    "poly": "rises with the step, where a polynomial decay falls",
    "proportion": "of GSAM's rho, not of a learning rate",
}


def test_no_scheduler_of_theirs_is_left_out() -> None:
    torchs = {name for name, kind in LR_SCHEDULERS.items() if kind.__module__.startswith("torch.")}
    assert set(LR_SCHEDULERS) == torchs | {name.split()[0] for name in SCHEDULERS} | set(NOT_SCHEDULERS)


@pytest.mark.parametrize("theirs", SCHEDULERS)
def test_schedulers(theirs: str) -> None:
    """From the second step on, as some of theirs set the first rate only after it."""
    make, name, params = SCHEDULERS[theirs]
    opts = [torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR) for _ in range(2)]
    wanted, got = make(opts[0]), dlblocks.scheduler(name, opts[1], total_steps=T, **params)
    if theirs in ("cosine", "linear"):
        wanted.step()  # which is its first
    for t in range(1, T):
        for opt in opts:
            opt.step()
        wanted.step()
        got.step()
        rates = [opt.param_groups[0]["lr"] for opt in opts]
        assert rates[1] == pytest.approx(rates[0], rel=1e-9), t
