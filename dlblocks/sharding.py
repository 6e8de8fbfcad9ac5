"""A net divided among processes: torch's `fully_shard` (FSDP2) as a Lightning strategy, `strategy=fsdp2`.

Every process holds its share of each parameter, of its gradient and of the optimizer's state; a block's
parameters are gathered while it computes. Checkpoints hold whole tensors in the format of a single process:
either loads what the other saved.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from dlblocks.errors import UserError, first_line

NAME = "fsdp2"
PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
_INSTEAD = "Use another, such as adamw, or trainer=ddp."
# Of the length of an update: rounding is far below, another direction far above.
_NEAR = 0.02
_TIMEOUT = timedelta(minutes=30)


def shard(net: nn.Module, mesh: DeviceMesh) -> None:
    """Divide a net's parameters among the processes of a mesh, in place; once.

    Each layer of a `Sequential` and each entry of a `ModuleList` is gathered by itself, the rest with the net.

    Raises:
        UserError: a parameter of no dimension, which can't be divided.
    """
    if isinstance(net, FSDPModule) or not any(True for _ in net.parameters()):
        return
    for name, parameter in net.named_parameters():
        if not parameter.ndim:
            raise UserError(
                f"trainer.strategy={NAME}: {name} is a single number without a dimension, which can't be divided."
                " Give it the shape (1,), or use trainer=ddp."
            )
    for block in reversed(list(_blocks(net))):  # inner ones first
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)


def _blocks(net: nn.Module) -> Iterator[nn.Module]:
    for part in net.modules():
        if isinstance(part, (nn.Sequential, nn.ModuleList)):
            for block in part:
                if not isinstance(block, nn.ModuleList) and any(True for _ in block.parameters()):
                    yield block


def check_optimizer(build: Callable[[nn.Module], Optimizer], mesh: DeviceMesh) -> None:
    """Refuse an optimizer that can't update divided parameters as it updates whole ones.

    It is tried on a small net: an update, its state saved and loaded, and another update, once divided and
    once whole. Optimisers that need more than torch's operations on divided tensors do fail, and those that
    draw random numbers end elsewhere.

    Raises:
        UserError: it fails, or gives other weights.
    """
    device = mesh.device_type
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(device)
        x = torch.randn(8, 6).to(device)
        other = copy.deepcopy(net)
        before = [parameter.detach().clone() for parameter in net.parameters()]
        shard(other, mesh)
        try:
            _two_updates(net, build, x)
            _two_updates(other, build, x)
        except UserError:
            raise
        except Exception as error:
            reason = first_line(error)
            raise UserError(f"optimizer: can't update a divided net ({reason}). {_INSTEAD}") from error
    for old, one, two in zip(before, net.parameters(), other.parameters(), strict=True):
        moved, apart = (one - old).norm(), (whole(two) - one.cpu()).norm()
        if not apart <= _NEAR * moved.cpu():
            raise UserError(f"optimizer: gives a divided net other weights than a whole one. {_INSTEAD}")


def _two_updates(net: nn.Module, build: Callable[[nn.Module], Optimizer], x: Tensor) -> None:
    optimizer = build(net)
    for last in (False, True):
        if callable(switch := getattr(optimizer, "train", None)):  # a schedule-free one
            switch()
        torch.manual_seed(1)

        def closure(optimizer: Optimizer = optimizer) -> float:
            optimizer.zero_grad()
            loss: Tensor = net(x).square().mean()
            torch.autograd.backward(loss)
            return float(loss.detach())

        optimizer.step(closure)
        if not last:
            state = whole(optimizer.state_dict())
            optimizer = build(net)
            load_whole(optimizer, state)


def whole(value: Any) -> Any:
    """A copy on the CPU of what is nested in dictionaries and lists, with each divided tensor put together.

    All processes call it together.
    """
    return tree_map_only(
        Tensor, lambda t: (t.full_tensor() if isinstance(t, DTensor) else t).detach().cpu(), value
    )


def divided(full: Tensor, like: Tensor) -> Tensor:
    """This process's share of a tensor, divided as another one is."""
    if not isinstance(like, DTensor):
        return full
    # Every process has the whole tensor, so that none has to be sent.
    return distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def load_whole(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load the state of an optimizer of the whole net into one of the divided net."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    of_number = dict(zip(numbers, parameters, strict=True))
    # An optimizer may also keep what is of no parameter, under a name.
    shares = {
        key: _divided_as(values, of_number[key]) if key in of_number else values
        for key, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": shares})


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for nets that divide themselves, with all processes sharing the data.

    Lightning's own full checkpoints number the parameters in the order of the module, torch's optimisers in
    that of their groups; where the two differ, states would be loaded into other parameters. So these
    checkpoints are put together and divided here.
    """

    def __init__(self, timeout: timedelta = _TIMEOUT) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=timeout)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        state: dict[str, Any] = whole(self.lightning_module.state_dict())
        return state if self.is_global_zero else {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        inner = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state: dict[str, Any] = whole(inner.state_dict())
        return state if self.is_global_zero else {}

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        module = self.lightning_module
        assert module is not None
        own = module.state_dict()
        state = {
            name: divided(value, own[name]) if name in own else value
            for name, value in checkpoint["state_dict"].items()
        }
        module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            load_whole(optimizer, state)


def _divided_as(values: Any, parameter: Tensor) -> Any:
    """What an optimizer keeps of one parameter, where tensors of its shape are divided as it is."""
    return tree_map_only(Tensor, lambda t: divided(t, parameter) if t.shape == parameter.shape else t, values)
