"""Losses of several labels for each instance. N instances, C labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dlblocks.losses.base import ClassWeights, Loss, reduced


class ZLPR(Loss):
    """`log(1 + sum_(c not) exp(x_c)) + log(1 + sum_(c wanted) exp(-x_c))`: each wanted label above each other,
    with 0 between them (Su et al. 2022, arXiv:2208.02955).

    Shape: `(N, C)` logits and `(N, C)` targets 0 or 1; a value for each instance.

    Args:
        reduction: `none`, `mean` or `sum`.

    Raises:
        ValueError: two shapes.

    >>> ZLPR()(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
    tensor(1.3863)
    """

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        wanted = target > 0.5
        # The zero is the 1 in the logarithm, and keeps the sum of nothing finite.
        above = F.pad(input.masked_fill(wanted, -torch.inf), (0, 1))
        below = F.pad((-input).masked_fill(~wanted, -torch.inf), (0, 1))
        return reduced(above.logsumexp(-1) + below.logsumexp(-1), reduction)


class PolyBinary(Loss):
    """`(1 - p_y)^gamma (-log p_y + epsilon (1 - p_y))`, `p_y` the target's probability: binary cross-entropy with
    its first polynomial term changed (Leng et al. 2022, arXiv:2204.12511).

    Shape: `(N, *)` logits and `(N, *)` targets 0 or 1.

    Args:
        epsilon: what is added to the first coefficient; 0 is binary_focal.
        gamma: how much less easy instances count; 0 for not.
        alpha: weight of target 1, that of target 0 is `1 - alpha`; None for no weights.
        reduction: `none`, `mean` or `sum`.

    Raises:
        ValueError: two shapes.

    >>> PolyBinary(epsilon=2.0)(torch.tensor([0.0]), torch.tensor([1.0]))
    tensor(1.6931)
    """

    def __init__(
        self,
        epsilon: float = 2.0,
        gamma: float = 0.0,
        alpha: float | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        self.epsilon, self.gamma, self.alpha = epsilon, gamma, alpha

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        rest = target * torch.sigmoid(-input) + (1 - target) * torch.sigmoid(input)
        loss = F.binary_cross_entropy_with_logits(input, target, reduction="none") + self.epsilon * rest
        if self.gamma:
            # Kept off zero, where the gradient of a power below 1 is infinite.
            loss = loss * rest.clamp_min(torch.finfo(rest.dtype).tiny) ** self.gamma
        if self.alpha is not None:
            loss = loss * (self.alpha * target + (1 - self.alpha) * (1 - target))
        return reduced(loss, reduction)


class DistributionBalanced(Loss):
    """Binary focal loss for labels of which some are rare (Wu et al. 2020, arXiv:2007.09654).

    `z_c = x_c - init_bias / neg_scale log(instances / n_c - 1)`; `w_c = alpha + sigmoid(beta (r_c - mu))`,
    `r_c = (1 / n_c) / sum_(j wanted) 1 / n_j`; of a wanted label `2 w_c (1 - p)^gamma -log p`, `p = sigmoid(z_c)`,
    of another `2 w_c q^gamma -log(1 - q) / neg_scale`, `q = sigmoid(neg_scale z_c)`.
    Shape: `(N, C)` logits and `(N, C)` targets 0 or 1.

    Args:
        counts: `n`, instances of the training set that have each label; None for half of them.
        instances: of the training set; None only if `counts` is.
        alpha: the least weight.
        beta: how sharply the weight rises with the label's share r.
        mu: the share about which it does.
        neg_scale: how much sooner labels that are not wanted have been pushed down far enough.
        init_bias: how far the logits are moved by how frequent a label is.
        gamma: how much less easy labels count; 0 for not, without the factor 2.
        reduction: `none`, `mean` or `sum`.

    Raises:
        ValueError: two shapes.
        UserError: not one count for each label.

    >>> DistributionBalanced(alpha=0.5, beta=0.0, gamma=0.0)(torch.zeros(1, 2), torch.tensor([[1.0, 1.0]]))
    tensor(0.6931)
    """

    def __init__(
        self,
        counts: Sequence[float] | None = None,
        instances: int | None = None,
        alpha: float = 0.1,
        beta: float = 10.0,
        mu: float = 0.2,
        neg_scale: float = 2.0,
        init_bias: float = 0.05,
        gamma: float = 2.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        if (counts is None) != (instances is None):
            raise ValueError(
                "DistributionBalanced: counts and instances belong together; give both, or neither"
            )
        if counts is not None and instances is not None and max(counts) >= instances:
            raise ValueError(
                f"DistributionBalanced: counts up to {max(counts):g} must be below instances={instances}"
            )
        self.frequencies = ClassWeights(counts, "loss.counts")
        self.instances = instances
        self.alpha, self.beta, self.mu = alpha, beta, mu
        self.neg_scale, self.init_bias, self.gamma = neg_scale, init_bias, gamma

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        counts = self.frequencies.factors(input, input.shape[-1])
        rarity = torch.ones_like(input) if counts is None else (1 / counts).expand_as(input)
        shares = rarity / (target * rarity).sum(-1, keepdim=True).clamp_min(torch.finfo(input.dtype).tiny)
        weight = self.alpha + torch.sigmoid(self.beta * (shares - self.mu))
        z = input
        if counts is not None:
            assert self.instances is not None
            z = z - self.init_bias / self.neg_scale * torch.log(self.instances / counts - 1)
        wanted, other = F.softplus(-z), F.softplus(self.neg_scale * z)
        loss = target * self._focused(wanted) + (1 - target) * self._focused(other) / self.neg_scale
        return reduced(weight * loss, reduction)

    def _focused(self, cost: Tensor) -> Tensor:
        """`2 (1 - p)^gamma cost` of `cost = -log p`."""
        if not self.gamma:
            return cost
        rest = -torch.expm1(-cost)
        return 2 * rest.clamp_min(torch.finfo(cost.dtype).tiny) ** self.gamma * cost
