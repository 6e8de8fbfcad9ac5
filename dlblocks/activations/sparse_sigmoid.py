"""Sparse sigmoid."""

from __future__ import annotations

from torch import Tensor, nn


class SparseSigmoid(nn.Module):
    """A sigmoid that reaches 0 and 1: `(x + 1) / 2`, cut to [0, 1].

    Shape: `(*)` to `(*)`. Source: Blondel et al. 2019, arXiv:1901.02324.
    """

    def forward(self, x: Tensor) -> Tensor:
        return (x.clamp(-1, 1) + 1) / 2
