"""A weighted sum of losses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dlblocks
from dlblocks.errors import UserError
from dlblocks.losses.terms import contract
from dlblocks.recipe import check

X, Y = torch.tensor([[2.0, -1.0], [0.5, 3.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]])


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("weight", [None, torch.tensor([2.0, 0.5])])
def test_it_is_the_weighted_sum(reduction: str, weight: torch.Tensor | None) -> None:
    total = dlblocks.loss(
        "sum", terms={"mse": 1.0, "l1": 0.5, "huber": {"weight": 2, "delta": 0.3}}, reduction=reduction
    )
    parts = [
        factor * dlblocks.loss(name, reduction=reduction, **params)(X, Y, weight)
        for factor, name, params in ((1.0, "mse", {}), (0.5, "mae", {}), (2, "huber", {"delta": 0.3}))
    ]
    torch.testing.assert_close(total(X, Y, weight), sum(parts))


def test_the_mean_of_a_term_is_its_own() -> None:
    x, y = torch.randn(3, 4).log_softmax(-1), torch.randn(3, 4).softmax(-1)
    got = dlblocks.loss("sum", terms={"kl_div": 1})(x, y)
    torch.testing.assert_close(got, dlblocks.loss("kl_div")(x, y))


def test_values_of_two_shapes_make_no_sum() -> None:
    both = dlblocks.loss("sum", terms={"mse": 1, "cosine_similarity": 1}, reduction="none")
    with pytest.raises(
        ValueError, match=r"cosine_similarity gives values of shape \(2,\), those before \(2, 2\)"
    ):
        both(X, Y)
    assert dlblocks.loss("sum", terms={"mse": 1, "cosine_similarity": 1})(X, Y).shape == ()


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (None, r"loss\.terms=null: must be a mapping of losses to weights"),
        ({}, r"loss\.terms=\{\}: must be a mapping"),
        ({"mes": 1}, r"loss\.terms\.mes: unknown loss 'mes'. Did you mean 'mse'"),
        ({"mse": "much"}, r"loss\.terms\.mse=much: must be a number"),
        ({"mse": True}, r"loss\.terms\.mse=true: must be a number"),
        ({"mse": float("nan")}, r"loss\.terms\.mse=nan: must be a number"),
        ({"huber": {"delta": -1}}, r"loss\.terms\.huber\.delta=-1: must be a number in \(0, inf\)"),
        ({"huber": {"detla": 1}}, r"loss\.terms\.huber\.detla: .* Did you mean 'delta'"),
        ({"mae": 1, "l1": 2}, r"loss\.terms\.l1: is mae, which is a term already"),
        ({"sum": 1}, r"loss\.terms\.sum: a sum has no sums as terms"),
        ({"triplet": 1}, r"loss\.terms\.triplet: is called with anchor, positive, negative"),
        ({"mse": 1, "bce": 1}, r"loss\.terms\.bce: takes logits as input, mse takes values"),
        ({"cross_entropy": 1, "bce": 1}, r"loss\.terms\.bce: takes indicators as target"),
        ({"dice": 1, "cross_entropy": 1}, r"takes indices as target, dice takes masks"),
    ],
)
def test_one_message(terms: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        contract({"name": "sum", "terms": terms})
    with pytest.raises(UserError, match=message):
        check(dlblocks.compose() | {"loss": {"name": "sum", "terms": terms, "reduction": "mean"}})


def test_terms_that_do_not_agree_are_refused_in_python_too() -> None:
    with pytest.raises(UserError, match=r"loss\.terms\.bce: takes logits as input, mse takes values"):
        dlblocks.loss("sum", terms={"mse": 1, "bce": 1})


def test_what_it_expects_is_what_its_terms_share() -> None:
    tags = contract({"name": "sum", "terms": {"bce": 1, "multilabel_margin": 1}})
    assert tags["tasks"] == ("multilabel",)
    assert (tags["expects"], tags["target"]) == ("logits", "indicators")


def test_what_a_term_expects_may_hang_on_its_parameter() -> None:
    of_rate = {"weight": 1.0, "log_input": False}
    assert contract({"name": "sum", "terms": {"poisson_nll": of_rate}})["expects"] == "rate"
    assert contract({"name": "poisson_nll", "log_input": False})["expects"] == "rate"
    assert contract("poisson_nll")["expects"] == "log_rate"
    with pytest.raises(
        UserError, match=r"loss\.terms\.poisson_nll: takes rate as input, tweedie takes log_rate"
    ):
        contract({"name": "sum", "terms": {"tweedie": 1.0, "poisson_nll": of_rate}})


def test_from_the_command_line_to_the_module() -> None:
    recipe = dlblocks.compose("loss=sum", "loss.terms={mse:1.0,mae:0.1}", "data=diabetes")
    assert recipe["loss"] == {"name": "sum", "terms": {"mse": 1.0, "mae": 0.1}, "reduction": "mean"}
    module = dlblocks.LitModule(task="regression", input_shape=(3,), outputs=1, loss=recipe["loss"])
    assert module.hparams["loss"]["terms"] == {"mse": 1.0, "mae": 0.1}
    with pytest.raises(UserError, match=r"loss=sum: does not fit the task multiclass"):
        dlblocks.LitModule(task="multiclass", input_shape=(3,), outputs=3, loss=recipe["loss"])
