"""Losses of scores: classes told apart by a margin. N instances, C classes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dlblocks.losses.base import ClassLoss, Loss, of_target, one_hot, reduced, turned


class SoftMargin(Loss):
    """`log(1 + exp(-y x))` with `y` -1 or 1; a target of 0 counts as -1: bce, with another target.

    Shape: `(N, *)` and `(N, *)`. Source: torch.nn.SoftMarginLoss.

    Raises:
        ValueError: two shapes.

    >>> SoftMargin()(torch.tensor([0.0]), torch.tensor([1.0]))
    tensor(0.6931)
    """

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        # torch's own overflows where a score is far on the wrong side.
        wanted = target.gt(0).to(input.dtype)
        return F.binary_cross_entropy_with_logits(input, wanted, reduction=reduction)


class Perceptron(Loss):
    """`max(0, -y x)` with `y` -1 or 1; a target of 0 counts as -1 (Rosenblatt 1958).

    Shape: `(N, *)` and `(N, *)`.

    Raises:
        ValueError: two shapes.

    >>> Perceptron()(torch.tensor([2.0, 2.0]), torch.tensor([1.0, 0.0]))
    tensor(1.)
    """

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        return reduced(turned(input, target).relu_(), reduction)


class MultiMargin(ClassLoss):
    """`sum_(c != y) max(0, margin - x_y + x_c)^p / C` (Weston & Watkins 1999).

    Shape: `(N, C)` scores and indices `(N,)`.

    Args:
        p: 1, or 2 for squares.
        margin: by how much the score of the target has to be above each other.
        reduction: `none`, `mean` or `sum`.

    Raises:
        ValueError: shapes that don't belong together.

    >>> MultiMargin()(torch.tensor([[0.0, 0.5]]), torch.tensor([0]))
    tensor(0.7500)
    """

    def __init__(self, p: int = 1, margin: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.p, self.margin = p, margin

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        # torch's own has no batching rule, which stacked runs need.
        place = target.unsqueeze(1)
        short = (input - (input.gather(1, place) - self.margin)).relu()
        others = (short if self.p == 1 else short.square()).scatter(1, place, 0.0)
        return reduced(others.sum(1) / input.shape[1], reduction)


class CategoricalHinge(ClassLoss):
    """`max(0, margin + max_(c != y) x_c - x_y)`: the margin to the strongest other class (Crammer & Singer 2001).

    Shape: `(N, C)` scores and indices `(N,)`.

    Args:
        margin: by how much the score of the target has to be above the strongest other; 0 is the
            perceptron's loss.
        reduction: `none`, `mean` or `sum`.

    Raises:
        ValueError: shapes that don't belong together.

    >>> CategoricalHinge()(torch.tensor([[2.0, 0.0, 1.5]]), torch.tensor([0]))
    tensor(0.5000)
    """

    def __init__(self, margin: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.margin = margin

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        is_target = one_hot(target, input).bool()
        strongest = input.masked_fill(is_target, -torch.inf).amax(1)
        return reduced((self.margin + strongest - of_target(input, target)).clamp_min(0), reduction)


class MultilabelMargin(Loss):
    """`sum_(i wanted, j not) max(0, 1 - x_i + x_j) / C`: each wanted label above each other (torch).

    Shape: `(N, C)` scores and `(N, C)` targets 0 or 1.

    Raises:
        ValueError: two shapes.

    >>> MultilabelMargin()(torch.tensor([[0.5, 0.0]]), torch.tensor([[1, 0]]))
    tensor(0.2500)
    """

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        short = (1 - input.unsqueeze(-1) + input.unsqueeze(-2)).clamp_min(0)
        counted = target.unsqueeze(-1) * (1 - target).unsqueeze(-2)
        return reduced((short * counted).sum((-2, -1)) / input.shape[-1], reduction)
