"""How many inputs one output has, and how many outputs one input has."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from torch import Tensor, nn

from dlblocks.errors import UserError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Fans(NamedTuple):
    """Connections of one output to inputs, and of one input to outputs (at stride 1)."""

    fan_in: int
    fan_out: int


def fans_of(weight: Tensor, layer: nn.Module | None = None) -> Fans:
    """The fans of a weight.

    A bare tensor is taken as `(outputs, inputs, *kernel)`, as torch does. A layer's weight is counted by
    what the layer does with it, where torch's rule is wrong: each output channel of a grouped convolution
    feeds from `inputs / groups` channels and each input channel feeds `outputs / groups`; the weight of a
    transposed convolution is `(inputs, outputs / groups, *kernel)`, for which torch swaps the two; that of a
    bilinear layer is `(outputs, inputs1, inputs2)`: each output sums over all products of two inputs.

    Raises:
        UserError: a tensor of fewer than two dimensions has no fans.
    """
    if weight.ndim < 2:
        raise UserError(
            f"a tensor of shape {tuple(weight.shape)} has no fan_in and fan_out; initialise it with zeros,"
            " constant, normal or uniform."
        )
    first, second, kernel = weight.shape[0], weight.shape[1], prod(weight.shape[2:])
    if isinstance(layer, TRANSPOSED):
        return Fans(first // layer.groups * kernel, second * kernel)
    if isinstance(layer, nn.Bilinear):
        return Fans(second * kernel, first)
    groups = layer.groups if isinstance(layer, CONVOLUTIONS) else 1
    return Fans(second * kernel, first // groups * kernel)
