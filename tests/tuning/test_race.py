"""The race of learning rates, apart from nets."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlblocks.tuning.race import (
    ABOVE,
    BEHIND,
    BELOW,
    COARSE,
    FINE,
    FIRST,
    NEAR,
    PULL,
    SECOND,
    SHORT,
    STEPS,
    THIRD,
    Lap,
    aim,
    ladder,
    leader,
    planned,
    race,
    winner,
)

Loss = Callable[[float, int], float]

# The rates 1, 3, 10, ... and those halfway between two of them.
FINER = [float(f"{digit}e{power}") for power in range(-5, 1) for digit in (1, 1.7, 3, 5.5)] + [10.0]


class Known:
    """A runner whose loss is a function of its rate and steps."""

    def __init__(self, rate: float, loss: Loss, taken: list[int]) -> None:
        self.rate, self.loss, self.taken = rate, loss, taken
        self.steps = 0

    def run_to(self, step: int) -> None:
        self.taken.append(step - self.steps)
        self.steps = step

    def losses(self) -> list[float]:
        losses = [self.loss(self.rate, step) for step in range(self.steps)]
        first = next((i + 1 for i, loss in enumerate(losses) if math.isnan(loss)), len(losses))
        return losses[:first]

    def score(self) -> float:
        return self.loss(self.rate, self.steps)


def run(
    loss: Loss, rates: list[float], steps: int = STEPS, unseen: float = 0.5
) -> tuple[list[Lap], list[int]]:
    taken: list[int] = []
    told: list[int] = []
    laps = race(sorted(rates), lambda rate: Known(rate, loss, taken), steps, unseen, told.append)
    assert taken.pop(0) == 0
    assert told == taken
    assert [(lap.steps, lap.judged) for lap in laps[:2]] == [(0, True), (0, False)]
    return laps, taken


def bowl(best: float) -> Loss:
    """A loss that falls faster, the nearer the rate is to the best one in its logarithm."""
    return lambda rate, steps: 3 - min(steps, 20) / 10 * math.exp(-((math.log10(rate / best)) ** 2))


@given(exponent=st.floats(-3.5, -0.5), unseen=st.floats(0.3, 0.7))
def test_a_clear_optimum_is_found(exponent: float, unseen: float) -> None:
    # A shift of the optimum by the part of the run that is not seen is not in this loss.
    laps, _ = run(bowl(10**exponent), ladder(1e-5, 10), unseen=unseen)
    won = winner(laps, unseen)
    assert won is not None
    assert abs(math.log10(won.rate) - exponent) < 0.25


@given(exponent=st.floats(-3.5, -0.5), shift=st.floats(-0.05, 0.05), unseen=st.floats(0, 1))
def test_the_choice_moves_no_further_than_the_losses(exponent: float, shift: float, unseen: float) -> None:
    """The fastest of a ladder's rates jumps by a factor of three, where their centre moves a little."""
    one, other = (
        aim(run(bowl(10**place), ladder(1e-5, 10), unseen=unseen)[0], unseen)
        for place in (exponent, exponent + shift)
    )
    assert abs(math.log10(one / other)) < 0.2


def test_the_centre_of_the_fast_rates_is_its_formula() -> None:
    losses = {1e-3: 2.0, 1e-2: 1.5, 1e-1: 1.0, 1.0: 9.0, 10.0: math.nan}
    laps = [Lap(1e-5, 0, 5.0, True), Lap(1e-5, 0, 3.0, False), Lap(1e-4, 4, 0.1, False)]
    laps += [Lap(rate, 12, loss, False) for rate, loss in losses.items()]
    # Of the way from 3 to 1 they have gone 0.5, 0.75 and 1; past 0.3 of it, 0.2, 0.45 and 0.7.
    centre = (0.2 * -3 + 0.45 * -2 + 0.7 * -1) / (0.2 + 0.45 + 0.7)
    for unseen, shift in ((0.0, 0.25), (0.25, 0.25), (0.5, 0.0), (1.0, -0.5)):
        assert math.log10(aim(laps, unseen)) == pytest.approx(centre + shift)
        # What is judged plays no part.
        assert aim([*laps, Lap(0.5, 40, 0.0, True)], unseen) == aim(laps, unseen)


