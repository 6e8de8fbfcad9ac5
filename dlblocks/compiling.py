"""A net compiled by torch, which runs as it is where it can't be compiled."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from dlblocks.errors import first_line


def compiled(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """What computes the net's output by a compiled copy of its code; the parameters stay the net's own.

    It is compiled at the first call. Where that fails, a warning says why, and the net runs as it is.
    """

    # A function around it: dynamo passes over the frames of torch's own containers, and keys of checkpoints
    # stay those of the net.
    def forward(x: Tensor) -> Tensor:
        out: Tensor = net(x)
        return out

    function: nn.Module | Callable[[Tensor], Tensor] = torch.compile(forward)

    def run(x: Tensor) -> Tensor:
        nonlocal function
        try:
            out: Tensor = function(x)
            return out
        except TorchDynamoException as error:
            reason = first_line(error)
            warnings.warn(
                f"compile=true: the net can't be compiled here ({reason}); it trains as it is.", stacklevel=2
            )
            function = net
            plain: Tensor = net(x)
            return plain

    return run
