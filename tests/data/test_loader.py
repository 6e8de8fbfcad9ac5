"""The loader's contract: each instance once, an order of its own, an exact place to resume from."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlblocks.data.loader import TensorLoader
from dlblocks.errors import UserError


def loader_of(total: int, batch_size: int, **about: Any) -> TensorLoader:
    rows = torch.arange(total)
    return TensorLoader(rows[:, None].float(), rows, batch_size, **about)


def epoch_of(loader: TensorLoader) -> list[list[int]]:
    batches = []
    for x, y in loader:
        assert x[:, 0].equal(y.float())
        batches.append(y.tolist())
    return batches


@st.composite
def settings_of(draw: st.DrawFn) -> tuple[int, int, int, bool, int]:
    total = draw(st.integers(1, 60))
    batch_size = draw(st.integers(1, total))
    world_size = draw(st.integers(1, min(batch_size, 5)))
    return total, batch_size, world_size, draw(st.booleans()), draw(st.integers(0, 2**40))


@given(settings_of())
@settings(deadline=None)
def test_each_instance_once_in_the_same_order_for_any_number_of_ranks(
    case: tuple[int, int, int, bool, int],
) -> None:
    total, batch_size, world_size, shuffle, seed = case
    alone = epoch_of(loader_of(total, batch_size, shuffle=shuffle, seed=seed))
    loaders = [
        loader_of(total, batch_size, shuffle=shuffle, seed=seed, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    shares = [epoch_of(loader) for loader in loaders]
    assert {len(share) for share in shares} == {len(loaders[0])}
    together = []
    for parts in zip(*shares, strict=True):
        sizes = [len(part) for part in parts]
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 1
        together.append([row for part in parts for row in part])
    rows = [row for batch in together for row in batch]
    assert sorted(rows) == list(range(total))
    assert rows == [row for batch in alone for row in batch]
    if not 0 < total % batch_size < world_size:
        assert together == alone
    else:  # the small last batch is joined to the one before
        assert together[:-1] == alone[:-2]


@given(settings_of(), st.data())
@settings(deadline=None)
def test_resumed_anywhere_goes_on_as_if_undisturbed(
    case: tuple[int, int, int, bool, int], data: st.DataObject
) -> None:
    total, batch_size, world_size, shuffle, seed = case
    drop_last = data.draw(st.booleans())

    def fresh() -> TensorLoader:
        return loader_of(
            total, batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last, rank=0, world_size=world_size
        )

    undisturbed = fresh()
    expected = [batch for _ in range(4) for batch in epoch_of(undisturbed)]
    stop = data.draw(st.integers(0, 2 * len(undisturbed)))
    stopped, served = fresh(), 0
    while served < stop:
        for _ in stopped:
            served += 1
            if served == stop:
                break
    state = stopped.state_dict()
    assert all(type(value) is int for value in state.values())
    resumed = fresh()
    resumed.load_state_dict(state)
    assert len(resumed) == len(undisturbed)
    iter(resumed)  # an iterator that is never used, as Lightning makes
    assert [batch for _ in range(2) for batch in epoch_of(resumed)] == expected[
        stop : (stop // len(undisturbed) + 2) * len(undisturbed)
    ]


def test_epochs_differ_and_repeat_with_the_seed() -> None:
    loader = loader_of(100, 10, shuffle=True, seed=1)
    first, second = epoch_of(loader), epoch_of(loader)
    assert first != second
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = loader_of(100, 10, shuffle=True, seed=1)
    assert [epoch_of(again), epoch_of(again)] == [first, second]
    assert torch.get_rng_state().equal(before)
    assert epoch_of(loader_of(100, 10, shuffle=True, seed=2)) != first


def test_an_epoch_cut_short_is_followed_by_the_next() -> None:
    whole = loader_of(20, 5, shuffle=True)
    epochs = [epoch_of(whole) for _ in range(2)]
    cut = loader_of(20, 5, shuffle=True)
    next(iter(cut))
    assert epoch_of(cut) == epochs[1]


def test_set_epoch_only_goes_forward() -> None:
    loader = loader_of(20, 5, shuffle=True)
    epochs = [epoch_of(loader) for _ in range(4)]
    other = loader_of(20, 5, shuffle=True)
    other.load_state_dict({**other.state_dict(), "epoch": 1, "batch": 2})
    other.batch_sampler.sampler.set_epoch(1)
    assert epoch_of(other) == epochs[1][2:]
    other.set_epoch(3)
    other.set_epoch(0)
    assert epoch_of(other) == epochs[3]


def test_drop_last() -> None:
    assert len(loader_of(23, 5, drop_last=True)) == 4
    assert [len(batch) for batch in epoch_of(loader_of(23, 5, drop_last=True))] == [5, 5, 5, 5]
    assert len(epoch_of(loader_of(20, 5, drop_last=True))) == 4


@pytest.mark.parametrize("shuffle", [False, True])
def test_work_in_place_leaves_the_data(shuffle: bool) -> None:
    loader = loader_of(10, 10, shuffle=shuffle)
    for x, y in loader:
        x.zero_()
        y.zero_()
    assert loader.x.sum() == loader.y.sum() == 45


@pytest.mark.parametrize("batch_size", [0, -1, 11, 2.0, True, None])
def test_batch_size_refused(batch_size: Any) -> None:
    with pytest.raises(
        UserError, match=rf"data.batch_size={batch_size}: must be a whole number from 1 to 10"
    ):
        loader_of(10, batch_size)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"rank": 0, "world_size": 3}, r"data.batch_size=2: 3 processes share each batch"),
        ({"rank": 0}, r"rank and world_size both or neither, not 0 and None"),
        ({"rank": 2, "world_size": 2}, r"rank=2 must be from 0 to 1"),
    ],
)
def test_ranks_refused(about: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        loader_of(10, 2, **about)


def test_lengths_must_agree() -> None:
    with pytest.raises(UserError, match="x has 3 instances, y has 2"):
        TensorLoader(torch.zeros(3, 1), torch.zeros(2), 1)


@pytest.mark.parametrize(
    ("total", "about", "key"),
    [
        (20, {"batch_size": 4}, "batch_size"),
        (21, {"batch_size": 5}, "instances"),
        (20, {"batch_size": 5, "seed": 1}, "seed"),
    ],
)
def test_place_in_other_data_refused(total: int, about: dict[str, int], key: str) -> None:
    saved = loader_of(20, 5)
    next(iter(saved))
    with pytest.raises(UserError, match=rf"data.{key}=.* saved in the middle of an epoch with {key}="):
        loader_of(total, **about).load_state_dict(saved.state_dict())
    start = loader_of(20, 5)
    loader_of(total, **about).load_state_dict(start.state_dict())


RANK = """
import sys, torch
from torch import distributed
from dlblocks.data.loader import TensorLoader

rows = torch.arange(33)
loader = TensorLoader(rows[:, None].float(), rows, 8, shuffle=True, seed=3)
alone = [y for _ in range(2) for _, y in loader]
distributed.init_process_group(
    "gloo", init_method=sys.argv[1], rank=int(sys.argv[2]), world_size=2
)
loader = TensorLoader(rows[:, None].float(), rows, 8, shuffle=True, seed=3)
assert len(loader) == 4, len(loader)
for _ in range(2):
    for step, (x, y) in enumerate(loader):
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(2)]
        distributed.all_gather(counts, torch.tensor([len(y)]))
        parts = [torch.zeros(int(count), dtype=torch.int64) for count in counts]
        for rank, part in enumerate(parts):
            if rank == distributed.get_rank():
                part.copy_(y)
            distributed.broadcast(part, rank)
        whole = alone[step] if step < 3 else torch.cat(alone[3:5])
        assert torch.cat(parts).equal(whole), (step, parts, whole)
    alone = alone[5:]
distributed.destroy_process_group()
"""


def test_two_processes(tmp_path: Any) -> None:
    where = (tmp_path / "meet").as_uri()
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, where, str(rank)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    messages = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], messages
