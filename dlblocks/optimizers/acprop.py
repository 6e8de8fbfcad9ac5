"""AdaBelief with an asynchronous denominator."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dlblocks.optimizers.base import Group, State, TensorOptimizer, averaged, decay


class ACProp(TensorOptimizer):
    """AdaBelief that divides by the variance before this gradient (Zhuang et al. 2021, arXiv:2110.05454).

    `m_t = beta_1 m_(t-1) + (1 - beta_1) g`; `theta -= lr * g / (sqrt(s_(t-1) / (1 - beta_2^(t-1))) + eps)`;
    `s_t = beta_2 s_(t-1) + (1 - beta_2) (g - m_t)^2`. The first step only sets m and s; where s is 0, as behind a relu
    that has let nothing through yet, so does the first gradient.

    Args:
        params: parameters or groups.
        lr: learning rate.
        betas: decay rates of the averages of g and of its squared deviation.
        eps: added to the root.
        weight_decay: strength of the decoupled decay.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-16,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def update(self, theta: Tensor, g: Tensor, state: State, group: Group) -> None:
        beta_1, beta_2 = group["betas"]
        t = state["step"]
        before = state.get("variance")
        if before is not None:
            decay(theta, group)
            root = (before / (1 - beta_2 ** (t - 1))).sqrt_().add_(group["eps"])
            theta.addcdiv_(g * (before > 0), root, value=-group["lr"])
        m = averaged(state, "exp_avg", g, beta_1)
        averaged(state, "variance", torch.square(g - m), beta_2)
