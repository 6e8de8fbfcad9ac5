"""Each loss of the registry against its closed formula."""

from __future__ import annotations

import inspect
import warnings

import numpy as np
import pytest
import torch
from loss_formulas import FORMULAS, NAMES, C, N, example
from torch import Tensor, nn
from torch.nn import functional as F

import dlblocks
from dlblocks.losses.base import Loss, reduced
from dlblocks.records import SAME
from dlblocks.registry import REGISTRY

Array = np.ndarray


def test_every_loss_has_its_formula_here() -> None:
    assert set(FORMULAS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_values_are_the_formulas_in_every_reduction(name: str) -> None:
    block = REGISTRY.get("loss", name)
    (reduction,) = [param for param in block.params if param.name == "reduction"]
    for params, formula in FORMULAS[name]:
        x, y = example(name, params)
        values = formula(x.numpy(), y.numpy())
        expected = {"none": values, "mean": values.mean(), "sum": values.sum(), "batchmean": values.sum() / N}
        for choice in reduction.choices:
            got = dlblocks.loss(name, **params, reduction=choice)(x, y)
            np.testing.assert_allclose(got.numpy(), expected[choice], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_the_values(name: str) -> None:
    x, y = example(name)
    loss = dlblocks.loss(name)
    assert torch.autograd.gradcheck(lambda x: loss(x, y), x.requires_grad_())


@pytest.mark.parametrize("name", NAMES)
def test_tags_are_legal(name: str) -> None:
    tags = REGISTRY.get("loss", name).tags
    tasks = {"regression", "binary", "binary_softmax", "multiclass", "multilabel", "segmentation"}
    expected = {"values", "logits", "log_probabilities", "probabilities", "log_rate", "mean_log_variance"}
    assert set(tags["tasks"]) <= tasks
    assert tags["expects"] in expected
    assert tags["tasks"]
    assert tags["target"] in {"values", "indices", "indicators", "distribution", "masks"}
    assert set(tags) <= {
        "tasks",
        "expects",
        "target",
        "target_range",
        "unscaled",
        "whole_batch",
        "expects_by",
    }
    assert REGISTRY.get("loss", name).formula
    assert REGISTRY.get("loss", name).shape


@pytest.mark.parametrize("name", NAMES)
def test_shapes_that_do_not_belong_together_are_refused(name: str) -> None:
    x, y = example(name)
    wrong = [y[:, None]] if y.ndim == 1 or x.ndim == 3 else [y[:, 0], y[:, :1]]
    for target in (*wrong, y[:3]):
        with pytest.raises(ValueError, match="target"):
            dlblocks.loss(name)(x, target)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    x, y = example(name)
    half = x.to(dtype)
    loss = dlblocks.loss(name)
    got = loss(half, y.float() if y.is_floating_point() else y)
    assert got.dtype == torch.float32
    assert torch.allclose(got, loss(half.float(), y.float() if y.is_floating_point() else y))
    with torch.autocast("cpu", torch.bfloat16):
        assert loss(x.float(), y.float() if y.is_floating_point() else y).dtype == torch.float32


# The exponential of 10,000 is no number; the squared error of a log-value is none either.
BOUNDED = [
    name
    for name in NAMES
    if REGISTRY.get("loss", name).tags["expects"] not in ("log_rate", "mean_log_variance")
]


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_extreme_inputs_stay_finite(name: str, dtype: torch.dtype) -> None:
    _, y = example(name)
    rows = torch.tensor([1e4, -1e4, 1e4, 0.0]).repeat(N, 1)
    x = (
        (rows[..., None].repeat(1, 1, 6) if y.ndim == 2 and y.shape[1] == 6 else rows)
        .to(dtype)
        .requires_grad_()
    )
    fed = x.log_softmax(-1) if REGISTRY.get("loss", name).tags["expects"] == "log_probabilities" else x
    loss = dlblocks.loss(name)(fed, y)
    loss.backward()
    assert loss.isfinite()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_the_fused_losses_keep_what_half_precision_loses() -> None:
    # exp(12) is no float16, and 1 + exp(-12) no bfloat16 other than 1.
    x, y = torch.tensor([12.0, -12.0]), torch.tensor([1.0, 0.0])
    expected = np.log1p(np.exp(-12.0))
    for dtype in (torch.float16, torch.bfloat16):
        # 1e-6: float32's rounding at 12. In half precision the small loss would be 0.
        assert dlblocks.loss("bce")(x.to(dtype), y).item() == pytest.approx(expected, abs=1e-6)
        assert dlblocks.loss("poisson_nll")(x[:1].to(dtype), y[:1]).item() == pytest.approx(np.exp(12) - 12)


def test_a_formula_of_ones_own_is_spared_autocast() -> None:
    class Mahalanobis(Loss):
        def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
            e = input - target
            return reduced((e @ e.T).diagonal(), reduction)

    x = torch.full((1, 2), 1 + 2**-10)
    with torch.autocast("cpu", torch.bfloat16):
        got = Mahalanobis()(x, torch.zeros_like(x))
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(2 * (1 + 2**-10) ** 2, rel=1e-7)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool, torch.float64, torch.float16])
def test_a_target_may_have_any_type_that_holds_it(name: str, dtype: torch.dtype) -> None:
    x, like = example(name)
    x = x.float().requires_grad_()
    indices = REGISTRY.get("loss", name).tags["target"] in ("indices", "masks")
    y = torch.arange(like.numel()).view(like.shape) % 2 if indices else F.one_hot(torch.arange(N) % C, C)
    loss = dlblocks.loss(name)
    if indices and dtype.is_floating_point:
        with pytest.raises(ValueError, match="whole numbers"):
            loss(x, y.to(dtype))
        return
    got = loss(x, y.to(dtype))
    got.backward()
    assert got.dtype == torch.float32
    assert torch.equal(got, loss(x, y if indices else y.float()))


