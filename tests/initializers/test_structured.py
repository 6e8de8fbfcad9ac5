"""Identities and sparse matrices."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import dlblocks
from dlblocks.errors import UserError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (5, 3)])
def test_the_identity_of_matrices_is_torchs_eye(shape: tuple[int, int]) -> None:
    assert torch.equal(dlblocks.initializer("eye")(torch.randn(shape)), nn.init.eye_(torch.empty(shape)))
    assert torch.equal(dlblocks.initializer("identity", gain=2.0)(torch.randn(shape)), 2 * torch.eye(*shape))


@pytest.mark.parametrize("shape", [(4, 4, 3), (6, 2, 3, 5), (2, 4, 3, 3, 3)])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_identity_of_kernels_is_torchs_dirac(shape: tuple[int, ...], groups: int) -> None:
    expected = nn.init.dirac_(torch.empty(shape), groups)
    assert torch.equal(dlblocks.initializer("dirac", groups=groups)(torch.randn(shape)), expected)


def test_an_identity_convolution_returns_its_input() -> None:
    for dims, kind in ((1, nn.Conv1d), (2, nn.Conv2d), (3, nn.Conv3d)):
        layer = dlblocks.initialize(kind(3, 3, 3, padding=1), "identity")
        x = torch.randn(2, 3, *[5] * dims)
        assert torch.equal(layer(x), x)


@pytest.mark.parametrize("groups", [2, 3, 6])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_each_group_of_a_convolution_is_a_matrix_of_its_own(groups: int, kind: type[nn.Conv2d]) -> None:
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    same = dlblocks.initialize(kind(6, 6, 3, padding=1, groups=groups).double(), "identity")
    assert torch.equal(same(x), x)
    delta = kind(6, 6, 3, padding=1, groups=groups).double()
    dlblocks.initialize(delta, "delta_orthogonal", generator=seeded())
    assert torch.allclose(delta(x).square().sum(1), x.square().sum(1))
    plain = kind(6, 6, 3, groups=groups).double()
    dlblocks.initialize(plain, "orthogonal", generator=seeded())
    for block in plain.weight.detach().chunk(groups):
        rows = block.flatten(1)
        assert torch.allclose(rows @ rows.T, torch.eye(len(rows), dtype=torch.float64))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_delta_orthogonal_convolution_keeps_lengths(dims: int) -> None:
    layer = getattr(nn, f"Conv{dims}d")(3, 7, 3, padding=1).double()
    dlblocks.initialize(layer, "delta_orthogonal", generator=seeded())
    x = torch.randn(2, 3, *[5] * dims, dtype=torch.float64)
    assert torch.allclose(layer(x).norm(), x.norm())


def test_delta_orthogonal_matrices_are_orthogonal_ones() -> None:
    delta, plain = (
        dlblocks.initializer(n)(torch.empty(5, 8), generator=seeded())
        for n in ("delta_orthogonal", "orthogonal")
    )
    assert torch.equal(delta, plain)


@pytest.mark.parametrize("shape", [(50, 40), (50, 4, 3, 3)])
@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.9, 1.0])
def test_each_output_has_its_share_of_zeros(shape: tuple[int, ...], sparsity: float) -> None:
    filled = dlblocks.initializer("sparse", sparsity=sparsity, std=2.0)(
        torch.empty(shape), generator=seeded()
    )
    flat = filled.flatten(1)
    assert ((flat == 0).sum(1) == round(sparsity * 1000) * flat.shape[1] // 1000).all()
    others = flat[flat != 0]
    assert others.numel() == 0 or others.std() == pytest.approx(2.0, rel=0.2)
    assert sparsity in (0.0, 1.0) or len({tuple(row) for row in (flat == 0).tolist()}) > 1


@pytest.mark.parametrize(
    ("name", "params", "shape", "message"),
    [
        ("identity", {"groups": 3}, (4, 4), "groups=3 does not divide the 4 outputs"),
        ("delta_orthogonal", {}, (3, 5, 3), "5 inputs and 3 outputs can't keep lengths"),
        ("sparse", {}, (5,), "no fan_in and fan_out"),
    ],
)
def test_refusals(name: str, params: dict[str, int], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dlblocks.initializer(name, **params)(torch.empty(shape))
