"""A weighted sum of losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from dlblocks.losses.terms import shared, terms_of


class Sum(nn.Module):
    """`sum_k w_k loss_k(x, y)`; each term is reduced on its own, and gets the weights of the instances.

    Args:
        terms: name of a loss -> its weight, or `{weight: ..., parameters}`. The terms must expect the same of
            input and target.
        reduction: of all terms: `none`, where they give values of one shape, `sum`, or `mean`, which is what
            each term does by itself.

    Raises:
        UserError: no terms, an unknown one, or one that does not go with the others.
        ValueError: as the terms; with `none`, values of different shapes.

    >>> import torch
    >>> Sum({"mse": 1.0, "mae": 0.5})(torch.tensor([2.0]), torch.tensor([0.0]))
    tensor(5.)
    """

    def __init__(self, terms: Mapping[str, Any] | None = None, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction
        self.weights: dict[str, float] = {}
        self.terms = nn.ModuleDict()
        checked = terms_of(terms)
        shared(checked)
        for term in checked:
            name = term.block.name
            params = dict(term.params)
            if reduction != "mean":  # the mean of a term is what it calls its own
                params["reduction"] = reduction
            self.terms[name] = term.block.load()(**params)
            self.weights[name] = term.weight

    def forward(self, input: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        parts = [self.weights[name] * loss(input, target, sample_weight) for name, loss in self.terms.items()]
        total: Tensor = parts[0]
        for name, part in zip(list(self.terms)[1:], parts[1:], strict=True):
            if part.shape != total.shape:
                raise ValueError(
                    f"Sum: {name} gives values of shape {tuple(part.shape)}, those before {tuple(total.shape)};"
                    " with reduction=none they must be alike"
                )
            total = total + part
        return total

    def extra_repr(self) -> str:
        return f"weights={self.weights}, reduction={self.reduction}"
