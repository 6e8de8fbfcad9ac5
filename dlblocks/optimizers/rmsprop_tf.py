"""TensorFlow's RMSprop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dlblocks.optimizers.base import Group, State, TensorOptimizer, averaged, decayed


class RMSpropTF(TensorOptimizer):
    """RMSprop as TensorFlow has it (Tieleman & Hinton 2012; tf.compat.v1.train.RMSPropOptimizer).

    `v_0 = 1`, `v_t = alpha v_(t-1) + (1 - alpha) g^2`; centered: `s = v_t - a_t^2` with the average `a` of g,
    else `s = v_t`; `b_t = momentum b_(t-1) + lr g / sqrt(s + eps)`; `theta -= b_t`.

    Args:
        params: parameters or groups.
        lr: learning rate.
        alpha: decay rate of the averages.
        eps: added inside the root.
        weight_decay: strength of the l2 decay.
        momentum: share of the last step that is kept.
        centered: divide by the deviation of g instead of its root mean square.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        alpha: float = 0.9,
        eps: float = 1e-10,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            alpha=alpha,
            eps=eps,
            weight_decay=weight_decay,
            momentum=momentum,
            centered=centered,
        )

    def update(self, theta: Tensor, g: Tensor, state: State, group: Group) -> None:
        g = decayed(theta, g, group)
        if "exp_avg_sq" not in state:
            state["exp_avg_sq"] = torch.ones_like(g)
        s = averaged(state, "exp_avg_sq", g.square(), group["alpha"])
        if group["centered"]:
            # A variance; rounding may put it below 0.
            s = (s - averaged(state, "exp_avg", g, group["alpha"]).square()).clamp_min(0)
        step = group["lr"] * g / (s + group["eps"]).sqrt_()
        if group["momentum"]:
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(g)
            step = state["momentum_buffer"].mul_(group["momentum"]).add_(step)
        theta.sub_(step)
