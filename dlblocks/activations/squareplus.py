"""Squareplus."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Squareplus(nn.Module):
    """A smooth ReLU without exponentials: `(x + sqrt(x^2 + b)) / 2` (Barron 2021, arXiv:2112.11687).

    Shape: `(*)` to `(*)`.

    Args:
        b: roundness; 0 is ReLU, 4 has softplus's curvature at 0.

    >>> Squareplus()(torch.tensor([0.0]))
    tensor([1.])
    """

    def __init__(self, b: float = 4.0) -> None:
        super().__init__()
        self.b = b

    def forward(self, x: Tensor) -> Tensor:
        # Not sqrt(x^2 + b): the square overflows in half precision from 256 on.
        root = torch.hypot(x, x.new_tensor(self.b**0.5))
        # For x < 0 the sum would cancel; both forms are the same number.
        negative = self.b / (2 * (root + x.abs()))
        return torch.where(x < 0, negative, (x + root) / 2)

    def extra_repr(self) -> str:
        return f"b={self.b}"
