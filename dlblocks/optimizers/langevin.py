"""Gradient descent with the noise at which it draws from the posterior instead of ending at its top."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dlblocks.optimizers.base import Group, State, TensorOptimizer, averaged, decayed


class SGLD(TensorOptimizer):
    """Stochastic gradient Langevin dynamics (Welling & Teh 2011, ICML).

    `theta -= lr * g + sqrt(2 lr temperature) n`, n standard normal, from torch's global generator: for a
    small lr, draws from the density `exp(-loss / temperature)`. The paper's step size is 2 lr.

    Args:
        params: parameters or groups.
        lr: learning rate.
        temperature: 1 for a loss summed over the data set, 1 / (number of instances) for its mean.
        weight_decay: strength of the l2 decay: a normal prior.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        temperature: float = 1e-4,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, temperature=temperature, weight_decay=weight_decay)

    def update(self, theta: Tensor, g: Tensor, state: State, group: Group) -> None:  # noqa: ARG002
        g = decayed(theta, g, group)
        deviation = (2 * group["lr"] * group["temperature"]) ** 0.5
        theta.sub_(g, alpha=group["lr"]).add_(torch.randn_like(theta), alpha=deviation)


class PSGLD(TensorOptimizer):
    """SGLD preconditioned as RMSprop (Li et al. 2015, arXiv:1512.07666), without its term of the curvature.

    `v_t = alpha v_(t-1) + (1 - alpha) g^2`; `G = 1 / (sqrt(v_t) + eps)`;
    `theta -= lr * G g + sqrt(2 lr temperature G) n`, n standard normal, from torch's global generator.

    Args:
        params: parameters or groups.
        lr: learning rate.
        temperature: 1 for a loss summed over the data set, 1 / (number of instances) for its mean.
        alpha: decay rate of the average of g^2.
        eps: added to the root.
        weight_decay: strength of the l2 decay: a normal prior.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        temperature: float = 1e-4,
        alpha: float = 0.99,
        eps: float = 1e-5,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, lr=lr, temperature=temperature, alpha=alpha, eps=eps, weight_decay=weight_decay
        )

    def update(self, theta: Tensor, g: Tensor, state: State, group: Group) -> None:
        g = decayed(theta, g, group)
        root = averaged(state, "exp_avg_sq", g.square(), group["alpha"]).sqrt().add_(group["eps"])
        noise = torch.randn_like(theta).mul_((2 * group["lr"] * group["temperature"] / root).sqrt())
        theta.addcdiv_(g, root, value=-group["lr"]).add_(noise)
