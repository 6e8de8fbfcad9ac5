"""Initialisers that don't look at the size of the layer. All fill `tensor` in place and return it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import init

from dlblocks.errors import UserError
from dlblocks.initializers.fans import Fans


def default(tensor: Tensor, *, fans: Fans | None = None, generator: Generator | None = None) -> Tensor:  # noqa: ARG001
    """The tensor as it is."""
    return tensor


def zeros(tensor: Tensor, *, fans: Fans | None = None, generator: Generator | None = None) -> Tensor:  # noqa: ARG001
    """`w = 0`."""
    return init.zeros_(tensor)


def ones(tensor: Tensor, *, fans: Fans | None = None, generator: Generator | None = None) -> Tensor:  # noqa: ARG001
    """`w = 1`."""
    return init.ones_(tensor)


def constant(
    tensor: Tensor,
    *,
    value: float = 0.0,
    fans: Fans | None = None,  # noqa: ARG001
    generator: Generator | None = None,  # noqa: ARG001
) -> Tensor:
    """`w = value`."""
    return init.constant_(tensor, value)


def normal(
    tensor: Tensor,
    *,
    mean: float = 0.0,
    std: float = 0.05,
    fans: Fans | None = None,  # noqa: ARG001
    generator: Generator | None = None,
) -> Tensor:
    """`w ~ N(mean, std^2)`."""
    return init.normal_(tensor, mean, std, generator=generator)


def uniform(
    tensor: Tensor,
    *,
    low: float = -0.05,
    high: float = 0.05,
    fans: Fans | None = None,  # noqa: ARG001
    generator: Generator | None = None,
) -> Tensor:
    """`w ~ U(low, high)`.

    Raises:
        UserError: `low` is above `high`.
    """
    if low > high:
        raise UserError(f"uniform: low={low} is above high={high}.")
    return init.uniform_(tensor, low, high, generator=generator)


def truncated_normal(
    tensor: Tensor,
    *,
    mean: float = 0.0,
    std: float = 0.05,
    fans: Fans | None = None,  # noqa: ARG001
    generator: Generator | None = None,
) -> Tensor:
    """`w ~ N(mean, std^2)` within `mean +- 2 std`; the standard deviation left is 0.8796 std."""
    # Narrow formats round draws beyond the bounds.
    return filled_wide(
        tensor,
        lambda wide: init.trunc_normal_(wide, mean, std, mean - 2 * std, mean + 2 * std, generator=generator),
    )


def filled_wide(tensor: Tensor, fill: Callable[[Tensor], object]) -> Tensor:
    """The tensor, filled in place where its format is float32 or wider, else by a float32 one that is filled."""
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    if tensor.dtype == dtype:
        fill(tensor)
        return tensor
    wide = torch.empty(tensor.shape, dtype=dtype, device=tensor.device)
    fill(wide)
    with torch.no_grad():
        return tensor.copy_(wide)