def test_the_least_bad_rate_is_the_centre_where_none_is_better_than_none() -> None:
    laps = [Lap(1e-5, 0, 1.0, False), Lap(1e-3, 12, 1.0, False), Lap(1e-2, 12, 2.0, False)]
    assert aim(laps, 0.5) == pytest.approx(1e-3)


def test_a_lower_range_changes_nothing() -> None:
    """Rates that do not move have no say."""
    whole, part = (run(bowl(0.01), ladder(low, 10))[0] for low in (1e-5, 1e-4))
    assert aim(whole, 0.5) == aim(part, 0.5)


@given(
    losses=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=5),
    start=st.floats(-1e3, 1e3) | st.just(math.nan),
    unseen=st.floats(0, 1),
)
def test_one_nearer_to_the_aim_wins_only_where_it_comes_near(
    losses: list[float], start: float, unseen: float
) -> None:
    ends = [Lap(0.1 * (i + 1), STEPS, loss, judged=True) for i, loss in enumerate(losses)]
    laps = [Lap(1e-5, 0, start, True), Lap(1e-5, 0, 1.0, False), Lap(0.1, SECOND, 0.5, False), *ends]
    won = winner(laps, unseen)
    assert won in ends
    lowest = leader(laps)
    assert lowest is not None
    assert lowest.loss == min(losses)
    centre, way = aim(laps, unseen), start - min(losses)

    def far(lap: Lap) -> float:
        return abs(math.log10(lap.rate / centre))

    if not way > 0:
        assert won == lowest
        return
    assert far(won) <= far(lowest) + 1e-12
    assert won.loss - lowest.loss <= PULL * way * (far(lowest) - far(won)) * (1 + 1e-9) + 1e-9


def test_of_equal_losses_the_one_at_the_aim_wins() -> None:
    # All fast rates come to the same in the end.
    laps, _ = run(lambda rate, steps: bowl(0.01)(rate, steps) if steps < STEPS else 1.0, ladder(1e-5, 10))
    won = winner(laps, 0.5)
    assert won is not None
    last = [lap.rate for lap in laps if lap.steps == STEPS]
    assert won.rate == min(last, key=lambda rate: abs(math.log10(rate / aim(laps, 0.5))))


def test_training_losses_point_and_judged_ones_decide() -> None:
    class Divided(Known):
        def score(self) -> float:
            assert self.steps in (0, STEPS)
            return -self.rate

    laps = race(ladder(1e-5, 10), lambda rate: Divided(rate, bowl(0.01), []), unseen=0.5)
    last = [lap.rate for lap in laps if lap.steps == STEPS]
    assert last == [rate for rate in FINER if abs(math.log10(rate / aim(laps, 0.5))) <= NEAR]
    won = winner(laps, 0.5)
    assert won is not None
    assert won.rate == last[-1]


def test_where_nothing_has_moved_yet_no_rate_is_left_out() -> None:
    """An optimizer that warms up by itself: until step 6 all rates are the same."""

    def late(rate: float, steps: int) -> float:
        return bowl(0.01)(rate, max(steps - 6, 0))

    laps, _ = run(late, ladder(1e-5, 10))
    assert {lap.rate for lap in laps if lap.steps == SECOND} == set(ladder(1e-5, 10))
    won = winner(laps, 0.5)
    assert won is not None
    assert 0.005 < won.rate < 0.02
    # But those that diverge at once.
    laps, _ = run(lambda rate, steps: math.nan if rate > 2 and steps else late(rate, steps), ladder(1e-5, 10))
    assert {lap.rate for lap in laps if lap.steps == SECOND} == set(ladder(1e-5, 1))


