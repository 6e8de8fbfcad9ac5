"""Each difference that a loss declares is there, and is just that.

The library's numbers are ours with the declared change; timm's are in tests/foreign.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
import pytest
import pytorch_optimizer
import torch
from differing import CHECKS, RECORDED, X, checks_of, close, declared_of, default, differs
from torch import nn
from torch.nn import functional as F

import dlblocks

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


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


def test_every_declared_difference_is_checked_and_no_other() -> None:
    assert checks_of("loss") == declared_of("loss")


@pytest.mark.parametrize("key", checks_of("loss"), ids="-".join)
def test_it_is_just_that(key: tuple[str, str, str]) -> None:
    CHECKS[key]()
