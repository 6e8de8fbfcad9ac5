"""Losses of embeddings and of orders: what belongs together lies together. N instances, D dimensions.

Each is called with its own arguments, then `sample_weight` `(N,)`, one for each value.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlblocks.losses.base import ReducedLoss, autocast_device, reduced, weighted, wide


class ArgumentsLoss(ReducedLoss):
    """A loss of other arguments than `(input, target)`; computed in float32 at least.

    Args:
        reduction: `none`, `mean` or `sum`.

    Raises:
        ValueError: a reduction that the loss doesn't have.
    """

    def forward(self, *arguments: Tensor, sample_weight: Tensor | None = None, **named: Tensor) -> Tensor:
        if device := autocast_device(arguments[0]):
            with torch.autocast(device, enabled=False):
                return self._weighted(arguments, named, sample_weight)
        return self._weighted(arguments, named, sample_weight)

    def _weighted(
        self, arguments: Iterable[Tensor], named: Mapping[str, Tensor], sample_weight: Tensor | None
    ) -> Tensor:
        widened = [wide(argument) for argument in arguments]
        if sample_weight is None:
            return self.whole(*widened, **named)
        values = self.each(*widened, **named)
        return weighted(values, sample_weight, None, self.reduction, type(self).__name__)

    def whole(self, *arguments: Any, **named: Any) -> Tensor:
        """The reduced loss; a subclass overrides it where torch has it in one call."""
        return reduced(self.each(*arguments, **named), self.reduction)

    @abstractmethod
    def each(self, *arguments: Any, **named: Any) -> Tensor:
        """A value for each instance."""

    def same_shape(self, **arguments: Tensor) -> None:
        """Refuse shapes that broadcasting would let pass.

        Raises:
            ValueError: says the shapes.
        """
        shapes = [argument.shape for argument in arguments.values()]
        if shapes.count(shapes[0]) < len(shapes):
            told = ", ".join(f"{name} {tuple(argument.shape)}" for name, argument in arguments.items())
            raise ValueError(f"{type(self).__name__}: {told} must have the same shape")


class Triplet(ArgumentsLoss):
    """`max(0, d(anchor, positive) - d(anchor, negative) + margin)` (Schroff et al. 2015, arXiv:1503.03832).

    Shape: three times `(N, D)`.

    Args:
        margin: by how much the negative has to be farther away.
        distance: `euclidean`, `squared` or `cosine`, which is 1 minus the cosine.
        swap: take the distance of positive and negative where it is the smaller one (Balntas et al. 2016).
        reduction: `none`, `mean` or `sum`.

    Raises:
        ValueError: shapes that differ.

    >>> Triplet()(torch.tensor([[0.0]]), torch.tensor([[1.0]]), torch.tensor([[1.5]])).round(decimals=4)
    tensor(0.5000)
    """

    def __init__(
        self, margin: float = 1.0, distance: str = "euclidean", swap: bool = False, reduction: str = "mean"
    ) -> None:
        super().__init__(reduction)
        self.margin, self.distance, self.swap = margin, distance, swap

    def each(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        self.same_shape(anchor=anchor, positive=positive, negative=negative)
        away = self._between(anchor, negative)
        if self.swap:
            away = torch.minimum(away, self._between(positive, negative))
        return (self._between(anchor, positive) - away + self.margin).clamp_min(0)

    def _between(self, a: Tensor, b: Tensor) -> Tensor:
        if self.distance == "cosine":
            return 1 - F.cosine_similarity(a, b, dim=-1)
        if self.distance == "squared":
            return (a - b).square().sum(-1)
        return F.pairwise_distance(a, b)


class CosineEmbedding(ArgumentsLoss):
    """`1 - cos(a, b)` of pairs that belong together, `max(0, cos(a, b) - margin)` of others (torch).

    Shape: `(N, D)`, `(N, D)` and a target `(N,)` of 1 or -1.

    Args:
        margin: a cosine below it costs nothing.
        reduction: `none`, `mean` or `sum`.

    Raises:
        ValueError: shapes that don't belong together.

    >>> CosineEmbedding()(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.tensor([1]))
    tensor(1.)
    """

    def __init__(self, margin: float = 0.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.margin = margin

    def each(self, input1: Tensor, input2: Tensor, target: Tensor) -> Tensor:
        self.same_shape(input1=input1, input2=input2)
        # As torch's loss has it: the gradient of its cosine_similarity takes twice as long.
        lengths = [(x.square().sum(-1) + 1e-12).rsqrt() for x in (input1, input2)]
        cosine = (input1 * input2).sum(-1) * lengths[0] * lengths[1]
        self.same_shape(pairs=cosine, target=target)
        return torch.where(target > 0, 1 - cosine, (cosine - self.margin).clamp_min(0))


class HingeEmbedding(ArgumentsLoss):
    """`x` of pairs that belong together, `max(0, margin - x)` of others, `x` their distance (torch).

    Shape: `(N,)` distances and a target `(N,)` of 1 or -1.

    Args:
        margin: a distance above it costs nothing.
        reduction: `none`, `mean` or `sum`.

    Raises:
        ValueError: shapes that differ.

    >>> HingeEmbedding(reduction="none")(torch.tensor([0.25, 0.25]), torch.tensor([1, -1]))
    tensor([0.2500, 0.7500])
    """

    def __init__(self, margin: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.margin = margin

    def each(self, input: Tensor, target: Tensor) -> Tensor:
        self.same_shape(input=input, target=target)
        return torch.where(target > 0, input, (self.margin - input).clamp_min(0))


class MarginRanking(ArgumentsLoss):
    """`max(0, margin - y (x1 - x2))`: the first above the second where `y` is 1, below where it is -1 (torch).

    Shape: `(N,)` scores, `(N,)` scores and a target `(N,)` of 1 or -1.

    Args:
        margin: by how much.
        reduction: `none`, `mean` or `sum`.

    Raises:
        ValueError: shapes that differ.

    >>> MarginRanking()(torch.tensor([1.0]), torch.tensor([3.0]), torch.tensor([1]))
    tensor(2.)
    """

    def __init__(self, margin: float = 0.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.margin = margin

    def each(self, input1: Tensor, input2: Tensor, target: Tensor) -> Tensor:
        return self._reduced(input1, input2, target, "none")

    def whole(self, input1: Tensor, input2: Tensor, target: Tensor) -> Tensor:
        return self._reduced(input1, input2, target, self.reduction)

    def _reduced(self, input1: Tensor, input2: Tensor, target: Tensor, reduction: str) -> Tensor:
        self.same_shape(input1=input1, input2=input2, target=target)
        return F.margin_ranking_loss(input1, input2, target, self.margin, reduction=reduction)


class NTXent(ArgumentsLoss):
    """`-log (mean over positives of) exp(s_ip / temperature) / sum_(k != i) exp(s_ik / temperature)`, s the cosine
    of two embeddings; positives have the same label (Chen et al. 2020, arXiv:2002.05709; several positives:
    Khosla et al. 2020, arXiv:2004.11362, the mean of their logarithms).

    Shape: `(N, D)` embeddings and labels `(N,)`; an anchor without a positive costs nothing.

    Args:
        temperature: of the softmax.
        reduction: `none`, `mean` or `sum`, over anchors.

    Raises:
        ValueError: not one label for each embedding.

    >>> NTXent(1.0)(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 0]))
    tensor(0.)
    """

    def __init__(self, temperature: float = 0.07, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.temperature = temperature

    def each(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        cosine, positive, others = _pairs(self, embeddings, labels)
        logits = (cosine / self.temperature).masked_fill(~others, -torch.inf)
        log_p = logits.log_softmax(1).masked_fill(~positive, 0.0)
        return -log_p.sum(1) / positive.sum(1).clamp_min(1)


class Circle(ArgumentsLoss):
    """`softplus(log sum_n exp(gamma a_n (s_n - m)) + log sum_p exp(-gamma a_p (s_p - 1 + m)))`, `a_n = max(0, s_n +
    m)`, `a_p = max(0, 1 + m - s_p)` without gradient, s the cosines with an anchor's negatives and positives
    (Sun et al. 2020, arXiv:2002.10857).

    Shape: `(N, D)` embeddings and labels `(N,)`; an anchor without positives or negatives costs nothing.

    Args:
        margin: `m`.
        gamma: scale of the cosines.
        reduction: `none`, `mean` or `sum`, over anchors.

    Raises:
        ValueError: not one label for each embedding.

    >>> Circle(gamma=1.0)(torch.eye(2), torch.tensor([0, 1]))
    tensor(0.)
    """

    def __init__(self, margin: float = 0.25, gamma: float = 256.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.margin, self.gamma = margin, gamma

    def each(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        cosine, positive, others = _pairs(self, embeddings, labels)
        negative = others & ~positive
        pull = (1 + self.margin - cosine).clamp_min(0).detach() * (cosine - 1 + self.margin) * -self.gamma
        push = (cosine + self.margin).clamp_min(0).detach() * (cosine - self.margin) * self.gamma
        lowest = torch.finfo(cosine.dtype).min
        together = torch.where(positive, pull, lowest).logsumexp(1)
        apart = torch.where(negative, push, lowest).logsumexp(1)
        both = positive.any(1) & negative.any(1)
        return torch.where(both, F.softplus(torch.where(both, together + apart, 0.0)), 0.0)


class RankingSoftmax(ArgumentsLoss):
    """`-sum_i y_i log softmax(x)_i / sum_i y_i`: the relevant ones on top of each list (ListNet, Cao et al. 2007).

    Shape: `(N, items)` scores and `(N, items)` relevances not below 0; a list without relevance costs nothing.

    Raises:
        ValueError: shapes that differ.

    >>> RankingSoftmax()(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
    tensor(0.6931)
    """

    def each(self, input: Tensor, target: Tensor) -> Tensor:
        self.same_shape(input=input, target=target)
        share = target / target.sum(-1, keepdim=True).clamp_min(torch.finfo(target.dtype).tiny)
        return -(share * input.log_softmax(-1)).sum(-1)


def _pairs(loss: nn.Module, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cosines `(N, N)`, which pairs have the same label, and which are of two instances."""
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise ValueError(
            f"{type(loss).__name__}: embeddings {tuple(embeddings.shape)} must be (N, D), and labels"
            f" {tuple(labels.shape)} (N,)"
        )
    unit = F.normalize(embeddings, dim=1)
    others = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return unit @ unit.T, (labels[:, None] == labels) & others, others
