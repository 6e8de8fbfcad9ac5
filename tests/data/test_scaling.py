"""Scaling against scikit-learn's scalers, and what it does to constants and pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from dlblocks.data import scaling
from dlblocks.data.embedded import breast_cancer
from dlblocks.errors import UnknownNameError


@pytest.mark.parametrize(("name", "reference"), [("standard", StandardScaler()), ("minmax", MinMaxScaler())])
def test_tables_like_scikit_learn(name: str, reference: StandardScaler | MinMaxScaler) -> None:
    train, rest = breast_cancer().x.split([300, 269])
    scaler = scaling.fit(name, train)
    reference.fit(train.double().numpy())
    expected = reference.transform(rest.double().numpy())
    np.testing.assert_allclose(scaler.apply(rest).numpy(), expected, rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(scaler.invert(scaler.apply(rest)), rest, rtol=1e-5, atol=1e-3)


def test_none_changes_nothing() -> None:
    x = torch.randn(5, 3)
    assert scaling.fit("none", x).apply(x).equal(x)


@pytest.mark.parametrize("name", scaling.SCALINGS)
def test_constant_columns_are_only_shifted(name: str) -> None:
    x = torch.stack([torch.full((7,), 0.1), torch.arange(7.0)], 1)
    scaler = scaling.fit(name, x)
    assert scaler.scale[0] == 1
    assert scaler.apply(x).isfinite().all()


def test_pictures_by_channel() -> None:
    x = torch.randn(50, 2, 4, 6) * torch.tensor([3.0, 10.0])[:, None, None] + 5
    scaler = scaling.fit("standard", x)
    assert scaler.shift.shape == (2, 1, 1)
    scaled = scaler.apply(x)
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(scaled.std((0, 2, 3), correction=0), torch.ones(2))


def test_large_values_keep_their_digits() -> None:
    x = torch.tensor([[1e6], [1e6 + 1], [1e6 + 2]]).repeat(10_000, 1)
    scaler = scaling.fit("standard", x)
    assert float(scaler.scale) == pytest.approx((2 / 3) ** 0.5, rel=1e-6)


def test_unknown() -> None:
    with pytest.raises(
        UnknownNameError, match=r"data.scale: unknown scaling 'standart'. Did you mean 'standard'"
    ):
        scaling.fit("standart", torch.zeros(2, 2))