@pytest.mark.parametrize("unseen", [0.0, 0.5])
def test_where_the_fast_rates_diverge_later_a_lower_one_is_looked_for(unseen: float) -> None:
    def diverges(rate: float, steps: int) -> float:
        return 100.0 if steps > SECOND and rate > 0.02 else bowl(1.0)(rate, steps)

    laps, _ = run(diverges, ladder(1e-5, 10), unseen=unseen)
    won = winner(laps, unseen)
    assert won is not None
    assert (won.rate, won.steps) == (0.01, STEPS)
    assert min(lap.rate for lap in laps if lap.steps == STEPS) == 0.01


@pytest.mark.parametrize("unseen", [0.0, 0.5])
def test_takes_as_many_steps_as_planned(unseen: float) -> None:
    for count in (1, 2, 5, 13, 30):
        for steps in (1, 2, 4, 5, 10, 12, 24, 25, 33, 40, 96):
            rates = [0.001 * 10 ** (i / 2) for i in range(count)]
            _, taken = run(bowl(0.01), rates, steps, unseen)
            assert sum(taken) <= planned(count, steps, unseen)
    laps, taken = run(bowl(0.01), ladder(1e-5, 10), 72, unseen)
    # Those that are on the way are not trained again from the start, and those far behind not to the end.
    last = [lap.rate for lap in laps if lap.steps == 72]
    entered = last if unseen else [lap.rate for lap in laps if lap.steps == THIRD]
    known = [lap.rate for lap in laps if lap.steps == SECOND and lap.rate in entered]
    fewer = 72 * (3 - len(last)) if unseen else (72 - THIRD) * (COARSE - len(last))
    assert sum(taken) == planned(13, 72, unseen) - SECOND * len(known) - fewer
    assert known


@pytest.mark.parametrize(
    ("steps", "unseen", "count"),
    [(STEPS, 0.5, 3), (SHORT, 0.0, FINE), (SHORT + 1, 0.0, COARSE), (79, 0.0, COARSE), (5, 0.0, FINE)],
)
def test_so_many_rates_train_in_each_part(steps: int, unseen: float, count: int) -> None:
    def even(rate: float, steps: int) -> float:
        # The fast ones come to the same in a dozen steps.
        return bowl(0.01)(rate, steps) if steps < SECOND else 1.0

    laps, _ = run(even, ladder(1e-5, 10), steps, unseen)
    counts = {
        (end, judged): sum((lap.steps, lap.judged) == (end, judged) for lap in laps[2:])
        for end, judged in {(lap.steps, lap.judged) for lap in laps[2:]}
    }
    second = (min(SECOND, steps), False)
    wanted = {(FIRST, False): 13, second: BELOW + 1 + ABOVE, (steps, True): count}
    if steps > THIRD and not unseen:
        wanted[THIRD, True] = count
    assert counts == wanted


@given(exponent=st.floats(-4, 0), start=st.floats(2.5, 4) | st.just(math.nan))
def test_those_far_behind_do_not_train_to_the_runs_end(exponent: float, start: float) -> None:
    def loss(rate: float, steps: int) -> float:
        return bowl(10**exponent)(rate, steps) if steps else start

    class Untrained(Known):
        def losses(self) -> list[float]:
            return [3.0, *super().losses()[1:]]

    laps = race(ladder(1e-5, 10), lambda rate: Untrained(rate, loss, []), 72)
    third = {lap.rate: lap.loss for lap in laps if lap.steps == THIRD}
    assert len(third) == COARSE
    best = min(third.values())
    near = [rate for rate, reached in third.items() if not reached - best > BEHIND * (start - best)]
    assert [lap.rate for lap in laps if lap.steps == 72] == near


