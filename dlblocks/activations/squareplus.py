"""Squareplus."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlblocks.activations.base import Elementwise


class Squareplus(Elementwise):
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

    def values(self, x: Tensor) -> Tensor:
        # The compiler fuses the formula by itself, and takes no function with a forward mode. Its own slope is
        # right at 0 too, where relu's is not a half.
        if torch.compiler.is_compiling():
            size = x.abs()
            return x / 2 + size / 2 + self.b / 2 / (size + torch.sqrt(x * x + self.b))
        y: Tensor = _Squareplus.apply(x, self.b)  # type: ignore[no-untyped-call]
        return y

    def extra_repr(self) -> str:
        return f"b={self.b}"


def _squareplus(x: Tensor, b: float) -> Tensor:
    # The formula cancels for x < 0; this is the same number. In place, for each new tensor is a pass of memory.
    root = (x * x).add_(b).sqrt_()
    return x.relu().add_(root.add_(x.abs()).reciprocal_(), alpha=b / 2)


class _Squareplus(torch.autograd.Function):
    """Its slope follows from the output: `y / sqrt(x^2 + b) = 1 / (2 - x / y)`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, b: float) -> Tensor:
        return _squareplus(x, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.save_for_forward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, y = ctx.saved_tensors
        return grad / (2 - x / y), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return _Squareplus.backward(ctx, tangent)[0]
