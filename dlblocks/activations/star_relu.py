"""StarReLU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dlblocks.activations.base import Elementwise


class StarReLU(Elementwise):
    """`s * max(x, 0)^2 + b` with learnt `s` and `b` (Yu et al. 2022, arXiv:2210.13452).

    Shape: `(*)` to `(*)`.

    Args:
        scale: `s` to start from. The paper's 0.8944 and bias -0.4472 keep mean 0 and variance 1 for
            standard normal input.
        bias: `b` to start from.
    """

    def __init__(self, scale: float = 0.8944271909999159, bias: float = -0.4472135954999579) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([scale]))
        self.bias = nn.Parameter(torch.tensor([bias]))

    def values(self, x: Tensor) -> Tensor:
        positive = x.relu()
        # The square alone may overflow where its product does not.
        return (self.scale * positive * positive).add_(self.bias)
