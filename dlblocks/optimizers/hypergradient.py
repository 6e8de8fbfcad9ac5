"""Optimisers that descend on their learning rate too."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dlblocks.optimizers.base import Group, State, TensorOptimizer, adam_direction, gradient_of


class _Hypergradient(TensorOptimizer):
    """`theta -= (lr + c_t) d_t`, `c_t = c_(t-1) + hyper_lr <g_t, d_(t-1)>`; the product over all parameters."""

    def before(self, loss: Any) -> None:  # noqa: ARG002
        moving = list(self.moving())
        if not moving:
            return
        first, group = moving[0]
        products = [
            (gradient_of(theta) * self.state[theta]["direction"]).sum()
            for theta, _ in moving
            if "direction" in self.state[theta]
        ]
        # What belongs to no one tensor is kept with the first, as a checkpoint has no other place for it.
        self.change = self.state[first].get("change", torch.zeros_like(first.sum()))
        if products:
            self.change = self.change + group["hyper_lr"] * torch.stack(products).sum()
        self.state[first]["change"] = self.change

    @abstractmethod
    def direction(self, g: Tensor, state: State, group: Group) -> Tensor:
        """The step for lr = 1."""

    def update(self, theta: Tensor, g: Tensor, state: State, group: Group) -> None:
        state["direction"] = self.direction(g, state, group).clone()
        theta.sub_(state["direction"] * (group["lr"] + self.change))


class SGDHD(_Hypergradient):
    """SGD whose rate follows its own gradient (Baydin et al. 2017, arXiv:1703.04782).

    `c_t = c_(t-1) + hyper_lr <g_t, g_(t-1)>`, `theta -= (lr + c_t) g_t`; the product over all parameters.

    Args:
        params: parameters or groups.
        lr: the first learning rate.
        hyper_lr: learning rate of the learning rate.
    """

    def __init__(self, params: Iterable[Any], lr: float = 0.01, hyper_lr: float = 1e-3) -> None:
        super().__init__(params, lr=lr, hyper_lr=hyper_lr)

    def direction(self, g: Tensor, state: State, group: Group) -> Tensor:  # noqa: ARG002
        return g


class AdamHD(_Hypergradient):
    """Adam whose rate follows its own gradient (Baydin et al. 2017, arXiv:1703.04782).

    `c_t = c_(t-1) + hyper_lr <g_t, d_(t-1)>`, `theta -= (lr + c_t) d_t`, d Adam's direction; the product
    over all parameters.

    Args:
        params: parameters or groups.
        lr: the first learning rate.
        betas: decay rates of the averages of g and of g^2.
        eps: added to the root, after the bias correction.
        hyper_lr: learning rate of the learning rate.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        hyper_lr: float = 1e-8,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, hyper_lr=hyper_lr)

    def direction(self, g: Tensor, state: State, group: Group) -> Tensor:
        return adam_direction(g, state, group)
