"""Exponential."""

from __future__ import annotations

from torch import Tensor, nn


class Exponential(nn.Module):
    """`exp(x)`: for outputs that are rates. Shape: `(*)` to `(*)`."""

    def forward(self, x: Tensor) -> Tensor:
        return x.exp()
