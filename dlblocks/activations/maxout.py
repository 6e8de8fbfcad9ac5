"""Maxout."""

from __future__ import annotations

from torch import Tensor, nn


class Maxout(nn.Module):
    """The largest of `pieces` linear functions (Goodfellow et al. 2013, arXiv:1302.4389).

    `y_i = max_j x[j * features + i]` for `j = 0 .. pieces - 1`. The layer before holds the linear
    parts: it is `pieces` times wider than the output, so that together they compute
    `max_j (w_j^T x + b_j)`.

    Shape: `(*, pieces * features)` to `(*, features)`, along `dim`.

    Args:
        pieces: linear functions for each output.
        dim: the dimension of the features.

    Raises:
        ValueError: the size along `dim` is not a multiple of `pieces`.

    >>> import torch
    >>> Maxout(2)(torch.tensor([1.0, 4.0, 3.0, 2.0]))
    tensor([3., 4.])
    """

    def __init__(self, pieces: int = 2, dim: int = -1) -> None:
        super().__init__()
        self.pieces = pieces
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[self.dim] % self.pieces:
            raise ValueError(
                f"maxout of {self.pieces} pieces needs a multiple of {self.pieces} features along"
                f" dimension {self.dim}, got {x.shape[self.dim]}"
            )
        dim = self.dim % x.ndim
        features = x.shape[dim] // self.pieces
        pieces = x.reshape(*x.shape[:dim], self.pieces, features, *x.shape[dim + 1 :])
        return pieces.max(dim).values

    def extra_repr(self) -> str:
        return f"pieces={self.pieces}, dim={self.dim}"
