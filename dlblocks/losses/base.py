"""What all losses share: shapes are checked, narrow formats are widened, and the values reduced."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dlblocks.errors import UserError

_NARROW = frozenset({torch.float16, torch.bfloat16})


class ReducedLoss(nn.Module, ABC):
    """What every loss has: a checked reduction, and its parameters in its representation.

    Args:
        reduction: one of the class's `reductions`.

    Raises:
        ValueError: a reduction that the loss doesn't have.
    """

    reductions: ClassVar[tuple[str, ...]] = ("none", "mean", "sum")

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        if reduction not in self.reductions:
            raise ValueError(
                f"{type(self).__name__}: reduction={reduction!r}: must be one of {', '.join(self.reductions)}"
            )
        self.reduction = reduction

    def extra_repr(self) -> str:
        given = {
            key: value for key, value in vars(self).items() if not key.startswith("_") and key != "training"
        }
        return ", ".join(f"{key}={value}" for key, value in given.items())


class Loss(ReducedLoss):
    """A loss called with `(input, target, sample_weight=None)`; a subclass writes its formula in `values`.

    Computed in float32 at least, also under autocast: exponentials and logarithms of half-precision
    numbers overflow and vanish. A target of the input's shape may have any type and takes the input's;
    one of another shape is indices.

    With `sample_weight` s `(N,)`, the values `l` of instance i are multiplied by s_i; `none` gives them,
    `sum` their sum, `mean` is `sum s_i l_i / sum s_i c_i`, where c_i is how much an instance counts in the
    loss's own mean: its class weight, 0 if it is ignored, else 1 for each of its values.

    Args:
        reduction: one of the class's `reductions`.

    Raises:
        ValueError: a reduction that the loss doesn't have, shapes that don't belong together, or weights
            that are not one for each instance.
    """

    def forward(self, input: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        self.check(input, target)
        kind = input.dtype
        if kind in _NARROW:
            input, kind = input.float(), torch.float32
        if target.shape != input.shape:
            target = self.typed(target, input)
        elif target.dtype is not kind:
            target = target.to(kind)
        if device := autocast_device(input):
            with torch.autocast(device, enabled=False):
                return self._weighted(input, target, sample_weight)
        return self._weighted(input, target, sample_weight)

    def _weighted(self, input: Tensor, target: Tensor, sample_weight: Tensor | None) -> Tensor:
        if sample_weight is None:
            return self.values(input, target, self.reduction)
        values = self.values(input, target, "none")
        return weighted(
            values, sample_weight, self.counts(input, target), self.reduction, type(self).__name__
        )

    @abstractmethod
    def values(self, input: Tensor, target: Tensor, reduction: str) -> Tensor:
        """The reduced loss, by torch's function or `reduced`."""

    def counts(self, input: Tensor, target: Tensor) -> Tensor | None:  # noqa: ARG002
        """How much each value counts in the mean; None for all alike."""
        return None

    def typed(self, target: Tensor, input: Tensor) -> Tensor:  # noqa: ARG002
        """A target of another shape than the input's, in the type that the formula needs."""
        return target.long()

    def check(self, input: Tensor, target: Tensor) -> None:
        """Refuse shapes that don't belong together, which broadcasting would let pass in silence.

        Raises:
            ValueError: says both shapes.
        """
        if input.shape != target.shape:
            raise ValueError(
                f"{type(self).__name__}: input {tuple(input.shape)} and target {tuple(target.shape)} must"
                " have the same shape"
            )


def autocast_device(tensor: Tensor) -> str:
    """The device of a tensor where autocast is on for it, else nothing.

    Entering a context costs more than the loss of a small batch; so does the name of a device.
    """
    if tensor.is_cpu:
        return "cpu" if torch.is_autocast_enabled("cpu") else ""
    device = tensor.device.type
    return device if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device) else ""


def reduced(values: Tensor, reduction: str) -> Tensor:
    """The values of all instances and outputs: `none`, `mean`, `sum`, or `batchmean`, their sum over N."""
    match reduction:
        case "none":
            return values
        case "mean":
            return values.mean()
        case "batchmean":
            return values.sum() / len(values)
        case _:
            return values.sum()


def spread(sample_weight: Tensor, values: Tensor, name: str) -> Tensor:
    """The weights of the instances in the format of their values: `(N,)` as `(N, 1, ...)`.

    Raises:
        ValueError: weights that are not one for each instance.
    """
    if sample_weight.shape != values.shape[:1]:
        raise ValueError(
            f"{name}: sample_weight {tuple(sample_weight.shape)} must have one number for each of the"
            f" {values.shape[0] if values.ndim else 0} instances"
        )
    return sample_weight.to(values.dtype).view(-1, *[1] * (values.ndim - 1))