@pytest.mark.parametrize("name", NAMES)
def test_stacked_runs_have_a_batching_rule(name: str) -> None:
    x, y = example(name)
    loss = dlblocks.loss(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = torch.vmap(torch.func.grad(loss), (0, None))(torch.stack([x, 2 * x]), y)
    for stacked, scale in zip(got, (1, 2), strict=True):
        assert torch.allclose(stacked, torch.func.grad(loss)(scale * x, y))


@pytest.mark.parametrize("name", NAMES)
def test_shapes_are_known_without_data(name: str) -> None:
    x, y = (tensor.to("meta") for tensor in example(name))
    assert dlblocks.loss(name)(x, y).shape == ()


@pytest.mark.parametrize("name", [name for name in NAMES if name != "soft_f1"])
def test_sample_weights_multiply_the_values_and_divide_the_mean(name: str) -> None:
    weight = torch.tensor([0.0, 1.0, 2.0, 0.5, 1.0, 0.0, 3.0], dtype=torch.float64)
    for params, _ in FORMULAS[name]:
        x, y = example(name, params)
        values = dlblocks.loss(name, **params, reduction="none")(x, y)
        spread = weight.view(-1, *[1] * (values.ndim - 1))
        expected = {
            "none": spread * values,
            "sum": (spread * values).sum(),
            "mean": (spread * values).sum() / spread.expand_as(values).sum(),
            "batchmean": (spread * values).sum() / weight.sum(),
        }
        for reduction in REGISTRY.get("loss", name).load().reductions:
            got = dlblocks.loss(name, **params, reduction=reduction)(x, y, weight)
            torch.testing.assert_close(got, expected[reduction])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_whole_weights_are_repetitions_and_ones_are_none(name: str, reduction: str) -> None:
    x, y = example(name)
    times = torch.tensor([1, 0, 2, 3, 1, 0, 1])
    loss = dlblocks.loss(name, reduction=reduction)
    torch.testing.assert_close(
        loss(x, y, times), loss(x.repeat_interleave(times, 0), y.repeat_interleave(times, 0))
    )
    torch.testing.assert_close(loss(x, y, torch.ones(N)), loss(x, y))
    with pytest.raises(
        ValueError, match=r"sample_weight \(3,\) must have one number for each of the 7 instances"
    ):
        loss(x, y, torch.ones(3))


@pytest.mark.parametrize("name", ["cross_entropy", "nll", "ldam"])
def test_sample_weights_and_class_weights_together(name: str) -> None:
    x, y = example(name)
    classes = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64)
    times = torch.tensor([1, 0, 2, 3, 1, 0, 1])
    loss = dlblocks.loss(name, weight=classes.tolist())
    torch.testing.assert_close(
        loss(x, y, times), loss(x.repeat_interleave(times, 0), y.repeat_interleave(times))
    )


@pytest.mark.parametrize("name", ["cross_entropy", "nll"])
def test_sample_weights_of_ignored_targets_do_not_count(name: str) -> None:
    x, y = example(name)
    some = y.clone()
    some[:3] = -100
    weight = torch.rand(N, dtype=torch.float64)
    loss = dlblocks.loss(name)
    torch.testing.assert_close(loss(x, some, weight), loss(x[3:], y[3:], weight[3:]))


@pytest.mark.parametrize("name", NAMES)
def test_declared_parameters_are_the_signatures(name: str) -> None:
    block = REGISTRY.get("loss", name)
    signature = inspect.signature(block.load()).parameters
    assert {param.name for param in block.params} == set(signature)
    assert {param.name: param.default for param in block.params} == {
        key: parameter.default for key, parameter in signature.items()
    }
    (reduction,) = [param for param in block.params if param.name == "reduction"]
    loss = block.load()()
    assert isinstance(loss, Loss)
    assert loss.reductions == reduction.choices


TORCH = {
    "mse": nn.MSELoss,
    "mae": nn.L1Loss,
    "huber": nn.HuberLoss,
    "smooth_l1": nn.SmoothL1Loss,
    "poisson_nll": nn.PoissonNLLLoss,
    "bce": nn.BCEWithLogitsLoss,
    "cross_entropy": nn.CrossEntropyLoss,
    "nll": nn.NLLLoss,
    "kl_div": nn.KLDivLoss,
}


@pytest.mark.parametrize("name", TORCH)
def test_origin_is_torchs_default_where_ours_differs(name: str) -> None:
    theirs = inspect.signature(TORCH[name]).parameters
    for param in REGISTRY.get("loss", name).params:
        if param.name in theirs:
            differs = theirs[param.name].default != param.default
            assert (param.origin is not SAME) == differs, param.name
            if differs:
                assert param.origin == theirs[param.name].default


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_reduction_is_refused_by_the_class_too(name: str) -> None:
    with pytest.raises(ValueError, match="reduction='avg': must be one of none, "):
        REGISTRY.get("loss", name).load()(reduction="avg")
