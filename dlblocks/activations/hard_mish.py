"""Hard Mish."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from dlblocks.activations.base import Elementwise


class HardMish(Elementwise):
    """Mish made of straight pieces and one parabola: `x * min(max(x + 2, 0), 2) / 2`.

    Shape: `(*)` to `(*)`. Source: D. Misra's H-Mish, after Misra 2019, arXiv:1908.08681.
    """

    def values(self, x: Tensor) -> Tensor:
        # hardtanh is clamp with a faster gradient.
        return x * F.hardtanh(x / 2 + 1, 0.0, 1.0)
