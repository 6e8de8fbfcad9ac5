"""Optimisers that weigh each coordinate by whether the gradient and the step to be agree in sign."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dlblocks.optimizers.base import Group, State, TensorOptimizer, adam_direction, averaged, decay, decayed


class PowerSign(TensorOptimizer):
    """Gradients times a power of their agreement with the momentum (Bello et al. 2017, arXiv:1709.07417).

    `m_t = beta m_(t-1) + (1 - beta) g`; `theta -= lr * factor^(sign(g) sign(m_t)) * g`.

    Args:
        params: parameters or groups.
        lr: learning rate.
        beta: decay rate of the average of g.
        factor: factor where g and m agree; its inverse where they don't.
        weight_decay: strength of the l2 decay.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        beta: float = 0.9,
        factor: float = 2.718281828459045,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, beta=beta, factor=factor, weight_decay=weight_decay)

    def update(self, theta: Tensor, g: Tensor, state: State, group: Group) -> None:
        g = decayed(theta, g, group)
        agreement = _agreement(g, state, group)
        theta.addcmul_(torch.pow(group["factor"], agreement), g, value=-group["lr"])


class AddSign(TensorOptimizer):
    """Gradients times a number plus their agreement with the momentum (Bello et al. 2017, arXiv:1709.07417).

    `m_t = beta m_(t-1) + (1 - beta) g`; `theta -= lr * (alpha + sign(g) sign(m_t)) * g`.

    Args:
        params: parameters or groups.
        lr: learning rate.
        beta: decay rate of the average of g.
        alpha: the number; at 1, the step is twice g where g and m agree, and 0 where they don't.
        weight_decay: strength of the l2 decay.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        beta: float = 0.9,
        alpha: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, beta=beta, alpha=alpha, weight_decay=weight_decay)

    def update(self, theta: Tensor, g: Tensor, state: State, group: Group) -> None:
        g = decayed(theta, g, group)
        agreement = _agreement(g, state, group)
        theta.addcmul_(agreement + group["alpha"], g, value=-group["lr"])


class CautiousAdamW(TensorOptimizer):
    """AdamW that moves only where its step agrees with the gradient (Liang et al. 2024, arXiv:2411.16085).

    `d` as Adam's direction, `s = 1` where `d g > 0`, else 0; `theta -= lr * weight_decay * theta`, then
    `theta -= lr * n / (sum(s) + 1) * s * d`, n the number of a tensor's elements.

    Args:
        params: parameters or groups.
        lr: learning rate.
        betas: decay rates of the averages of g and of g^2.
        eps: added to the root.
        weight_decay: strength of the decoupled decay.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def update(self, theta: Tensor, g: Tensor, state: State, group: Group) -> None:
        direction = adam_direction(g, state, group)
        agree = (direction * g > 0).to(g.dtype)
        decay(theta, group)
        theta.sub_(direction * agree * (group["lr"] * g.numel() / (agree.sum() + 1)))


def _agreement(g: Tensor, state: State, group: Group) -> Tensor:
    """1 where the gradient and its average have one sign, -1 where they have not, 0 where one is 0."""
    return g.sign() * averaged(state, "exp_avg", g, group["beta"]).sign()
