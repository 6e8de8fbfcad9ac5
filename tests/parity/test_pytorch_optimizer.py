"""Live against the losses of pytorch-optimizer; its optimisers are in tests/optimizers."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_optimizer
import torch
from torch import Tensor

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
