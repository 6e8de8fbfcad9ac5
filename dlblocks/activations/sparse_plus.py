"""Sparse plus."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dlblocks.activations.base import Elementwise


class SparsePlus(Elementwise):
    """A ReLU rounded by a parabola: `0` for `x <= -1`, `(x + 1)^2 / 4` between, `x` for `x >= 1`.

    The integral of `SparseSigmoid`. Shape: `(*)` to `(*)`. Source: Blondel et al. 2019, arXiv:1901.02324.
    """

    def values(self, x: Tensor) -> Tensor:
        # hardtanh is clamp with a faster gradient.
        root = F.hardtanh(x).add_(1).mul_(0.5)
        return torch.addcmul((x - 1).relu_(), root, root)
