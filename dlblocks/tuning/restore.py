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
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from dlblocks.probing import copied, random_states
from dlblocks.tuning.attributes import Keeper, PutBack, has_values, keep_values, same_attributes

# What trials replace in a strategy.
_STRATEGY = ("_lightning_module", "_model", "optimizers", "lr_scheduler_configs")
# The hooks of a module that a search calls on the module itself: for batches, and those before and after it.
_OF_BATCHES = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
_AROUND = ("prepare_data", "setup", "configure_model", "teardown", *_OF_BATCHES)
# What follows a module that is moved or converted.
_PLACE = ("_device", "_dtype")

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
def untouched(trainer: pl.Trainer, module: pl.LightningModule, whole: bool = False) -> Iterator[None]:
    """Run trials, on copies of the module, inside the Trainer; afterwards, also after an exception or
    Ctrl-C, everything in it is what it was.

    Put back: random states (Python, NumPy, torch and CUDA); the attributes of the Trainer, its loops and connectors, with
    what was logged and how many batches there are; optimizers, schedulers and module of its strategy; the attributes of
    the data module and of each part of the module, such as its mode, with its layers, parameters and buffers. Meanwhile
    nothing is profiled.

    No trial touches the values of weights and buffers, but the module's own hooks may, which run on the module itself. If
    it has hooks of batches, copies of its buffers are kept; if it is to run `whole`, through its `setup` and `teardown`,
    and has such hooks, copies of all of its weights as well, on the CPU. Lazy layers stay as they have become.
    """
    strategy = trainer.strategy
    fitting, validating = trainer.fit_loop, trainer.fit_loop.epoch_loop.val_loop
    others = [trainer.validate_loop, trainer.test_loop, trainer.predict_loop]
    loops: list[Any] = [fitting, validating, *others]
    connectors = [trainer._logger_connector, trainer._data_connector]
    owners = [trainer, trainer.state, *connectors, *loops, *(loop._data_source for loop in loops)]
    if (datamodule := getattr(trainer, "datamodule", None)) is not None:
        owners.append(datamodule)
    of_strategy = {name: getattr(strategy, name) for name in _STRATEGY}
    with random_states(), same_attributes(*owners), _same_module(module, whole):
        trainer.profiler = PassThroughProfiler()  # type: ignore[attr-defined]
        try:
            yield
        finally:
            for name, value in of_strategy.items():
                setattr(strategy, name, value)


@contextmanager
def _same_module(module: pl.LightningModule, whole: bool) -> Iterator[None]:
    own = any(is_overridden(name, module) for name in (_AROUND if whole else _OF_BATCHES))
    tensors = [*module.buffers(), *(module.parameters() if whole else ())] if own else []
    keeper = Keeper()
    with ExitStack() as stack:
        for tensor in filter(has_values, tensors):
            stack.callback(keep_values(tensor, "cpu"))
        for part in module.modules():
            if not (isinstance(part, LazyModuleMixin) and part.has_uninitialized_params()):
                stack.callback(_put_back, part, type(part), keeper.keep(part))
        yield


def _put_back(part: nn.Module, kind: type[nn.Module], attributes: PutBack) -> None:
    """A part whose class has changed, as that of one that is parametrized, is again of the old one."""
    place = {name: vars(part)[name] for name in _PLACE if name in vars(part)}
    moved = {name: b.device for name, b in part._buffers.items() if b is not None}
    part.__class__ = kind
    attributes()
    vars(part).update(place)
    for name, buffer in part._buffers.items():
        if buffer is not None and moved.get(name, buffer.device) != buffer.device:
            part._buffers[name] = buffer.to(moved[name])


@contextmanager
def same_order(*roots: Any) -> Iterator[None]:
    """Iterate over loaders, which afterwards serve the batches that they would have served.

    Put back, of all that the attributes of some loaders, data modules or modules lead to: random generators (of torch,
    NumPy and Python), the place of what has one (`state_dict`), and the attributes of other data sets, samplers and
    loaders, which may count epochs or keep an order (`attributes.Keeper`). Workers that a loader keeps have no part in
    it: others are started, and ended. Not put back: generators in global variables, and places that nothing tells, such as an open file's.
    """
    keeper = Keeper()
    with ExitStack() as stack:
        for one in list(_held(roots)):
            if (state := _state(one)) is not None:
                stack.callback(_set_state, one, state)
            elif _serves(one) and hasattr(one, "__dict__"):
                stack.callback(keeper.keep(one))
            if isinstance(one, DataLoader):
                stack.callback(_end_workers, one, one._iterator)
                one._iterator = None
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
    else:
        one.load_state_dict(state)


def _stateful(one: Any) -> bool:
    """Whether it has a place to go back to, as loaders may; the state of modules and the like is another thing."""
    return _serves(one) and all(
        callable(getattr(one, name, None)) for name in ("state_dict", "load_state_dict")
    )


def _serves(one: Any) -> bool:
    """Whether it may be a loader, or what a loader takes its batches from."""
    return isinstance(one, (Iterable, Dataset)) and not isinstance(one, nn.Module)


def _end_workers(loader: DataLoader[Any], before: Any) -> None:
    """Persistent workers have random states and copies of the data set, which go on from where they are."""
    started, loader._iterator = loader._iterator, before
    if started is not before and isinstance(started, _MultiProcessingDataLoaderIter):
        started._shutdown_workers()


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
