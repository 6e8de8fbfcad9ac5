"""Gated linear units with other gates than GLU's sigmoid."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn
from torch.nn import functional as F


class Gated(nn.Module, ABC):
    """`gate(a) * b` of the two halves `[a, b]` of the features (Shazeer 2020, arXiv:2002.05202).

    Shape: `(*, 2 * features)` to `(*, features)`, along `dim`.

    Raises:
        ValueError: the size along `dim` is odd.
    """

    width_ratio = 2

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    @abstractmethod
    def gate(self, a: Tensor) -> Tensor:
        """The activation of the gating half."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[self.dim] % 2:
            raise ValueError(
                f"{type(self).__name__} needs an even number of features, got {x.shape[self.dim]}"
            )
        a, b = x.chunk(2, self.dim)
        return self.gate(a) * b

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class SwiGLU(Gated):
    """`silu(a) * b`."""

    def gate(self, a: Tensor) -> Tensor:
        return F.silu(a)


class GEGLU(Gated):
    """`gelu(a) * b`."""

    def gate(self, a: Tensor) -> Tensor:
        return F.gelu(a)


class ReGLU(Gated):
    """`max(a, 0) * b`."""

    def gate(self, a: Tensor) -> Tensor:
        return a.relu()
