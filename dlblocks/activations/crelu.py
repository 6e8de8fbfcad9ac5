"""Concatenated ReLU."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CReLU(nn.Module):
    """Both sides of the features: `[max(x, 0), max(-x, 0)]` (Shang et al. 2016, arXiv:1603.05201).

    Shape: `(*, features)` to `(*, 2 * features)`, along `dim`.
    """

    width_ratio = 0.5

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.relu(), (-x).relu()], self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"