def weighted(
    values: Tensor, sample_weight: Tensor, counts: Tensor | None, reduction: str, name: str
) -> Tensor:
    """The values, each instance multiplied by its weight, reduced; see `Loss`.

    Raises:
        ValueError: weights that are not one for each instance.
    """
    s = spread(sample_weight, values, name)
    product = s * values
    match reduction:
        case "none":
            return product
        case "mean":
            each = torch.ones_like(values) if counts is None else counts.expand_as(values)
            return product.sum() / (s * each).sum()
        case "batchmean":
            return product.sum() / s.sum()
        case _:
            return product.sum()


class ClassWeights(nn.Module):
    """A factor for each class, moved with the module; no part of its checkpoints."""

    weight: Tensor | None

    def __init__(self, weight: Sequence[float] | None, name: str) -> None:
        super().__init__()
        self.name = name
        given = None if weight is None else torch.as_tensor(weight, dtype=torch.float32)
        self.register_buffer("weight", given, persistent=False)

    def factors(self, input: Tensor, classes: int) -> Tensor | None:
        """The weights in the input's format.

        Raises:
            UserError: not one for each class.
        """
        if self.weight is None:
            return None
        if len(self.weight) != classes:
            raise UserError(
                f"{self.name}: has {len(self.weight)} numbers for {classes} classes; give one for each."
            )
        return self.weight.to(input.dtype)

    def of(self, input: Tensor, target: Tensor, ignore_index: int) -> Tensor:
        """The weight of each index of the target; 0 of those ignored."""
        counted = target != ignore_index
        weight = self.factors(input, input.shape[1])
        if weight is None:
            return counted.to(input.dtype)
        counts: Tensor = weight[torch.where(counted, target, 0)] * counted
        return counts


def check_classes(loss: nn.Module, input: Tensor, target: Tensor, soft: bool) -> None:
    """Refuse what is not `(N, C, *)` with indices `(N, *)`, or, if `soft`, with probabilities `(N, C, *)`.

    Raises:
        ValueError: says both shapes.
    """
    if soft and target.shape == input.shape:
        return
    if input.ndim >= 2 and target.shape == (input.shape[0], *input.shape[2:]):
        if target.is_floating_point():
            raise ValueError(
                f"{type(loss).__name__}: target {tuple(target.shape)} holds indices, which are whole numbers;"
                f" got {target.dtype}"
            )
        return
    legal = "(N,) of indices" + (" or (N, C) of probabilities" if soft else "")
    raise ValueError(
        f"{type(loss).__name__}: input {tuple(input.shape)} must be (N, C), and target"
        f" {tuple(target.shape)} {legal}"
    )


class ClassLoss(Loss):
    """A loss of `(N, C, *)` scores or logits and indices `(N, *)`."""

    def check(self, input: Tensor, target: Tensor) -> None:
        check_classes(self, input, target, soft=False)


def one_hot(target: Tensor, input: Tensor) -> Tensor:
    """Indices `(N, *)` as 0 and 1 `(N, C, *)`, in the input's type."""
    return F.one_hot(target, input.shape[1]).movedim(-1, 1).to(input.dtype)


def of_target(input: Tensor, target: Tensor) -> Tensor:
    """What the target's class has of `(N, C, *)`: `(N, *)`."""
    return input.gather(1, target.unsqueeze(1)).squeeze(1)


def log_probability(input: Tensor, target: Tensor) -> Tensor:
    """The logarithm of the target's probability, of logits `(N, C, *)`."""
    return -F.nll_loss(input.log_softmax(1), target, reduction="none")


def focused(cost: Tensor, gamma: float) -> Tensor:
    """`(1 - p)^gamma cost` of `cost = -log p`."""
    rest = -torch.expm1(-cost)
    if gamma < 1:
        # Kept off zero, where the gradient of such a power is infinite; the cost is as small there.
        rest = rest.clamp_min(torch.finfo(cost.dtype).eps)
    return rest**gamma * cost


def turned(input: Tensor, target: Tensor) -> Tensor:
    """`-y x` with `y` -1 or 1; a target of 0 counts as -1."""
    # In place: what selects elements one by one takes twice as long.
    return target.gt(0).to(input.dtype).mul_(-2).add_(1) * input


def wide(tensor: Tensor) -> Tensor:
    """In float32 at least."""
    return tensor.float() if tensor.dtype in _NARROW else tensor
