"""Adamax with decoupled decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dlblocks.optimizers.base import Group, State, TensorOptimizer, averaged, decay


class AdamaxW(TensorOptimizer):
    """Adamax (Kingma & Ba 2014, arXiv:1412.6980) with decoupled decay (Loshchilov & Hutter 2017, arXiv:1711.05101).

    `m` as Adam; `u_t = max(beta_2 u_(t-1), |g| + eps)`; `theta -= lr * weight_decay * theta`, then
    `theta -= lr / (1 - beta_1^t) * m_t / u_t`.

    Args:
        params: parameters or groups.
        lr: learning rate.
        betas: decay rates of the average of g and of the largest `|g|`.
        eps: added to `|g|` inside the maximum.
        weight_decay: strength of the decoupled decay.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def update(self, theta: Tensor, g: Tensor, state: State, group: Group) -> None:
        beta_1, beta_2 = group["betas"]
        m = averaged(state, "exp_avg", g, beta_1)
        largest = state.setdefault("exp_inf", torch.zeros_like(g)).mul_(beta_2)
        torch.maximum(largest, g.abs().add_(group["eps"]), out=largest)
        decay(theta, group)
        theta.addcdiv_(m, largest, value=-group["lr"] / (1 - beta_1 ** state["step"]))
