"""What several processes can't share is refused; what they share is cheap for one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import dlblocks
from dlblocks.errors import UserError
from dlblocks.shares import check_shared, counted, weighs_classes


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "soft_f1"}, "loss=soft_f1: is of all instances of a batch at once"),
        ({"name": "sum", "terms": {"bce": 1.0, "soft_f1": 0.5}}, "loss=soft_f1"),
        (
            {"name": "sum", "terms": {"cross_entropy": {"weight": 1.0, "ignore_index": 1}, "focal": 1.0}},
            "a term with class weights or an ignored class",
        ),
    ],
)
def test_losses_that_shares_do_not_give_are_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_shared(dlblocks.loss(spec), spec)


def test_other_losses_are_not() -> None:
    for spec in ({"name": "mse"}, {"name": "sum", "terms": {"mse": 1.0, "mae": 0.5}}):
        check_shared(dlblocks.loss(spec), spec)
    check_shared(torch.nn.MSELoss(), torch.nn.MSELoss())


def test_what_a_loss_is_a_mean_over() -> None:
    logits, classes = torch.zeros(4, 3), torch.tensor([0, 1, 2, 2])
    weighted = dlblocks.loss("cross_entropy", weight=[1, 2, 3])
    assert weighs_classes(weighted)
    assert not weighs_classes(dlblocks.loss("cross_entropy"))
    assert counted(weighted, logits, classes) == 1 + 2 + 3 + 3
    assert counted(dlblocks.loss("cross_entropy", ignore_index=2), logits, classes) == 2
    assert counted(dlblocks.loss("mse"), torch.zeros(4, 3), torch.zeros(4, 3)) == 4
    assert counted(dlblocks.loss("mse", reduction="sum"), torch.zeros(4, 3), torch.zeros(4, 3)) is None
