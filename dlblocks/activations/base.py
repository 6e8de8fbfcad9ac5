"""What our own elementwise activations share: narrow formats are widened."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Elementwise(nn.Module, ABC):
    """An activation of each number by itself; a subclass writes its formula in `values`.

    float16 and bfloat16 are computed in float32 and rounded once, as in torch's own kernels: step by step
    their products overflow and their sums lose digits.

    Shape: `(*)` to `(*)`.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype in (torch.float16, torch.bfloat16):
            return self.values(x.float()).to(x.dtype)
        return self.values(x)

    @abstractmethod
    def values(self, x: Tensor) -> Tensor:
        """The formula, of float32 at least."""
