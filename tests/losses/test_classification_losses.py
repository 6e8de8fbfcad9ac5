"""Targets, weights and ignored indices of the classification losses, and what losses have to do with each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_formulas import C, N, example
from torch import nn
from torch.nn import functional as F

import dlblocks
from dlblocks.errors import UserError


def test_cross_entropy_takes_indices_one_hot_and_soft_targets() -> None:
    x, y = example("cross_entropy")
    one_hot = torch.nn.functional.one_hot(y, C)
    for params in ({}, {"label_smoothing": 0.1}):
        loss = dlblocks.loss("cross_entropy", **params)
        assert torch.allclose(loss(x, y), loss(x, one_hot))
        assert torch.allclose(loss(x, y), loss(x, one_hot.double()))
    with pytest.raises(ValueError, match="ignore_index=1 needs a target of indices"):
        dlblocks.loss("cross_entropy", ignore_index=1)(x, one_hot)
    soft = torch.full((N, C), 1 / C, dtype=torch.float64)
    assert torch.allclose(dlblocks.loss("cross_entropy")(x, soft), -x.log_softmax(-1).mean(-1).mean())


@pytest.mark.parametrize("name", ["cross_entropy", "nll"])
def test_class_weights_are_the_weighted_mean(name: str) -> None:
    x, y = example(name)
    weight = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
    each = dlblocks.loss(name, reduction="none")(x, y)
    expected = (each * weight[y]).sum() / weight[y].sum()
    loss = dlblocks.loss(name, weight=weight.tolist())
    assert torch.allclose(loss(x, y), expected)
    assert not loss.state_dict()
    with pytest.raises(UserError, match=r"loss\.weight: has 2 numbers for 4 classes"):
        dlblocks.loss(name, weight=[1, 2])(x, y)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_weights_and_smoothing_together_are_torchs(reduction: str, smoothing: float) -> None:
    x, y = example("cross_entropy")
    weight = [0.1, 1.0, 2.0, 0.7]
    ours = dlblocks.loss("cross_entropy", weight=weight, label_smoothing=smoothing, reduction=reduction)
    theirs = nn.CrossEntropyLoss(torch.tensor(weight), label_smoothing=smoothing, reduction=reduction)
    for target in (y, x.flip(0).softmax(-1)):
        expected = theirs.double()(x, target)
        assert torch.equal(ours(x, target), expected)
    # One-hot and soft targets are divided by N, not by the sum of weights: torch's convention, and noted.
    if reduction == "mean":
        total = dlblocks.loss("cross_entropy", weight=weight, reduction="sum")(x, y)
        assert torch.allclose(dlblocks.loss("cross_entropy", weight=weight)(x, F.one_hot(y, C)), total / N)


def test_weights_move_with_the_module_and_stay_out_of_checkpoints() -> None:
    for name, params in (
        ("cross_entropy", {"weight": [1, 2]}),
        ("nll", {"weight": [1, 2]}),
        ("bce", {"pos_weight": [1, 2]}),
    ):
        loss = dlblocks.loss(name, **params)
        assert [buffer.dtype for buffer in loss.double().buffers()] == [torch.float64]
        assert [buffer.device.type for buffer in loss.to("meta").buffers()] == ["meta"]
        assert not loss.state_dict()


def test_pos_weight_is_one_number_for_each_output() -> None:
    x, y = example("bce")
    single = dlblocks.loss("bce", pos_weight=[3])
    assert torch.allclose(single(x[:, 0], y[:, 0]), single(x[:, :1], y[:, :1]))
    with pytest.raises(UserError, match=r"loss\.pos_weight: has 1 numbers for 4 classes"):
        single(x, y)


@pytest.mark.parametrize("name", ["cross_entropy", "nll"])
@pytest.mark.parametrize("ignored", [-100, 1])
def test_ignored_targets_do_not_count(name: str, ignored: int) -> None:
    x, y = example(name)
    y = torch.where(y == ignored, 0, y)
    some = y.clone()
    some[2:] = ignored
    loss = dlblocks.loss(name, ignore_index=ignored)
    assert torch.allclose(loss(x, some), loss(x[:2], y[:2]))


@pytest.mark.parametrize("name", ["cross_entropy", "nll"])
def test_a_class_for_each_pixel(name: str) -> None:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(2, C, 3, 5, generator=draw, dtype=torch.float64).log_softmax(1)
    y = torch.randint(C, (2, 3, 5), generator=draw)
    loss = dlblocks.loss(name)
    assert torch.allclose(loss(x, y), loss(x.movedim(1, -1).reshape(-1, C), y.flatten()))


def test_hinge_takes_zero_for_minus_one() -> None:
    x, y = example("hinge")
    assert torch.equal(dlblocks.loss("hinge")(x, y), dlblocks.loss("hinge")(x, 2 * y - 1))


@given(smoothing=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_binary_and_categorical_cross_entropy_agree_on_two_classes(smoothing: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(9, generator=draw, dtype=torch.float64)
    y = torch.randint(2, (9,), generator=draw)
    binary = dlblocks.loss("bce", label_smoothing=smoothing)(x, y.double())
    categorical = dlblocks.loss("cross_entropy", label_smoothing=smoothing)(
        torch.stack([torch.zeros_like(x), x], 1), y
    )
    assert torch.allclose(binary, categorical)


@given(delta=st.floats(0.01, 100), seed=st.integers(0, 2**31))
def test_huber_is_smooth_l1_times_delta(delta: float, seed: int) -> None:
    x, y = torch.randn(2, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * delta
    huber, smooth = dlblocks.loss("huber", delta=delta), dlblocks.loss("smooth_l1", beta=delta)
    assert torch.allclose(huber(x, y), delta * smooth(x, y))


@given(seed=st.integers(0, 2**31), classes=st.integers(1, 6))
def test_divergence_is_cross_entropy_less_entropy_and_never_negative(seed: int, classes: int) -> None:
    x, y = torch.randn(2, 5, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    p = y.softmax(-1)
    divergence = dlblocks.loss("kl_div")(x.log_softmax(-1), p)
    entropy = -(p * p.log()).sum(-1).mean()
    assert torch.allclose(divergence, dlblocks.loss("cross_entropy")(x, p) - entropy)
    assert divergence > -1e-12


def test_divergence_from_a_one_hot_target_is_the_negative_log_likelihood() -> None:
    x, y = example("nll")
    assert torch.allclose(dlblocks.loss("kl_div")(x, F.one_hot(y, C)), dlblocks.loss("nll")(x, y))


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("huber", {"delta": 0}),
        ("smooth_l1", {"beta": -1}),
        ("hinge", {"margin": 0}),
        ("bce", {"label_smoothing": 1.5}),
        ("bce", {"pos_weight": [-1]}),
        ("cross_entropy", {"weight": 2}),
        ("mse", {"reduction": "avg"}),
        ("mse", {"reduction": "batchmean"}),
    ],
)
def test_parameters_out_of_range_are_refused(name: str, params: dict[str, object]) -> None:
    with pytest.raises(UserError, match=f"loss.{next(iter(params))}="):
        dlblocks.loss(name, **params)
