"""Optimisers that look ahead by the change of their last direction, for games and saddle points."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dlblocks.optimizers.base import Group, State, TensorOptimizer, adam_direction, decay, decayed


def _optimistic(direction: Tensor, state: State, group: Group) -> Tensor:
    """`alpha d_t + beta (d_t - d_(t-1))`, `d_0 = d_1`; keeps `d_t`."""
    last = state.get("last", direction)
    state["last"] = direction
    ahead: Tensor = (direction * (group["alpha"] + group["beta"])).sub_(last, alpha=group["beta"])
    return ahead


class OptimisticGradientDescent(TensorOptimizer):
    """Gradient descent with a negative momentum (Daskalakis et al. 2017, arXiv:1711.00141).

    `theta -= lr * (alpha g_t + beta (g_t - g_(t-1)))`, `g_0 = g_1` (the general form: Mokhtari et al. 2019,
    arXiv:1901.08511).

    Args:
        params: parameters or groups.
        lr: learning rate.
        alpha: factor of the gradient.
        beta: factor of its change.
        weight_decay: strength of the l2 decay.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        alpha: float = 1.0,
        beta: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, alpha=alpha, beta=beta, weight_decay=weight_decay)

    def update(self, theta: Tensor, g: Tensor, state: State, group: Group) -> None:
        g = decayed(theta, g, group)
        theta.sub_(_optimistic(torch.clone(g), state, group), alpha=group["lr"])


class OptimisticAdam(TensorOptimizer):
    """Adam with a negative momentum (Daskalakis et al. 2017, arXiv:1711.00141).

    `theta -= lr * (alpha d_t + beta (d_t - d_(t-1)))`, `d_t` Adam's direction, `d_0 = d_1`.

    Args:
        params: parameters or groups.
        lr: learning rate.
        betas: decay rates of the averages of g and of g^2.
        eps: added to the root, after the bias correction.
        alpha: factor of the direction.
        beta: factor of its change.
        weight_decay: strength of the decoupled decay.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        alpha: float = 1.0,
        beta: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, lr=lr, betas=betas, eps=eps, alpha=alpha, beta=beta, weight_decay=weight_decay
        )

    def update(self, theta: Tensor, g: Tensor, state: State, group: Group) -> None:
        decay(theta, group)
        theta.sub_(_optimistic(adam_direction(g, state, group), state, group), alpha=group["lr"])
