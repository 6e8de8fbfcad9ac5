"""The race of learning rates, apart from nets."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlblocks.tuning.race import (
    ABOVE,
    BELOW,
    KEPT,
    RUNGS,
    STEPS,
    TOLERANCE,
    Lap,
    ladder,
    leader,
    planned,
    race,
    winner,
)


class Known:
    """A runner whose loss is a function of its rate and steps."""

    def __init__(self, rate: float, loss: Callable[[float, int], float], taken: list[int]) -> None:
        self.rate, self.loss, self.taken = rate, loss, taken
        self.steps = 0

    def run_to(self, step: int) -> None:
        self.taken.append(step - self.steps)
        self.steps = step

    def training_loss(self) -> float:
        return self.loss(self.rate, self.steps)

    def score(self) -> float:
        return self.loss(self.rate, self.steps)


def run(
    loss: Callable[[float, int], float], rates: list[float], steps: int = STEPS
) -> tuple[list[Lap], list[int]]:
    taken: list[int] = []
    told: list[int] = []
    laps = race(sorted(rates), lambda rate: Known(rate, loss, taken), steps, told.append)
    assert taken.pop(0) == 0
    assert told == taken
    assert laps.pop(0).steps == 0
    return laps, taken


@given(
    best=st.floats(-5, 1),
    rates=st.lists(st.floats(1e-5, 10), min_size=1, max_size=20, unique=True),
    steps=st.integers(1, 200),
)
def test_the_lowest_loss_wins_where_it_is_lowest_all_along(
    best: float, rates: list[float], steps: int
) -> None:
    laps, _ = run(lambda rate, _: abs(math.log10(rate) - best), rates, steps)
    last = winner(laps, unseen=0.0)
    assert last is not None
    assert last == leader(laps)
    assert last.loss == min(abs(math.log10(rate) - best) for rate in rates)
    assert last.steps == steps


def test_a_slow_start_is_forgiven_as_far_as_the_rungs_reach() -> None:
    # The lower the rate, the later it is best: at the end 0.01 is, at first 0.1.
    def loss(rate: float, steps: int) -> float:
        return abs(math.log10(rate) + 1 + steps / STEPS)

    laps, _ = run(loss, ladder(1e-5, 10))
    last = leader(laps)
    assert last is not None
    assert last.rate == 0.01


@given(
    losses=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=3),
    start=st.floats(-1e3, 1e3) | st.just(math.nan),
    unseen=st.floats(0, 1),
)
def test_a_lower_rate_wins_only_where_it_comes_near(losses: list[float], start: float, unseen: float) -> None:
    ends = [Lap(0.1 * (i + 1), STEPS, loss, judged=True) for i, loss in enumerate(losses)]
    won = winner([Lap(1e-5, 0, start, judged=True), *ends], unseen)
    assert won in ends
    allowed = 0.0 if math.isnan(start) else TOLERANCE * unseen * max(0.0, start - min(losses))
    assert won.loss <= min(losses) + allowed
    assert all(lap.loss > min(losses) + allowed for lap in ends if lap.rate < won.rate)


def test_training_losses_decide_who_goes_on_and_judged_ones_at_the_end() -> None:
    class Divided(Known):
        def score(self) -> float:
            assert self.steps in (0, STEPS)
            return -self.rate

    laps = race(ladder(1e-5, 10), lambda rate: Divided(rate, lambda rate, _: rate, []))
    judged = {lap.rate: lap.loss for lap in laps if lap.steps == STEPS}
    assert judged == {1e-5: -1e-5, 3e-5: -3e-5, 1e-4: -1e-4}
    last = leader(laps)
    assert last is not None
    assert last.rate == 1e-4


def test_takes_as_many_steps_as_planned() -> None:
    for count in (1, 2, 5, 13, 30):
        for steps in (1, 2, 5, 10, 33, 40, 96):
            rates = [0.01 * (i + 1) for i in range(count)]
            middle = rates[count // 2]
            _, taken = run(lambda rate, _, middle=middle: abs(rate - middle), rates, steps)  # type: ignore[misc]
            assert sum(taken) == planned(count, steps)
            _, taken = run(lambda rate, _: rate, rates, steps)
            assert sum(taken) <= planned(count, steps)


def test_each_rung_keeps_its_number() -> None:
    laps, _ = run(lambda rate, _: abs(math.log10(rate) + 2), ladder(1e-5, 10))
    counts = [sum(lap.steps == end for lap in laps) for end in (*RUNGS, STEPS)]
    assert counts == [13, BELOW + 1 + ABOVE, *KEPT]


def test_after_the_first_rung_the_neighbours_of_the_best_go_on() -> None:
    # Rates above 0.1 jump at first; those far below it have hardly moved, and have lower losses.
    laps, _ = run(lambda rate, _: 2 - rate if rate < 0.2 else 3.0, ladder(1e-5, 10))
    assert [lap.rate for lap in laps if lap.steps == RUNGS[1]] == [0.003, 0.01, 0.03, 0.1, 0.3, 1.0]


def test_what_is_not_finite_is_out() -> None:
    laps, _ = run(lambda rate, steps: math.nan if rate > 0.01 or steps > 30 else -rate, ladder(1e-4, 1))
    last = winner(laps, unseen=0.0)
    assert last == Lap(0.01, 24, -0.01, judged=False)
    assert winner(run(lambda *_: math.nan, [0.1, 1.0])[0], unseen=0.0) is None


def test_runners_that_are_out_are_let_go() -> None:
    """Each holds a net."""
    import weakref

    alive: weakref.WeakSet[Known] = weakref.WeakSet()
    most = 0

    def enter(rate: float) -> Known:
        nonlocal most
        most = max(most, len(alive))
        runner = Known(rate, lambda rate, _: -rate, [])
        alive.add(runner)
        return runner

    race(ladder(1e-5, 10), enter)
    assert most <= 13
    assert not alive


def test_ladder() -> None:
    assert ladder(1e-5, 10) == [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]
    assert ladder(0.002, 0.2) == [0.003, 0.01, 0.03, 0.1]
    assert ladder(0.4, 0.9) == []


@pytest.mark.parametrize("steps", [1, 2])
def test_a_race_shorter_than_the_first_rung(steps: int) -> None:
    laps, taken = run(lambda rate, _: rate, [0.1, 0.2, 0.3], steps)
    assert taken == [steps] * 3
    assert winner(laps, unseen=1.0) == Lap(0.1, steps, 0.1, judged=True)
