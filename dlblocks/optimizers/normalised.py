"""Gradient descent scaled by the norm of the gradient of all parameters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dlblocks.optimizers.base import (
    Group,
    State,
    TensorOptimizer,
    averaged,
    decayed,
    gradient_of,
    squares_of,
)


class AdaGradNorm(TensorOptimizer):
    """SGD over the root of the sum of all squared norms of g (Ward et al. 2018, arXiv:1806.01811).

    `b_t^2 = b_(t-1)^2 + |g|^2`; `theta -= lr / b_t * g`; the norm over all parameters.

    Args:
        params: parameters or groups.
        lr: learning rate.
        b_0: first value of b.
        weight_decay: strength of the l2 decay.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1.0, b_0: float = 0.1, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, lr=lr, b_0=b_0, weight_decay=weight_decay)

    def before(self, loss: Any) -> None:  # noqa: ARG002
        moving = list(self.moving())
        if not moving:
            return
        total = squares_of(decayed(theta, gradient_of(theta), group) for theta, group in moving)
        # What belongs to no one tensor is kept with the first, as a checkpoint has no other place for it.
        first, group = moving[0]
        state = self.state[first]
        state["total"] = state.get("total", group["b_0"] ** 2) + total
        self.root = state["total"].sqrt()

    def update(self, theta: Tensor, g: Tensor, state: State, group: Group) -> None:  # noqa: ARG002
        theta.sub_(decayed(theta, g, group) * (group["lr"] / self.root))


class NormalizedSGD(TensorOptimizer):
    """Steps of the length lr along the momentum (Cutkosky & Mehta 2020, arXiv:2002.03305).

    `m_t = momentum m_(t-1) + (1 - momentum) g`, m_1 = g; `theta -= lr * m_t / |m_t|`, the norm over all
    parameters; without momentum, Nesterov's normalised gradient descent (1984).

    Args:
        params: parameters or groups.
        lr: length of the step.
        momentum: decay rate of the average of g.
        weight_decay: strength of the l2 decay.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 0.01, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def before(self, loss: Any) -> None:  # noqa: ARG002
        means = []
        for theta, group in self.moving():
            g, state = decayed(theta, gradient_of(theta), group), self.state[theta]
            state.setdefault("exp_avg", g.clone())
            means.append(averaged(state, "exp_avg", g, group["momentum"]))
        if means:
            length = squares_of(means).sqrt()
            self.length = length.clamp(min=torch.finfo(length.dtype).tiny)

    def update(self, theta: Tensor, g: Tensor, state: State, group: Group) -> None:  # noqa: ARG002
        theta.sub_(state["exp_avg"] * (group["lr"] / self.length))
