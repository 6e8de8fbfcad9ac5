"""Whether a trial leaves the module that it is a copy of alone."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from torch import Tensor

from dlblocks.errors import UserError


class Original:
    """The tensors of a module, until a copy of it has taken its first backward pass.

    Args:
        module: of which no copy may change anything.
    """

    def __init__(self, module: pl.LightningModule) -> None:
        self._module = module
        self._gradients = [(p, p.grad) for p in module.parameters()]
        self._buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
        self._before = self._places()

    def check(self) -> None:
        """Put back what has changed, and tell of it: the copy ran code that is bound to the module itself.

        Raises:
            UserError: a parameter has got a gradient, or a buffer another value.
        """
        now = self._places()
        if now == self._before:
            return
        named = (*self._module.named_parameters(), *self._module.named_buffers())
        changed = next(
            name for (name, _), before, after in zip(named, self._before, now, strict=True) if before != after
        )
        for parameter, gradient in self._gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for buffer, kept in self._buffers:
                buffer.copy_(kept)
        raise UserError(
            f"{type(self._module).__name__}: a step of its copy used the module itself ({changed} changed), so no rate or"
            " size can be tried. An attribute holds a function of the module's own where no copy reaches it, such as in"
            " a tuple; make it a method, or build it where it is used."
        )

    def _places(self) -> list[tuple[int, int] | None]:
        return [_place(p.grad) for p, _ in self._gradients] + [_place(buffer) for buffer, _ in self._buffers]


def _place(tensor: Tensor | None) -> tuple[int, int] | None:
    """What changes with a tensor's values, without a look at them."""
    if tensor is None or tensor.is_inference():
        return None
    return id(tensor), tensor._version
