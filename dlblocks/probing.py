"""A look at a net that leaves no trace."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Net = TypeVar("Net", bound=nn.Module)

_DROPOUT = nn.modules.dropout._DropoutNd


@contextmanager
def probed(net: nn.Module, *, training: bool = False, gradients: bool = False) -> Iterator[None]:
    """Run a net; afterwards its modes, its buffers and all global random states are what they were.

    Args:
        net: any module.
        training: run it as in training, but without dropout: norm layers take the batch's own mean and
            variance.
        gradients: record what gradients need.
    """
    modes = [(part, part.training) for part in net.modules()]
    # A module may write into a buffer, or put another tensor in its place.
    buffers = [
        (part, name, buffer, None if buffer is None else buffer.clone())
        for part in net.modules()
        for name, buffer in part._buffers.items()
    ]
    net.train(training)
    for part in net.modules():
        if isinstance(part, _DROPOUT):
            part.eval()
    try:
        with random_states(), torch.set_grad_enabled(gradients):
            yield
    finally:
        for part, mode in modes:
            part.training = mode
        with torch.no_grad():
            for part, name, buffer, kept in buffers:
                part._buffers[name] = buffer
                if buffer is not None and kept is not None and not torch.equal(buffer, kept):
                    buffer.copy_(kept)


@contextmanager
def random_states() -> Iterator[None]:
    """Put the global random states back: of Python, NumPy, torch, CUDA and MPS.

    Lightning's `isolate_rng` does so only if nothing is raised.
    """
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)


def copied(net: Net) -> Net:
    """A copy of a net, also of one that keeps what it has computed, as old `weight_norm` does: torch refuses to copy
    tensors that have a history.

    Args:
        net: stays as it is.
    """
    computed = [
        (part, name, value)
        for part in net.modules()
        for name, value in vars(part).items()
        if isinstance(value, Tensor) and value.grad_fn is not None
    ]
    for part, name, value in computed:
        vars(part)[name] = value.detach()
    try:
        return copy.deepcopy(net)
    finally:
        for part, name, value in computed:
            vars(part)[name] = value
