"""A look at a net that leaves no trace."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from dlblocks.errors import UserError, first_line
from dlblocks.rebinding import rebind

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


def copied(net: Net, shared: Iterable[Any] = ()) -> Net:
    """A copy of a net that runs nothing of the original, also of one that keeps what it has computed, as old `weight_norm`
    does: torch refuses to copy tensors that have a history.

    Args:
        net: stays as it is.
        shared: objects that the copy refers to as the net does.

    Raises:
        UserError: an attribute can't be copied.
    """
    memo: dict[int, Any] = {id(one): one for one in shared}
    computed = [
        (part, name, value)
        for part in net.modules()
        for name, value in vars(part).items()
        if isinstance(value, Tensor) and value.grad_fn is not None
    ]
    for part, name, value in computed:
        vars(part)[name] = value.detach()
    known = dict(memo)
    try:
        made = copy.deepcopy(net, memo)
    except Exception as error:
        if (told := _uncopied(net, known)) is None:
            raise
        raise UserError(told) from error
    finally:
        for part, name, value in computed:
            vars(part)[name] = value
    rebind(memo)
    return made


def _uncopied(net: nn.Module, known: dict[int, Any]) -> str | None:
    """Which attribute of a net can't be copied, and why; None if each of them can, as where memory ran out."""
    for place, part in net.named_modules():
        for name, value in vars(part).items():
            # Those of a net are not attributes of their own; a LightningModule is copied without its Trainer.
            if name in ("_parameters", "_buffers", "_modules", "_trainer"):
                continue
            try:
                copy.deepcopy(value, dict(known))
            except Exception as error:
                path = ".".join(filter(None, (place, name)))
                return (
                    f"{type(net).__name__}.{path}: can't be copied ({first_line(error)}), but only copies of the module are"
                    f" tried. Make it where it is needed, or leave it out of copies with a __deepcopy__ of"
                    f" {type(value).__name__} or __getstate__ of {type(part).__name__}."
                )
    return None
