"""What was measured of a part of a split goes on in other processes."""

from __future__ import annotations

import pytest
import torch

from dlblocks.meter import Meter
from dlblocks.tasks import resolve

BATCHES = [(5, 0), (3, 1), (4, 2), (1, 3)]


def meter(task: str, outputs: int, batches: list[tuple[int, int]]) -> Meter:
    made = Meter("train", resolve(task, "auto", outputs), torch.sigmoid)
    add(made, task, outputs, batches)
    return made


def add(made: Meter, task: str, outputs: int, batches: list[tuple[int, int]]) -> None:
    for size, number in batches:
        draw = torch.Generator().manual_seed(number)
        y = torch.randint(2, (size, outputs), generator=draw)
        output, loss = torch.randn(size, outputs, generator=draw), torch.rand((), generator=draw)
        if task == "binary":
            output = output[:, 0]
        if task in ("binary", "multiclass"):
            y = y[:, 0]
        made.add(number, loss, output, y.float() if task == "regression" else y, None)


@pytest.mark.parametrize(("updated", "at"), [(False, 3), (True, 3), (True, 4)])
@pytest.mark.parametrize(
    ("task", "outputs"), [("regression", 2), ("binary", 1), ("multiclass", 3), ("multilabel", 3)]
)
def test_what_two_processes_gathered_goes_on_in_one(task: str, outputs: int, updated: bool, at: int) -> None:
    whole = meter(task, outputs, BATCHES).compute()
    two = [meter(task, outputs, BATCHES[:1]), meter(task, outputs, BATCHES[1:at])]
    if updated:
        two[1].update()
    # Of an earlier fit, which is over.
    one = meter(task, outputs, BATCHES[2:3])
    one.load_state_dicts([made.state_dict() for made in two])
    add(one, task, outputs, BATCHES[at:])
    values = one.compute()
    assert values.keys() == whole.keys()
    for name, value in values.items():
        torch.testing.assert_close(value, whole[name])


def test_a_process_for_which_nothing_was_left_begins_anew() -> None:
    one = meter("regression", 1, BATCHES)
    one.load_state_dicts([])
    add(one, "regression", 1, BATCHES[:1])
    assert one.compute() == meter("regression", 1, BATCHES[:1]).compute()


def test_labels_that_are_none_are_not_counted_up_to() -> None:
    state = meter("multiclass", 3, BATCHES).state_dict()
    state["gathered"][2][1] = torch.tensor([10**9, 0, 0])
    with pytest.raises(ValueError, match="labels must be from 0 to 2"):
        meter("multiclass", 3, []).load_state_dicts([state])
