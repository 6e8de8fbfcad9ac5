"""A race of learning rates: all start from the same weights on the same batches, and the fastest show where to look."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

# Successive halving (Jamieson & Talwalkar 2016, arXiv:1502.07943) in which the neighbours of the best go on, and not the
# best ones. Chosen on records of half- and quarter-decade rates of 334 cases, which `scripts/benchmark.py finders` tells
# of for seeds 0 to 2: good are 172 of 180 rates of these, and 142 of 154 of seeds 3 to 5. The rates of three seeds lie
# within a factor of 4 wherever the run goes on after the race (65 groups), and in 25 of 40 groups where it does not: runs
# of 32 and 72 steps, on 36 and 89 validation instances. There one has to choose: no such factor holds a good rate of each
# seed in 8 of 40, and a rule that held to what is best for five other seeds would have 33 of 40 groups within a factor of
# 4, but 96 of 120 rates good in place of 114.

# All rates train so far; the one with the lowest loss, so many below it and so many above it go on: those that have
# hardly moved have lower losses than those that jumped, and yet are the worse ones.
FIRST, BELOW, ABOVE = 4, 3, 2
# So far train those: where the centre of the fast ones lies, all seeds agree.
SECOND = 12
# Of the way that the fastest has gone, a rate counts by what it has gone past this share.
SLOW = 0.3
# At last train the rates, and those halfway between two, that are no further from the aim than this part of a decade:
# two or three of them.
NEAR = 0.3
# A race to the run's end sees what the run comes to, and looks further: at so many of these, the nearest to the aim, if
# it has no more steps than this, and at so many of the rates themselves if it has.
FINE, SHORT, COARSE = 6, 40, 5
# After so many of its steps those are out that are behind the best by more than this share of the way it has gone.
THIRD, BEHIND = 16, 0.2
STEPS = 40
# Of the way that the loss has gone, so much lower a loss is worth a decade's distance from the aim.
PULL = 0.005


class Runner(Protocol):
    """A net in training at one rate."""

    def run_to(self, step: int) -> None:
        """Train on until so many steps are done."""

    def losses(self) -> list[float]:
        """The training loss before each step, up to the first one that is NaN."""

    def score(self) -> float:
        """The loss on what it has not trained on; NaN if it is not finite."""


@dataclass(frozen=True)
class Lap:
    """What came of one rate after some steps.

    Args:
        rate: the learning rate.
        steps: taken so far.
        loss: the loss by which it is judged; NaN if it is not finite.
        judged: whether that is the loss on what it has not trained on; else it is the mean of its last training losses.
    """

    rate: float
    steps: int
    loss: float
    judged: bool


def ladder(low: float, high: float) -> list[float]:
    """The rates 1, 3, 10, 30, ... times a power of ten, from `low` to `high`.

    >>> ladder(1e-3, 0.1)
    [0.001, 0.003, 0.01, 0.03, 0.1]
    """
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    rates = [float(f"{digit}e{power}") for power in powers for digit in (1, 3)]
    return [rate for rate in rates if low * (1 - 1e-9) <= rate <= high * (1 + 1e-9)]


def race(
    rates: Sequence[float],
    enter: Callable[[float], Runner],
    steps: int = STEPS,
    unseen: float = 0.0,
    passed: Callable[[int], None] = lambda _: None,
) -> list[Lap]:
    """Find by training losses where fast learning rates lie, and judge some around there.

    All rates train for 4 steps. The one with the lowest training loss, 3 below it and 2 above it go on to step 12.
    These point to the `aim`. Some of the rates, and of those halfway between two, then train to the end of the race,
    where they are judged on what they have not trained on: the two or three within 0.3 decades of the aim, or in a race
    to the run's end the 6 nearest to it, or if that has more than 40 steps the 5 nearest of the rates alone, without
    those that are far behind at step 16. All train on the same batches, so that training losses tell them apart.

    Where no rate has changed the loss by step 4, as in an optimizer's own warm-up, all go on to step 12. Where none
    that is judged at the end is better than the untrained net, as where the fast ones diverge later, the next lower
    rates train to the end too, until one is.

    Args:
        rates: in rising order.
        enter: makes the runner of a rate. Runners of those that are out are let go.
        steps: at the end.
        unseen: the share of the run's steps that come after the race, from 0 to 1.
        passed: told how many steps have just been taken.

    Returns:
        The laps in the order they were run, after two of no steps: the untrained net's with the lowest rate, judged
        and by its first training loss.
    """
    laps: list[Lap] = []
    runners: dict[float, Runner] = {}
    taken: dict[float, int] = {}

    def run(alive: Sequence[float], end: int, judged: bool) -> list[Lap]:
        here = []
        for rate in alive:
            # Each holds a net.
            runner = runners.pop(rate, None)
            if runner is None:
                runner, taken[rate] = enter(rate), 0
            if not laps:
                runner.run_to(0)
                laps.append(Lap(rate, 0, runner.score(), True))
            runner.run_to(end)
            passed(end - taken[rate])
            taken[rate] = end
            if judged:
                here.append(Lap(rate, end, runner.score(), True))
            else:
                losses = runner.losses()
                if len(laps) == 1:
                    laps.append(Lap(rate, 0, losses[0], False))
                here.append(Lap(rate, end, _recent(losses), False))
            if not math.isnan(here[-1].loss):
                runners[rate] = runner
        laps.extend(here)
        return here

    def go_on(alive: Sequence[float]) -> None:
        for rate in [rate for rate in runners if rate not in alive]:
            del runners[rate]

    first = run(rates, min(FIRST, steps), judged=False)
    alive = _finite(first) if _is_flat(first) else _near_the_best(first)
    go_on(alive)
    if steps > FIRST:
        run(alive, min(SECOND, steps), judged=False)
    if alive:
        last = _at_last(aim(laps, unseen), rates, steps, unseen)
        go_on(last)
        if not unseen and steps > THIRD:
            last = _not_behind(run(last, THIRD, judged=True), laps[0].loss)
            go_on(last)
        judged, untrained = run(last, steps, judged=True), laps[0].loss
        lower = [rate for rate in reversed(rates) if rate < min(last)] if math.isfinite(untrained) else []
        while lower and not any(lap.loss < untrained for lap in judged):
            judged = run([lower.pop(0)], steps, judged=True)
    return laps


def planned(count: int, steps: int, unseen: float = 0.0) -> int:
    """How many steps a race of so many rates takes, if some of its rates train the net.

    >>> planned(13, 40, unseen=0.9), planned(13, 32), planned(13, 72)
    (220, 292, 460)
    """
    first, second = min(FIRST, steps), min(SECOND, steps)
    last = 3 if unseen else FINE if steps <= SHORT else COARSE
    return count * first + min(count, BELOW + 1 + ABOVE) * (second - first) + last * steps


def aim(laps: Sequence[Lap], unseen: float) -> float:
    """Where a good rate should lie, by the training losses of those that went on, at step 12:

        log aim = sum_i w_i log rate_i / sum_i w_i + shift log 10
        w_i     = max(0, (start - loss_i) / (start - best) - 0.3)

    with `start` the untrained net's loss, `best` the lowest, and `shift` 1/2 - unseen, or 1/4 in a race to the run's
    end. The centre of the fast rates varies less than the fastest of them. A rate that is fast for a while is too high
    for a long run, and one for a few steps too low for a run of some dozens.

    Args:
        laps: of a race, of which the judged ones play no part.
        unseen: the share of the run's steps that come after the race, from 0 to 1.

    >>> laps = [Lap(0.01, 0, 2.0, False), Lap(0.01, 12, 1.0, False), Lap(0.1, 12, 1.0, False)]
    >>> round(aim(laps, unseen=0.5), 4), round(aim(laps, unseen=1.0), 4), round(aim(laps, unseen=0.0), 4)
    (0.0316, 0.01, 0.0562)
    """
    trained = [lap for lap in laps if lap.steps and not lap.judged and not math.isnan(lap.loss)]
    reached = max(lap.steps for lap in trained)
    last = [lap for lap in trained if lap.steps == reached]
    best = min(last, key=lambda lap: lap.loss)
    start = next(lap.loss for lap in laps if not lap.judged)
    way = start - best.loss
    weights = [max(0.0, (start - lap.loss) / way - SLOW) if way > 0 else float(lap == best) for lap in last]
    exponents = [weight * math.log10(lap.rate) for weight, lap in zip(weights, last, strict=True)]
    return float(10 ** (sum(exponents) / sum(weights) + (0.5 - unseen if unseen else 0.25)))


def leader(laps: Sequence[Lap]) -> Lap | None:
    """The lap with the lowest loss among those that went furthest; None if no loss is finite."""
    finite = [lap for lap in laps if lap.steps and not math.isnan(lap.loss)]
    return min(finite, key=lambda lap: (-lap.steps, not lap.judged, lap.loss)) if finite else None


def winner(laps: Sequence[Lap], unseen: float) -> Lap | None:
    """Of the laps that went furthest, the one with the lowest

        (loss - best) / (start - best) + 0.005 |log10(rate / aim)|

    where `best` is the lowest loss and `start` the untrained net's, so that rates that are as good do not win by
    chance. The lowest loss wins where the untrained net's is none to compare with.

    Args:
        laps: of a race.
        unseen: the share of the run's steps that come after the race, from 0 to 1.

    Returns:
        None if no loss is finite.
    """
    best = leader(laps)
    if best is None or not best.judged:
        return best
    way, centre = laps[0].loss - best.loss, aim(laps, unseen)
    if not way > 0:  # the untrained net's loss may be NaN
        return best

    def cost(lap: Lap) -> float:
        return (lap.loss - best.loss) / way + PULL * _decades(lap.rate, centre)

    last = (lap for lap in laps if lap.steps == best.steps and lap.judged and not math.isnan(lap.loss))
    return min(last, key=cost)


def _at_last(centre: float, rates: Sequence[float], steps: int, unseen: float) -> list[float]:
    def far(rate: float) -> float:
        return _decades(rate, centre)

    halfway = (float(f"{math.sqrt(one * other):.1e}") for one, other in itertools.pairwise(rates))
    nearest = sorted([*rates, *halfway], key=far)
    if unseen:
        return sorted([rate for rate in nearest if far(rate) <= NEAR] or nearest[:1])
    return sorted(nearest[:FINE] if steps <= SHORT else sorted(rates, key=far)[:COARSE])


def _decades(one: float, other: float) -> float:
    return abs(math.log10(one / other))


def _not_behind(here: Sequence[Lap], start: float) -> list[float]:
    """The rates that go on to the run's end; `start` is the untrained net's loss."""
    finite = [lap for lap in here if not math.isnan(lap.loss)]
    best = min((lap.loss for lap in finite), default=math.nan)
    # The untrained net's loss may be NaN: then all go on.
    return [lap.rate for lap in finite if not lap.loss - best > BEHIND * abs(start - best)]


def _recent(losses: Sequence[float]) -> float:
    """The mean of the last third: enough that one batch does not decide, and few that are long past."""
    last = losses[-math.ceil(len(losses) / 3) :]
    return sum(last) / len(last)


def _finite(here: Sequence[Lap]) -> list[float]:
    """The rates that have not diverged."""
    return [lap.rate for lap in here if not math.isnan(lap.loss)]


def _is_flat(here: Sequence[Lap]) -> bool:
    """Whether all rates that did not diverge have the same loss, up to rounding."""
    losses = [lap.loss for lap in here if not math.isnan(lap.loss)]
    return bool(losses) and max(losses) - min(losses) <= 1e-6 * abs(losses[0])


def _near_the_best(here: Sequence[Lap]) -> list[float]:
    """The rates that go on after a rung."""
    rates = [lap.rate for lap in here]
    finite = [lap for lap in here if not math.isnan(lap.loss)]
    if not finite:
        return []
    best = rates.index(min(finite, key=lambda lap: (lap.loss, lap.rate)).rate)
    near = rates[max(0, best - BELOW) : best + ABOVE + 1]
    return [lap.rate for lap in finite if lap.rate in near]
