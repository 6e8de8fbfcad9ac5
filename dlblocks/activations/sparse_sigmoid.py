"""Sparse sigmoid."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from dlblocks.activations.base import Elementwise


class SparseSigmoid(Elementwise):
    """A sigmoid that reaches 0 and 1: `(x + 1) / 2`, cut to [0, 1].

    Shape: `(*)` to `(*)`. Source: Blondel et al. 2019, arXiv:1901.02324.
    """

    def values(self, x: Tensor) -> Tensor:
        # hardtanh is clamp with a faster gradient.
        return F.hardtanh(x).add_(1).mul_(0.5)
