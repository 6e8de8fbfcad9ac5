"""Sparsemax."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Sparsemax(nn.Module):
    """The point of the probability simplex nearest to x: like softmax, but with exact zeros.

    `max(x_i - t, 0)`, with the `t` for which these sum to 1 (Martins & Astudillo 2016, arXiv:1602.02068).

    Shape: `(*, features)` to the same, along `dim`.

    >>> Sparsemax()(torch.tensor([1.0, 0.5, -1.0]))
    tensor([0.7500, 0.2500, 0.0000])
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        # Sums over many features lose digits in half precision.
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        values = wide.movedim(self.dim, -1)
        fixed = values.detach()
        highest = fixed.amax(-1, keepdim=True)
        ordered = (fixed - highest).sort(-1, descending=True).values
        count = torch.arange(1, values.shape[-1] + 1, device=x.device, dtype=values.dtype)
        excess = ordered.cumsum(-1) - 1
        size = (count * ordered > excess).sum(-1, keepdim=True)
        # The threshold again, from the support alone, so that no gradient goes through the sort.
        values = values - highest
        support = fixed - highest >= ordered.gather(-1, size - 1)
        inside = values.masked_fill(~support, 0)
        threshold = (inside.sum(-1, keepdim=True) - 1) / support.sum(-1, keepdim=True)
        return (values - threshold).relu().movedim(-1, self.dim).to(x.dtype)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"
