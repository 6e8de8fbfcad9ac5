"""Two digits in one picture: what they are made of, balance, and no leak."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from sklearn.datasets import load_digits

from dlblocks.data.digit_pairs import digit_pairs, make
from dlblocks.data.split import split


@pytest.mark.parametrize("samples", [100, 1013])
def test_labels_are_the_sources_digits(samples: int) -> None:
    table, sources = make(samples, 4)
    digits = torch.tensor(load_digits().target)[sources]
    assert table.x.shape == (samples, 1, 12, 16)
    assert (digits[:, 0] != digits[:, 1]).all()
    expected = torch.zeros(samples, 10).scatter_(1, digits, 1.0)
    assert table.y.equal(expected)


def test_pictures_hold_their_sources() -> None:
    table, sources = make(100, 0)
    images = torch.tensor(load_digits().images, dtype=torch.float32)
    for picture, pair in zip(table.x, sources, strict=True):
        found = []
        for left in (True, False):
            image = images[pair[0 if left else 1]]
            columns = range(3) if left else range(6, 9)
            found.append(
                [
                    (r, c)
                    for r in range(5)
                    for c in columns
                    if (picture[0, r : r + 8, c : c + 8] >= image).all()
                ]
            )
        assert found[0]
        assert found[1]
        exact = False
        for r0, c0 in found[0]:
            for r1, c1 in found[1]:
                canvas = torch.zeros(12, 16)
                canvas[r0 : r0 + 8, c0 : c0 + 8] = images[pair[0]]
                second = torch.zeros(12, 16)
                second[r1 : r1 + 8, c1 : c1 + 8] = images[pair[1]]
                exact |= torch.maximum(canvas, second).equal(picture[0])
        assert exact


def test_balance() -> None:
    table = digit_pairs(900)
    assert table.y.sum(0).tolist() == [180] * 10
    for i, j in combinations(range(10), 2):
        assert int((table.y[:, i] * table.y[:, j]).sum()) == 20


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fractions", [(0.2, 0.2), (0.1, 0.3), (0.05, 0.05)])
def test_no_source_image_in_two_parts(seed: int, fractions: tuple[float, float]) -> None:
    table, sources = make(2000, seed)
    parts = split(table, seed, *fractions)
    train, val, test = (
        set(sources[rows].flatten().tolist()) for rows in (parts.train, parts.val, parts.test)
    )
    assert train
    assert val
    assert test
    assert not train & val
    assert not train & test
    assert not val & test
    assert (len(parts.val), len(parts.test)) == tuple(round(2000 * f) for f in fractions)
    counts = table.y[parts.val].sum(0)
    assert counts.max() == counts.min()


def test_made_from_its_seed_alone() -> None:
    first = digit_pairs(200, seed=1)
    torch.manual_seed(99)
    assert first.x.equal(digit_pairs(200, seed=1).x)
    assert not first.x.equal(digit_pairs(200, seed=2).x)
