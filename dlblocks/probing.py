"""A look at a net that leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

_DROPOUT = nn.modules.dropout._DropoutNd


@contextmanager
def probed(net: nn.Module, *, training: bool = False, gradients: bool = False) -> Iterator[None]:
    """Run a net; afterwards its modes, buffers and torch's random state on the CPU are what they were.

    Args:
        net: any module.
        training: run it as in training, but without dropout: norm layers take the batch's own mean and
            variance.
        gradients: record what gradients need.
    """
    modes = [(part, part.training) for part in net.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in net.buffers()] if training else []
    net.train(training)
    for part in net.modules():
        if isinstance(part, _DROPOUT):
            part.eval()
    try:
        with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(gradients):
            yield
    finally:
        for part, mode in modes:
            part.training = mode
        with torch.no_grad():
            for buffer, kept in buffers:
                buffer.copy_(kept)
