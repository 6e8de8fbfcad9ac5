"""Squared ReLU."""

from __future__ import annotations

from torch import Tensor, nn


class SquaredReLU(nn.Module):
    """`max(x, 0)^2` (So et al. 2021, arXiv:2109.08668). Shape: `(*)` to `(*)`."""

    def forward(self, x: Tensor) -> Tensor:
        positive = x.relu()
        return positive * positive
