"""The range test's curve and its suggestions, against curves whose answer is known."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlblocks.tuning.range_test import (
    Curve,
    diverged,
    mean_curve,
    minimum,
    smoothed,
    spaced,
    steepest,
    valley,
)

RATES = spaced(1e-6, 10, 141)


def curve_of(losses: list[float]) -> Curve:
    return Curve(tuple(RATES), tuple(losses), tuple(losses))


def falling_at(centre: float) -> Curve:
    """A loss that falls around a rate, the same on both sides of it in the logarithm, and then explodes."""
    return curve_of(
        [1 / (1 + (rate / centre) ** 3) + 1e-3 * math.exp(min(rate / centre / 60, 50)) for rate in RATES]
    )


def test_rates_are_equally_far_in_their_logarithm() -> None:
    rates = spaced(1e-5, 10, 61)
    assert rates[0] == pytest.approx(1e-5)
    assert rates[-1] == pytest.approx(10)
    ratios = [b / a for a, b in pairwise(rates)]
    assert ratios == pytest.approx([10**0.1] * 60)


@pytest.mark.parametrize("centre", [1e-4, 1e-3, 1e-2])
def test_steepest_is_the_derivative_in_the_logarithm(centre: float) -> None:
    """With respect to the rate itself, the fall would be steepest at a rate a fifth lower."""
    assert steepest(falling_at(centre)) == pytest.approx(centre, rel=0.13)


def test_minimum_is_a_tenth_of_the_lowest() -> None:
    losses = [abs(math.log10(rate) + 2) for rate in RATES]
    assert minimum(curve_of(losses)) == pytest.approx(1e-3, rel=1e-6)


def test_valley_is_the_middle_of_the_longest_fall() -> None:
    flat_fall_rise = [1.0] * 40 + [1 - 0.01 * i for i in range(60)] + [5.0] * 41
    # The fall begins with one of the flat ones and ends 60 steps later.
    assert valley(curve_of(flat_fall_rise)) in RATES[40 + 28 : 40 + 32]


def test_valley_crosses_bumps() -> None:
    with_bump = [1 - 0.005 * i + (0.3 if i == 70 else 0.0) for i in range(141)]
    assert valley(curve_of(with_bump)) == pytest.approx(RATES[70], rel=0.2)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=60))
def test_smoothing_keeps_constants_and_bounds(losses: list[float]) -> None:
    smooth = smoothed(losses)
    assert len(smooth) == len(losses)
    assert min(losses) - 1e-9 <= min(smooth) <= max(smooth) <= max(losses) + 1e-9
    assert smoothed([2.5] * len(losses)) == pytest.approx([2.5] * len(losses))


def test_smoothing_moves_nothing_along_the_rates() -> None:
    peak = [0.0] * 50 + [1.0] + [0.0] * 50
    smooth = smoothed(peak)
    assert smooth.index(max(smooth)) == 50
    assert smooth == pytest.approx(smooth[::-1])


def test_smoothing_is_its_formula() -> None:
    losses, beta = [3.0, 1.0, 2.0], 0.5
    forwards = [3.0, (0.5 * 3 + 1) / 1.5, (0.25 * 3 + 0.5 * 1 + 2) / 1.75]
    backwards = [(3 + 0.5 * 1 + 0.25 * 2) / 1.75, (1 + 0.5 * 2) / 1.5, 2.0]
    assert smoothed(losses, beta) == pytest.approx(
        [(a + b) / 2 for a, b in zip(forwards, backwards, strict=True)]
    )


@pytest.mark.parametrize(
    ("losses", "stop"),
    [
        ([1.0, 0.5, 3.9], False),
        ([1.0, 0.5, 4.1], True),
        ([1.0, 3.9], False),
        ([-1.0, -3.0, -2.0], False),
        ([-1.0, -3.0, 4.0], False),
        ([-1.0, -3.0, 5.1], True),
        ([1.0, math.nan], True),
        ([1.0, math.inf], True),
    ],
)
def test_divergence_is_four_times_the_first_loss_of_any_sign(losses: list[float], stop: bool) -> None:
    assert diverged(losses) is stop


def test_the_mean_of_curves_goes_as_far_as_all_of_them() -> None:
    curve = mean_curve([1.0, 2.0, 3.0], [[1.0, 2.0, 3.0], [3.0, 4.0, math.nan]])
    assert curve.rates == (1.0, 2.0)
    assert curve.losses == (2.0, 3.0)
