"""What all losses share: shapes are checked, narrow formats are widened, and the values reduced."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from dlblocks.errors import UserError


class Loss(nn.Module, ABC):
    """A loss called with `(input, target)`; a subclass writes its formula in `values`.

    Computed in float32 at least, also under autocast: exponentials and logarithms of half-precision
    numbers overflow and vanish. A target of the input's shape may have any type and takes the input's;
    one of another shape is indices.

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

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        self.check(input, target)
        input = _wide(input)
        target = target.to(input.dtype) if target.shape == input.shape else target.long()
        device = input.device.type
        # Entering a context costs more than the loss of a small batch; outside autocast there is no need.
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return self.values(input, target)
        with torch.autocast(device, enabled=False):
            return self.values(input, target)

    @abstractmethod
    def values(self, input: Tensor, target: Tensor) -> Tensor:
        """The reduced loss, by torch's function or `reduced`."""

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

    def reduced(self, values: Tensor) -> Tensor:
        """The values of all instances and outputs, reduced."""
        match self.reduction:
            case "none":
                return values
            case "mean":
                return values.mean()
            case "batchmean":
                return values.sum() / len(values)
            case _:
                return values.sum()

    def extra_repr(self) -> str:
        given = {
            key: value for key, value in vars(self).items() if not key.startswith("_") and key != "training"
        }
        return ", ".join(f"{key}={value}" for key, value in given.items())


class ClassWeights(nn.Module):
    """A factor for each class, moved with the module; no part of its checkpoints."""

    weight: Tensor | None

    def __init__(self, weight: Sequence[float] | None, name: str) -> None:
        super().__init__()
        self.name = name
        given = None if weight is None else torch.as_tensor(weight, dtype=torch.float32)
        self.register_buffer("weight", given, persistent=False)

    def forward(self, input: Tensor, classes: int) -> Tensor | None:
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


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
