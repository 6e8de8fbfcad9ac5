"""Simplified AdEMAMix."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dlblocks.optimizers.base import Group, State, TensorOptimizer, averaged, decay


class SimplifiedAdEMAMix(TensorOptimizer):
    """AdEMAMix with one momentum and the gradient itself (Morwani et al. 2025, arXiv:2502.02431).

    `m_t = beta_1 m_(t-1) + g`; `v` as Adam;
    `theta -= lr * (m_t + alpha g) / (sqrt(v_t / (1 - beta_2^t)) + eps)`. The momentum is a sum, not an
    average: lr is about `1 - beta_1` of Adam's.

    Args:
        params: parameters or groups.
        lr: learning rate.
        betas: decay rates of the momentum and of the average of g^2.
        alpha: weight of the gradient.
        eps: added to the root.
        weight_decay: strength of the decoupled decay.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.99, 0.95),
        alpha: float = 0.0,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, alpha=alpha, eps=eps, weight_decay=weight_decay)

    def update(self, theta: Tensor, g: Tensor, state: State, group: Group) -> None:
        beta_1, beta_2 = group["betas"]
        m = state.setdefault("momentum_buffer", torch.zeros_like(g)).mul_(beta_1).add_(g)
        v = averaged(state, "exp_avg_sq", g.square(), beta_2)
        root = (v / (1 - beta_2 ** state["step"])).sqrt_().add_(group["eps"])
        decay(theta, group)
        theta.addcdiv_(m.add(g, alpha=group["alpha"]), root, value=-group["lr"])
