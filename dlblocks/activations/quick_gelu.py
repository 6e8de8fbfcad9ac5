"""Quick GELU."""

from __future__ import annotations

from torch import Tensor

from dlblocks.activations.base import Elementwise


class QuickGELU(Elementwise):
    """GELU approximated by a sigmoid: `x / (1 + exp(-1.702 x))` (Hendrycks & Gimpel 2016, arXiv:1606.08415).

    Shape: `(*)` to `(*)`.
    """

    def values(self, x: Tensor) -> Tensor:
        # Not silu(1.702 x) / 1.702, which overflows.
        return (1.702 * x).sigmoid_() * x
