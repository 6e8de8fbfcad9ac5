"""ADOPT."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dlblocks.optimizers.base import Group, State, TensorOptimizer, averaged, decay


class ADOPT(TensorOptimizer):
    """Adam that divides by the second moment of the gradients before (Taniguchi et al. 2024, arXiv:2411.02853).

    `c = clip(g / max(sqrt(v_(t-1)), eps), t^(1/4))`; `m_t = beta_1 m_(t-1) + (1 - beta_1) c`;
    `theta -= lr * m_t`; `v_t = beta_2 v_(t-1) + (1 - beta_2) g^2`. The first step, t = 0, only sets
    `v_0 = g^2`.

    Args:
        params: parameters or groups.
        lr: learning rate.
        betas: decay rates of the averages of the normalised g and of g^2.
        eps: least denominator.
        weight_decay: strength of the decoupled decay.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.9999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def update(self, theta: Tensor, g: Tensor, state: State, group: Group) -> None:
        if "exp_avg_sq" not in state:
            state["exp_avg_sq"] = g.square()
            return
        beta_1, beta_2 = group["betas"]
        bound = (state["step"] - 1) ** 0.25
        normalised = g / state["exp_avg_sq"].sqrt().clamp_(min=group["eps"])
        m = averaged(state, "exp_avg", normalised.clamp_(-bound, bound), beta_1)
        decay(theta, group)
        theta.sub_(m, alpha=group["lr"])
        averaged(state, "exp_avg_sq", torch.square(g), beta_2)
