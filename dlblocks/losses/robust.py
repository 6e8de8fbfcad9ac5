"""Losses of classes for labels that are noisy, rare, or many. N instances, C classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dlblocks.losses.base import (
    ClassLoss,
    ClassWeights,
    Loss,
    focused,
    log_probability,
    of_target,
    one_hot,
    reduced,
    spread,
)


class PolyCrossEntropy(ClassLoss):
    """`-log p_y + epsilon (1 - p_y)`, `p = softmax(x)`: cross-entropy with its first polynomial term changed
    (Leng et al. 2022, arXiv:2204.12511).

    Shape: `(N, C, *)` logits and indices `(N, *)`.

    Args:
        epsilon: what is added to the first coefficient; 0 is cross_entropy.
        label_smoothing: `e`; the first part's targets become `y (1 - e) + e / C`.
        reduction: `none`, `mean` or `sum`.

    Raises:
        ValueError: shapes that don't belong together.

    >>> PolyCrossEntropy(2.0)(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    tensor(1.6931)
    """

    def __init__(self, epsilon: float = 2.0, label_smoothing: float = 0.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.epsilon, self.label_smoothing = epsilon, label_smoothing

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        entropy = F.cross_entropy(input, target, reduction="none", label_smoothing=self.label_smoothing)
        return reduced(entropy - self.epsilon * torch.expm1(log_probability(input, target)), reduction)


class GeneralizedCrossEntropy(ClassLoss):
    """`(1 - p_y^q) / q`, `p = softmax(x)`: between cross-entropy (q = 0) and the mean absolute error (q = 1),
    which noisy labels harm less (Zhang & Sabuncu 2018, arXiv:1805.07836).

    Shape: `(N, C, *)` logits and indices `(N, *)`.

    Args:
        q: above 0, at most 1.
        reduction: `none`, `mean` or `sum`.

    Raises:
        ValueError: shapes that don't belong together.

    >>> GeneralizedCrossEntropy(1.0)(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    tensor(0.5000)
    """

    def __init__(self, q: float = 0.7, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.q = q

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        return reduced(-torch.expm1(self.q * log_probability(input, target)) / self.q, reduction)


class BiTempered(ClassLoss):
    """The logistic loss with a bounded logarithm and a heavy-tailed softmax (Amid et al. 2019, arXiv:1906.03361).

    `sum_c y_c (log_t1 y_c - log_t1 p_c) - (y_c^(2 - t1) - p_c^(2 - t1)) / (2 - t1)`, with
    `log_t u = (u^(1 - t) - 1) / (1 - t)` and `p_c = exp_t2(x_c - lambda)`, `lambda` so that p sums to 1.
    t1 = t2 = 1 is cross_entropy. Shape: `(N, C, *)` logits and indices `(N, *)`.

    Args:
        t1: below 1 the loss of one instance is bounded.
        t2: above 1 the probabilities have heavy tails.
        iterations: of the search for lambda.
        reduction: `none`, `mean` or `sum`.

    Raises:
        ValueError: shapes that don't belong together.
    """

    def __init__(
        self, t1: float = 0.8, t2: float = 1.3, iterations: int = 30, reduction: str = "mean"
    ) -> None:
        super().__init__(reduction)
        self.t1, self.t2, self.iterations = t1, t2, iterations

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        p = _tempered_softmax(input, self.t2, self.iterations)
        power = 2 - self.t1
        # y is 1 in the target's class, 0 in the others.
        fit = -_log_t(of_target(p, target), self.t1)
        return reduced(fit - (1 - (p**power).sum(1)) / power, reduction)


class LDAM(ClassLoss):
    """Cross-entropy with a margin for each class, larger for rare ones (Cao et al. 2019, arXiv:1906.07413).

    `-log softmax(scale z)_y`, `z_y = x_y - m_y`, other `z_c = x_c`, `m_c = max_margin (min_k n_k / n_c)^(1/4)`.
    Shape: `(N, C, *)` logits and indices `(N, *)`.

    Args:
        counts: `n`, instances of each class in the training set; None for as many of each.
        max_margin: the margin of the rarest class.
        scale: of the logits.
        weight: factor of each class.
        reduction: `none`, `mean` or `sum`.

    Raises:
        ValueError: shapes that don't belong together.
        UserError: not one count or weight for each class.

    >>> LDAM([1, 16], scale=1.0)(torch.tensor([[0.5, 0.0]]), torch.tensor([0]))
    tensor(0.6931)
    """

    def __init__(
        self,
        counts: Sequence[float] | None = None,
        max_margin: float = 0.5,
        scale: float = 30.0,
        weight: Sequence[float] | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        roots = None if counts is None else [max_margin * (min(counts) / count) ** 0.25 for count in counts]
        self.margins = ClassWeights(roots, "loss.counts")
        self.max_margin, self.scale = max_margin, scale
        self.weight = ClassWeights(weight, "loss.weight")

    def counts(self, input: Tensor, target: Tensor) -> Tensor | None:
        return self.weight.of(input, target, -100)

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        margins = self.margins.factors(input, input.shape[1])
        is_target = one_hot(target, input)
        each = self.max_margin if margins is None else margins[target].unsqueeze(1)
        weight = self.weight.factors(input, input.shape[1])
        return F.cross_entropy(
            self.scale * (input - each * is_target), target, weight=weight, reduction=reduction
        )


class Asymmetric(Loss):
    """Focal loss with other powers for wanted and unwanted labels (Ridnik et al. 2020, arXiv:2009.14119).

    `-y (1 - p)^gamma_pos log p - (1 - y) q^gamma_neg log(1 - q)`, `p = sigmoid(x)`, `q = max(p - clip, 0)`.
    Shape: `(N, *)` logits and `(N, *)` targets 0 or 1.

    Args:
        gamma_neg: how much less easy unwanted labels count.
        gamma_pos: how much less easy wanted labels count.
        clip: unwanted labels of a smaller probability don't count at all.
        reduction: `none`, `mean` or `sum`.

    Raises:
        ValueError: two shapes.

    >>> Asymmetric(0.0, 0.0, 0.0)(torch.tensor([0.0]), torch.tensor([1.0]))
    tensor(0.6931)
    """

    def __init__(
        self, gamma_neg: float = 4.0, gamma_pos: float = 1.0, clip: float = 0.05, reduction: str = "mean"
    ) -> None:
        super().__init__(reduction)
        self.gamma_neg, self.gamma_pos, self.clip = gamma_neg, gamma_pos, clip

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        tiny = torch.finfo(input.dtype).eps
        wanted = -F.logsigmoid(input) * (1 - input.sigmoid()).clamp_min(tiny) ** self.gamma_pos
        q = (input.sigmoid() - self.clip).clamp_min(0)
        log_rest = F.logsigmoid(-input) if not self.clip else torch.log1p(-q)
        unwanted = -log_rest * q.clamp_min(tiny) ** self.gamma_neg
        return reduced(target * wanted + (1 - target) * unwanted, reduction)


class AsymmetricSingleLabel(ClassLoss):
    """`-sum_c y_c |y_c - p_c|^g_c log p_c`, with smoothed targets and other powers for the target's class and the
    rest, `p = softmax(x)` (Ridnik et al. 2020, arXiv:2009.14119).

    Shape: `(N, C, *)` logits and indices `(N, *)`.

    Args:
        gamma_pos: power of the target's class.
        gamma_neg: power of the others.
        label_smoothing: `e`; targets become `y (1 - e) + e / C`, without which the others have no part.
        reduction: `none`, `mean` or `sum`.

    Raises:
        ValueError: shapes that don't belong together.

    >>> AsymmetricSingleLabel(label_smoothing=0.0)(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    tensor(0.6931)
    """

    def __init__(
        self,
        gamma_pos: float = 0.0,
        gamma_neg: float = 4.0,
        label_smoothing: float = 0.1,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        self.gamma_pos, self.gamma_neg, self.label_smoothing = gamma_pos, gamma_neg, label_smoothing

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        log_p = input.log_softmax(1)
        y = one_hot(target, input)
        away = (y - log_p.exp()).abs().clamp_min(torch.finfo(log_p.dtype).eps)
        gammas = y * self.gamma_pos + (1 - y) * self.gamma_neg
        smooth = y * (1 - self.label_smoothing) + self.label_smoothing / input.shape[1]
        return reduced(-(smooth * away**gammas * log_p).sum(1), reduction)


class FocalCosine(ClassLoss):
    """`1 - x_y / |x| + focal_weight (1 - p_y)^gamma (-log p_y)`, `p = softmax(x / |x|)`, for few instances
    (Barz & Denzler 2019, arXiv:1901.09054, with a focal term).

    Shape: `(N, C)` logits and indices `(N,)`.

    Args:
        gamma: how much less easy instances count in the focal term.
        focal_weight: of the focal term.
        reduction: `none`, `mean` or `sum`.

    Raises:
        ValueError: shapes that don't belong together.

    >>> FocalCosine(focal_weight=0.0)(torch.tensor([[3.0, 4.0]]), torch.tensor([1]))
    tensor(0.2000)
    """

    def __init__(self, gamma: float = 2.0, focal_weight: float = 0.1, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.gamma, self.focal_weight = gamma, focal_weight

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        unit = F.normalize(input, dim=1)
        cost = F.cross_entropy(unit, target, reduction="none")
        return reduced(1 - of_target(unit, target) + self.focal_weight * focused(cost, self.gamma), reduction)


class SparsemaxLoss(ClassLoss):
    """The convex loss whose gradient is `sparsemax(x) - y` (Martins & Astudillo 2016,
    arXiv:1602.02068).

    `-x_y + (sum_(c in S) (x_c^2 - tau^2) + 1) / 2`, S and tau the support and threshold of sparsemax(x).
    Shape: `(N, C)` logits and indices `(N,)`.

    Raises:
        ValueError: shapes that don't belong together.

    >>> SparsemaxLoss()(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    tensor(0.2500)
    """

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        # The scores only matter up to a constant; without it the squares are small.
        x = input - input.amax(1, keepdim=True)
        ordered = x.sort(dim=1, descending=True).values
        rank = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype)
        rank = rank.view(-1, *[1] * (x.ndim - 2))
        total = ordered.cumsum(1)
        inside = 1 + rank * ordered > total
        size = inside.sum(1, keepdim=True)
        tau = (total.gather(1, size - 1) - 1) / size
        squares = ((x.square() - tau.square()) * (x > tau)).sum(1)
        return reduced((squares + 1) / 2 - of_target(x, target), reduction)


class GeneralizedKL(Loss):
    """`sum_c y_c (log y_c - x_c) + exp(x_c) - y_c`, of log-values `x` from values `y` that need not sum to 1
    (Csiszar 1991).

    Shape: `(N, C)` and `(N, C)`; a value for each number.

    Raises:
        ValueError: two shapes.

    >>> GeneralizedKL(reduction="sum")(torch.tensor([[0.0]]), torch.tensor([[1.0]]))
    tensor(0.)
    """

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        return reduced(torch.xlogy(target, target) - target * input + input.exp() - target, reduction)


class SoftF1(Loss):
    """`1 - (1 + beta^2) TP / ((1 + beta^2) TP + beta^2 FN + FP)` of each label, counts being sums of
    probabilities over the batch.

    Shape: `(N, K)` or `(N,)` logits and targets 0 or 1; `none` gives a value for each label. A sample weight
    multiplies what an instance adds to the counts.

    Args:
        beta: how much more recall counts than precision.
        reduction: `none`, `mean` or `sum`, over the labels.

    Raises:
        ValueError: two shapes.

    >>> SoftF1()(torch.tensor([[100.0], [-100.0]]), torch.tensor([[1.0], [0.0]]))
    tensor(0.)
    """

    def __init__(self, beta: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.beta = beta

    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        p = input.sigmoid()
        return self._score((target * p).sum(0), target.sum(0), p.sum(0), reduction)

    def _weighted(self, input: Tensor, target: Tensor, sample_weight: Tensor | None) -> Tensor:
        if sample_weight is None:
            return self.values(input, target, self.reduction)
        weight, p = spread(sample_weight, input, "SoftF1"), input.sigmoid()
        counted = weight * target
        return self._score((counted * p).sum(0), counted.sum(0), (weight * p).sum(0), self.reduction)

    def _score(self, hits: Tensor, wanted: Tensor, found: Tensor, reduction: str) -> Tensor:
        """Of TP, TP + FN and TP + FP."""
        square = self.beta**2
        whole = (square * wanted + found).clamp_min(torch.finfo(found.dtype).tiny)
        return reduced(1 - (1 + square) * hits / whole, reduction)


def _log_t(u: Tensor, t: float) -> Tensor:
    return u.log() if t == 1 else (u ** (1 - t) - 1) / (1 - t)


def _tempered_softmax(x: Tensor, t: float, iterations: int) -> Tensor:
    """`exp_t(x - lambda)` over the classes, lambda so that it sums to 1; t >= 1."""
    if t == 1:
        return x.softmax(1)
    x = x - x.amax(1, keepdim=True)
    with torch.no_grad():
        scaled = x
        for _ in range(iterations):
            total = _exp_t(scaled, t).sum(1, keepdim=True)
            scaled = x * total ** (1 - t)
        offset = -_log_t(1 / _exp_t(scaled, t).sum(1, keepdim=True), t)
        power = _exp_t(x - offset, t) ** t
        escort = power / power.sum(1, keepdim=True)
    # d offset / d x_c is p_c^t / sum p^t, which this adds without a change of value.
    moved = x - offset - (escort * (x - x.detach())).sum(1, keepdim=True)
    return _exp_t(moved, t)


def _exp_t(u: Tensor, t: float) -> Tensor:
    return (1 + (1 - t) * u).clamp_min(0) ** (1 / (1 - t))