@given(exponent=st.floats(-4.5, 0.5), unseen=st.floats(0.5, 1))
def test_of_a_longer_run_two_or_three_rates_around_the_aim_train_to_the_end(
    exponent: float, unseen: float
) -> None:
    laps, _ = run(bowl(10**exponent), ladder(1e-5, 10), unseen=unseen)
    last = [lap.rate for lap in laps if lap.steps == STEPS]
    centre = aim(laps, unseen)
    assert last == [rate for rate in FINER if abs(math.log10(rate / centre)) <= NEAR]
    assert len(last) in (2, 3)
    assert last[0] <= centre <= last[-1]


def test_a_race_below_its_lowest_rate_ends_there() -> None:
    laps, _ = run(lambda rate, steps: 3 - steps * 1e-3 / rate, [0.01, 0.03, 0.1], unseen=1.0)
    assert aim(laps, 1.0) < 0.01 * 10**-NEAR
    assert [lap.rate for lap in laps if lap.steps == STEPS] == [0.01]


@given(exponent=st.floats(-4, 0))
def test_a_race_to_the_runs_end_is_among_the_rates_nearest_to_the_aim(exponent: float) -> None:
    rates = ladder(1e-5, 10)
    for steps, among, count in ((SHORT, FINER, FINE), (72, rates, COARSE)):
        laps, _ = run(bowl(10**exponent), rates, steps, unseen=0.0)
        last = [lap.rate for lap in laps if lap.steps == THIRD]
        assert len(last) == count
        far = {rate: abs(math.log10(rate / aim(laps, 0.0))) for rate in among}
        assert max(far[rate] for rate in last) <= min(far[rate] for rate in among if rate not in last)


def test_after_the_first_rung_the_neighbours_of_the_best_go_on() -> None:
    # Rates above 0.1 jump at first; those far below it have hardly moved, and have lower losses.
    laps, _ = run(lambda rate, _: 2 - rate if rate < 0.2 else 3.0, ladder(1e-5, 10))
    assert [lap.rate for lap in laps if lap.steps == SECOND] == [0.003, 0.01, 0.03, 0.1, 0.3, 1.0]


def test_what_is_not_finite_is_out() -> None:
    def late(rate: float, steps: int) -> float:
        return math.nan if rate > 0.01 or steps > 30 else 3 - steps * rate

    laps, _ = run(late, ladder(1e-4, 1))
    won = winner(laps, 0.5)
    assert won is not None
    # None comes to the end, and of those that came furthest the best is taken.
    assert (won.rate, won.steps, won.judged) == (0.01, SECOND, False)
    assert winner(run(lambda *_: math.nan, [0.1, 1.0])[0], 0.5) is None
    one, _ = run(
        lambda rate, steps: math.nan if steps > 30 and rate > 0.01 else bowl(0.01)(rate, steps),
        ladder(1e-4, 1),
    )
    kept = winner(one, 0.5)
    assert kept is not None
    assert kept.rate <= 0.01
    assert kept.steps == STEPS


def test_runners_that_are_out_are_let_go() -> None:
    """Each holds a net."""
    alive: weakref.WeakSet[Known] = weakref.WeakSet()
    most: list[int] = []

    def enter(rate: float) -> Known:
        most.append(len(alive))
        runner = Known(rate, bowl(0.01), [])
        alive.add(runner)
        return runner

    race(ladder(1e-5, 10), enter, steps=72)
    # Of the last ones, some are on the way.
    assert most[:13] == [*range(13)]
    assert most[13:]
    assert max(most[13:]) < COARSE
    assert not alive


def test_ladder() -> None:
    assert ladder(1e-5, 10) == [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]
    assert ladder(0.002, 0.2) == [0.003, 0.01, 0.03, 0.1]
    assert ladder(0.4, 0.9) == []


@pytest.mark.parametrize("steps", [1, 2])
def test_a_race_shorter_than_the_first_rung(steps: int) -> None:
    laps, _ = run(lambda rate, taken: 3 - taken * rate, [0.1, 0.2, 0.3], steps, unseen=0.0)
    won = winner(laps, 0.0)
    assert won is not None
    assert (won.rate, won.steps, won.judged) == (0.3, steps, True)
