"""Hard Mish."""

from __future__ import annotations

from torch import Tensor, nn


class HardMish(nn.Module):
    """Mish made of straight pieces and one parabola: `x * min(max(x + 2, 0), 2) / 2`.

    Shape: `(*)` to `(*)`. Source: D. Misra's H-Mish, after Misra 2019, arXiv:1908.08681.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x * (x + 2).clamp(0, 2) / 2
