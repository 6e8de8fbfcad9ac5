"""Sparse plus."""

from __future__ import annotations

from torch import Tensor, nn


class SparsePlus(nn.Module):
    """A ReLU rounded by a parabola: `0` for `x <= -1`, `(x + 1)^2 / 4` between, `x` for `x >= 1`.

    The integral of `SparseSigmoid`. Shape: `(*)` to `(*)`. Source: Blondel et al. 2019, arXiv:1901.02324.
    """

    def forward(self, x: Tensor) -> Tensor:
        inside = x.clamp(-1, 1)
        return (inside + 1).square() / 4 + (x - 1).clamp_min(0)
