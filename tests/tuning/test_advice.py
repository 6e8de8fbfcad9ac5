"""What a batch size means for classes, gradient and learning rate, against simulation and formulas."""

from __future__ import annotations

from math import comb

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dlblocks.errors import UserError
from dlblocks.tuning.advice import class_deviation, noise_scale
from dlblocks.tuning.scaling import rescaled, rule_of


@pytest.mark.parametrize("counts", [[100] * 10, [357, 212], [300, 50, 10], [2] * 200, [5, 0, 400]])
@pytest.mark.parametrize("size", [1, 8, 32, 128])
def test_class_deviation_is_that_of_random_batches(counts: list[int], size: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    shares = torch.tensor(counts) / sum(counts)
    draw = torch.Generator().manual_seed(0)
    distances = []
    for _ in range(2000):
        batch = labels[torch.randperm(len(labels), generator=draw)[:size]]
        seen = torch.bincount(batch, minlength=len(counts)) / size
        distances.append(float((seen - shares).abs().sum() / 2))
    assert class_deviation(counts, size) == pytest.approx(sum(distances) / 2000, rel=0.03, abs=0.003)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=5).filter(sum), st.data())
def test_class_deviation_is_the_sum_over_all_batches(counts: list[int], data: st.DataObject) -> None:
    total = sum(counts)
    size = data.draw(st.integers(1, total))
    expected = sum(
        abs(n / size - count / total) * comb(count, n) * comb(total - count, size - n) / comb(total, size)
        for count in counts
        for n in range(size + 1)
    )
    assert class_deviation(counts, size) == pytest.approx(expected / 2, abs=1e-9)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6))
def test_the_whole_set_deviates_by_nothing(counts: list[int]) -> None:
    assert class_deviation(counts, sum(counts)) == 0
    assert class_deviation([sum(counts)], 1) == 0


def test_noise_scale_of_known_noise() -> None:
    """Gradients G + noise with covariance S / B: the scale is tr(S) / |G|^2."""
    draw = torch.Generator().manual_seed(0)
    size, batches, dimensions = 16, 4, 50
    mean = torch.full((dimensions,), 0.3)
    deviation = torch.linspace(1, 3, dimensions)
    expected = float((deviation**2).sum() / (mean**2).sum())
    small, large, repeats = 0.0, 0.0, 3000
    for _ in range(repeats):
        g = mean + deviation / size**0.5 * torch.randn(batches, dimensions, generator=draw)
        small += float((g**2).sum(1).mean()) / repeats
        large += float((g.mean(0) ** 2).sum()) / repeats
    assert noise_scale(small, large, size, batches) == pytest.approx(expected, rel=0.03)


def test_noise_scale_where_it_cannot_be_told() -> None:
    assert noise_scale(1.0, 1.0, 8, 1) is None
    assert noise_scale(1.0, 0.2, 8, 4) is None  # noise alone would leave 1/4
    assert noise_scale(1.0, 1.0, 8, 4) is None  # no noise at all


def test_rules_for_the_learning_rate() -> None:
    assert [rule_of(name) for name in ("sgd", "gd", "asgd")] == ["linear"] * 3
    assert [rule_of(name) for name in ("sgdw", "qhm", "aggmo", "schedule_free_sgd")] == ["linear"] * 4
    assert [rule_of(name) for name in ("adam", "adamw", "rmsprop", "adagrad")] == ["square root"] * 4
    assert rescaled(0.1, 256, 1024, "linear") == pytest.approx(0.4)
    assert rescaled(1e-3, 256, 1024, "square root") == pytest.approx(2e-3)
    for name in ("lbfgs", "lamb", "rprop", "cocob", "sgld"):
        with pytest.raises(UserError, match=rf"no rule is known .* {name} "):
            rule_of(name)
