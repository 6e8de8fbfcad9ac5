"""Quick GELU."""

from __future__ import annotations

from torch import Tensor, nn


class QuickGELU(nn.Module):
    """GELU approximated by a sigmoid: `x / (1 + exp(-1.702 x))` (Hendrycks & Gimpel 2016, arXiv:1606.08415).

    Shape: `(*)` to `(*)`.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x * (1.702 * x).sigmoid()
