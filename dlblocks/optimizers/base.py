"""What our own optimisers share: the walk over the tensors, each with its state, and the closure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Group = dict[str, Any]
State = dict[str, Any]


class TensorOptimizer(Optimizer, ABC):
    """An optimizer that treats one tensor after the other; a subclass writes its formula in `update`.

    Args:
        params: parameters, `(name, parameter)` pairs, or groups of either.
        defaults: the options of groups that don't set them.
    """

    def __init__(self, params: Iterable[Any], **defaults: Any) -> None:
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.before(loss)
        for theta, group in self.moving():
            state: State = self.state[theta]
            state["step"] = state.get("step", 0) + 1
            self.update(theta, gradient_of(theta), state, group)
        return loss

    def before(self, loss: Any) -> None:
        """What is to be known of all tensors together before the first moves."""

    @abstractmethod
    def update(self, theta: Tensor, g: Tensor, state: State, group: Group) -> None:
        """Move `theta` in place; `state["step"]` is t = 1, 2, ..."""

    def moving(self) -> Iterator[tuple[Tensor, Group]]:
        """Every parameter that has a gradient, with its group."""
        for group in self.param_groups:
            for theta in group["params"]:
                if theta.grad is not None:
                    yield theta, group


def gradient_of(theta: Tensor) -> Tensor:
    """The gradient of a tensor that is known to have one."""
    assert theta.grad is not None
    return theta.grad


def squares_of(tensors: Iterable[Tensor]) -> Tensor:
    """The squared norm of all tensors together."""
    return torch.stack([tensor.square().sum() for tensor in tensors]).sum()


def decayed(theta: Tensor, g: Tensor, group: Group) -> Tensor:
    """The gradient with l2 decay."""
    return g.add(theta, alpha=group["weight_decay"]) if group["weight_decay"] else g


def decay(theta: Tensor, group: Group) -> None:
    """Decoupled decay, in place."""
    if group["weight_decay"]:
        theta.mul_(1 - group["lr"] * group["weight_decay"])


def averaged(state: State, key: str, value: Tensor, rate: float) -> Tensor:
    """`a_t = rate * a_(t-1) + (1 - rate) * value` with `a_0 = 0`, kept in the state."""
    if key not in state:
        state[key] = torch.zeros_like(value)
    average: Tensor = state[key]
    return average.lerp_(value, 1 - rate)


def adam_direction(g: Tensor, state: State, group: Group) -> Tensor:
    """Adam's step for lr = 1: `(m_t / (1 - beta_1^t)) / (sqrt(v_t / (1 - beta_2^t)) + eps)`."""
    beta_1, beta_2 = group["betas"]
    m = averaged(state, "exp_avg", g, beta_1)
    v = averaged(state, "exp_avg_sq", g.square(), beta_2)
    root = (v / (1 - beta_2 ** state["step"])).sqrt_().add_(group["eps"])
    direction: Tensor = (m / (1 - beta_1 ** state["step"])).div_(root)
    return direction
