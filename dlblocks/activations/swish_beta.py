"""Swish with a learnt slope."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dlblocks.activations.base import Elementwise


class SwishBeta(Elementwise):
    """`x * sigmoid(beta * x)` with a learnt `beta` (Ramachandran et al. 2017, arXiv:1710.05941).

    Shape: `(*)` to `(*)`.

    Args:
        beta: to start from; 1 is SiLU, large values approach ReLU.
    """

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor([beta]))

    def values(self, x: Tensor) -> Tensor:
        return (self.beta * x).sigmoid_() * x
