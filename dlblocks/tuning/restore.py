"""Leave a Trainer, a module and the random state as they were, whatever happens in between."""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from types import BuiltinMethodType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.utilities.device_dtype_mixin import _DeviceDtypeModuleMixin
from torch import nn
from torch.utils.data import Dataset, Sampler

from dlblocks.probing import copied, random_states

# What trials replace in a Trainer and its strategy.
_TRAINER = ("callbacks", "loggers", "limit_train_batches", "limit_val_batches", "should_stop", "state")
_STRATEGY = ("_lightning_module", "optimizers", "lr_scheduler_configs")

# Of what loaders lead to: what holds no generator of theirs, and how far to look.
_LEFT_OUT = (
    pl.Trainer,
    ModuleType,
    type,
    torch.Tensor,
    np.ndarray,
    str,
    bytes,
    int,
    float,
    random.SystemRandom,
)
_MOST_HELD, _MOST_ITEMS = 10_000, 1000


@contextmanager
def untouched(trainer: pl.Trainer, module: pl.LightningModule) -> Iterator[None]:
    """Run trials, on copies of the module, inside the Trainer; afterwards, also after an exception or
    Ctrl-C, everything in it is what it was.

    Put back: random states (Python, NumPy, torch and CUDA), callbacks, loggers, limits, optimizers,
    schedulers and module of the Trainer, and the mode (training or evaluation) of each part of the
    module. Weights and buffers are not put back, since no trial may touch them.
    """
    strategy = trainer.strategy
    kept = {name: getattr(trainer, name) for name in _TRAINER} | {"state": copy.copy(trainer.state)}
    of_strategy = {name: getattr(strategy, name) for name in _STRATEGY}
    modes = [(part, part.training) for part in module.modules()]
    try:
        with random_states():
            yield
    finally:
        for name, value in kept.items():
            setattr(trainer, name, value)
        for name, value in of_strategy.items():
            setattr(strategy, name, value)
        for part, training in modes:
            part.training = training


@contextmanager
def same_order(*roots: Any) -> Iterator[None]:
    """Iterate over loaders, which afterwards serve the batches that they would have served.

    Put back, of all that the attributes of some loaders, data modules or modules lead to: random generators (of torch,
    NumPy and Python), the place of what has one (`state_dict`), and the plain numbers of a sampler, which may count its
    epochs. Not put back: generators in global variables, and places that nothing tells, such as an open file's.
    """
    held = list(_held(roots))
    with ExitStack() as stack:
        for one in held:
            if (state := _state(one)) is not None:
                stack.callback(_set_state, one, state)
        yield


def _held(roots: Iterable[Any]) -> Iterator[Any]:
    """What attributes lead to, the nearest first; collate functions and transforms may hold generators too."""
    waiting, seen = deque(roots), set[int]()
    while waiting and len(seen) < _MOST_HELD:
        one = waiting.popleft()
        if id(one) in seen or isinstance(one, _LEFT_OUT):
            continue
        seen.add(id(one))
        yield one
        waiting.extend(_parts(one))


def _parts(one: Any) -> Iterable[Any]:
    if isinstance(one, dict):
        return one.values() if len(one) <= _MOST_ITEMS else ()
    if isinstance(one, (list, tuple, set)):
        return one if len(one) <= _MOST_ITEMS else ()
    if isinstance(one, partial):
        return (one.func, *one.args, *one.keywords.values())
    if isinstance(one, (MethodType, BuiltinMethodType)):
        return (one.__self__,)
    if isinstance(one, FunctionType):
        return one.__closure__ or ()
    if isinstance(one, CellType):
        with suppress(ValueError):  # empty
            return (one.cell_contents,)
    return getattr(one, "__dict__", {}).values()


def _state(one: Any) -> Any:
    """What has to be put back; None for nothing."""
    if isinstance(one, torch.Generator):
        return one.get_state()
    if isinstance(one, np.random.RandomState):
        return one.get_state()
    if isinstance(one, np.random.Generator):
        return one.bit_generator.state
    if isinstance(one, np.random.BitGenerator):
        return one.state
    if isinstance(one, random.Random):
        return one.getstate()
    if _stateful(one):
        return copy.deepcopy(one.state_dict())
    if isinstance(one, Sampler):
        return {name: value for name, value in vars(one).items() if isinstance(value, (int, float))}
    return None


def _set_state(one: Any, state: Any) -> None:
    if isinstance(one, (torch.Generator, np.random.RandomState)):
        one.set_state(state)
    elif isinstance(one, np.random.Generator):
        one.bit_generator.state = state
    elif isinstance(one, np.random.BitGenerator):
        one.state = state
    elif isinstance(one, random.Random):
        one.setstate(state)
    elif _stateful(one):
        one.load_state_dict(state)
    else:
        vars(one).update(state)


def _stateful(one: Any) -> bool:
    """Whether it has a place to go back to, as loaders may; the state of modules and the like is another thing."""
    return (
        isinstance(one, (Iterable, Dataset))
        and not isinstance(one, nn.Module)
        and all(callable(getattr(one, name, None)) for name in ("state_dict", "load_state_dict"))
    )


@contextmanager
def same_values(module: nn.Module) -> Iterator[None]:
    """Let a Trainer with a `true` precision convert a module; afterwards dtypes and values are what they were.

    Converting puts other tensors into the module's place and leaves these alone, so that no copy is needed.
    """
    parameters = [(p, p.data, None if p.grad is None else p.grad.data) for p in module.parameters()]
    buffers = [(part, dict(part._buffers)) for part in module.modules()]
    dtypes = [(part, part._dtype) for part in module.modules() if isinstance(part, _DeviceDtypeModuleMixin)]
    try:
        yield
    finally:
        for parameter, data, gradient in parameters:
            if parameter.dtype != data.dtype:
                parameter.grad = None
                parameter.data = data
                parameter.grad = gradient
        for part, kept in buffers:
            for name, buffer in kept.items():
                now = part._buffers.get(name)
                if buffer is not None and now is not None and now.dtype != buffer.dtype:
                    part._buffers[name] = buffer
        for mixed, dtype in dtypes:
            mixed._dtype = dtype


def detached_copy(module: pl.LightningModule, trainer: pl.Trainer) -> pl.LightningModule:
    """A copy that a trial may spoil: it sees the Trainer and its data as the module does, and what it logs goes nowhere.

    Raises:
        UserError: an attribute can't be copied.
    """
    made = copied(module, shared=_of_the_trainer(trainer))
    made.trainer = trainer
    for part in made.modules():
        _clear_gradients(part)
        if isinstance(part, pl.LightningModule):
            part._compiler_ctx = None  # what was compiled is not, in a copy
    return made


def _of_the_trainer(trainer: pl.Trainer) -> Iterator[Any]:
    """What modules may refer to, and no trial changes: the Trainer, its callbacks, data module, loaders and data sets."""
    yield from (trainer, trainer.strategy, *trainer.callbacks, *trainer.loggers)  # type: ignore[attr-defined]
    for loop in (trainer.fit_loop, trainer.fit_loop.epoch_loop.val_loop):
        given = loop._data_source.instance
        loaders = loop._combined_loader.flattened if loop._combined_loader is not None else ()
        for one in (given, trainer.datamodule, *loaders):  # type: ignore[attr-defined]
            # A module may have its loaders itself.
            if not isinstance(one, nn.Module) and one is not None:
                yield one
                if (data := getattr(one, "dataset", None)) is not None:
                    yield data


def _clear_gradients(part: nn.Module) -> None:
    for parameter in part.parameters(recurse=False):
        parameter.grad = None
