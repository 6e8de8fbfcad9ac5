"""Gradient descent whose rate is measured along its path."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dlblocks.optimizers.base import Group, State, TensorOptimizer, decayed, gradient_of, squares_of


class AdGD(TensorOptimizer):
    """Adaptive gradient descent without descent (Malitsky & Mishchenko 2019, arXiv:1910.09529).

    `r_t = min(sqrt(1 + r_(t-1) / r_(t-2)) r_(t-1), |theta_t - theta_(t-1)| / (2 |g_t - g_(t-1)|))`, where
    the second rate is the second of the two; `theta -= lr * r_t * g`; norms over all parameters.

    Args:
        params: parameters or groups.
        lr: factor of the rate; leave it at 1.
        first: the first rate.
        weight_decay: strength of the l2 decay.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1.0, first: float = 1e-6, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, lr=lr, first=first, weight_decay=weight_decay)

    def before(self, loss: Any) -> None:  # noqa: ARG002
        moving = list(self.moving())
        if not moving:
            return
        gradients = [decayed(theta, gradient_of(theta), group) for theta, group in moving]
        states = [self.state[theta] for theta, _ in moving]
        # What belongs to no one tensor is kept with the first, as a checkpoint has no other place for it.
        shared = states[0]
        known = [n for n, state in enumerate(states) if "gradient" in state]
        if known:
            moved = squares_of(moving[n][0] - states[n]["start"] for n in known)
            turned = squares_of(gradients[n] - states[n]["gradient"] for n in known)
            grown = (1 + shared["growth"]).sqrt() * shared["rate"]
            # Where the gradient stays, any rate fits.
            measured = torch.where(turned > 0, (moved / turned).sqrt() / 2, grown)
            rate = torch.minimum(grown, measured)
            shared["growth"], shared["rate"] = rate / shared["rate"], rate
        else:
            zero = torch.zeros_like(gradients[0].sum())
            shared["growth"], shared["rate"] = zero + torch.inf, zero + moving[0][1]["first"]
        self.rate = shared["rate"]
        for (theta, _), gradient, state in zip(moving, gradients, states, strict=True):
            state["start"], state["gradient"] = theta.clone(), gradient.clone()

    def update(self, theta: Tensor, g: Tensor, state: State, group: Group) -> None:  # noqa: ARG002
        theta.sub_(state["gradient"] * (group["lr"] * self.rate))
