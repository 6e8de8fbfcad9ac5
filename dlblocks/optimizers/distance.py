"""Optimisers whose rate comes from the distance travelled, so that none has to be set."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dlblocks.optimizers.base import Group, State, TensorOptimizer, decayed, gradient_of, squares_of


class _Distance(TensorOptimizer):
    """`theta -= lr * rate * g` with one rate for all tensors, from norms over all of them."""

    def before(self, loss: Any) -> None:  # noqa: ARG002
        moving = list(self.moving())
        if not moving:
            return
        # What belongs to no one tensor is kept with the first, as a checkpoint has no other place for it.
        first, group = moving[0]
        shared = self.state[first]
        begins = "start" not in shared
        for theta, _ in moving:
            self.state[theta].setdefault("start", theta.clone())
        if begins:
            shared |= self.begin(squares_of(theta for theta, _ in moving).sqrt(), group)
        distance = squares_of(theta - self.state[theta]["start"] for theta, _ in moving)
        squares = squares_of(decayed(theta, gradient_of(theta), group) for theta, group in moving)
        self.rate = self.rate_of(distance, squares, shared, group)

    @abstractmethod
    def begin(self, size: Tensor, group: Group) -> State:
        """The first state, from the norm of theta."""

    @abstractmethod
    def rate_of(self, distance: Tensor, squares: Tensor, state: State, group: Group) -> Tensor:
        """The rate, from the squared distance to the start and the squared norm of the gradient."""

    def update(self, theta: Tensor, g: Tensor, state: State, group: Group) -> None:  # noqa: ARG002
        theta.sub_(decayed(theta, g, group) * (group["lr"] * self.rate))


class DoG(_Distance):
    """Distance over gradients (Ivgi et al. 2023, arXiv:2302.12022).

    `r_t = max_(i <= t) |theta_i - theta_0|`, at least `reps_rel * (1 + |theta_0|)`;
    `theta -= lr * r_t / sqrt(sum_(i <= t) |g_i|^2 + eps) * g`; norms over all parameters.

    Args:
        params: parameters or groups.
        lr: factor of the rate; leave it at 1.
        reps_rel: first distance, relative; 1e-4 with batch norm.
        eps: added inside the root.
        weight_decay: strength of the l2 decay.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        reps_rel: float = 1e-6,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, reps_rel=reps_rel, eps=eps, weight_decay=weight_decay)

    def begin(self, size: Tensor, group: Group) -> State:
        return {"farthest": group["reps_rel"] * (1 + size), "squares": torch.zeros_like(size)}

    def rate_of(self, distance: Tensor, squares: Tensor, state: State, group: Group) -> Tensor:
        farthest = state["farthest"] = torch.maximum(state["farthest"], distance.sqrt())
        state["squares"] = state["squares"] + squares
        rate: Tensor = farthest / (state["squares"] + group["eps"]).sqrt()
        return rate


class DoWG(_Distance):
    """Distance over weighted gradients (Khaled et al. 2023, arXiv:2305.16284).

    `r_t = max(r_(t-1), |theta_t - theta_0|^2)`, `r_0 = eps`; `v_t = v_(t-1) + r_t |g|^2`;
    `theta -= lr * r_t / (sqrt(v_t) + eps) * g`; norms over all parameters.

    Args:
        params: parameters or groups.
        lr: factor of the rate; leave it at 1.
        eps: first squared distance, and added to the root.
        weight_decay: strength of the l2 decay.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1.0, eps: float = 1e-4, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, lr=lr, eps=eps, weight_decay=weight_decay)

    def begin(self, size: Tensor, group: Group) -> State:
        return {"farthest": torch.full_like(size, group["eps"]), "weighted": torch.zeros_like(size)}

    def rate_of(self, distance: Tensor, squares: Tensor, state: State, group: Group) -> Tensor:
        farthest = state["farthest"] = torch.maximum(state["farthest"], distance)
        state["weighted"] = state["weighted"] + farthest * squares
        rate: Tensor = farthest / (state["weighted"].sqrt() + group["eps"])
        return rate


class Cocob(TensorOptimizer):
    """Coin betting: each weight bets on its gradient's sign (Orabona & Tommasi 2017, arXiv:1705.07795).

    `L = max(L, |g|)`, `G += |g|`, `R = max(R - (theta - theta_0) g, 0)`, `C -= g`;
    `theta += lr * (theta_0 + C (L + R) / (L max(G + L, alpha L)) - theta)`.

    Args:
        params: parameters or groups.
        lr: share of the step that is taken; leave it at 1.
        alpha: the first bets are at most 1 / alpha.
        eps: first value of L.
        weight_decay: strength of the l2 decay.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        alpha: float = 100.0,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay)

    def update(self, theta: Tensor, g: Tensor, state: State, group: Group) -> None:
        g = decayed(theta, g, group)
        if "start" not in state:
            state["start"] = theta.clone()
            state["scale"] = torch.full_like(theta, group["eps"])
            for key in ("total", "reward", "sum"):
                state[key] = torch.zeros_like(theta)
        scale = state["scale"] = torch.maximum(state["scale"], g.abs())
        total = state["total"].add_(g.abs())
        reward = state["reward"].sub_((theta - state["start"]) * g).clamp_(min=0)
        bet = state["sum"].sub_(g) / (scale * torch.maximum(total + scale, group["alpha"] * scale))
        theta.lerp_(state["start"] + bet * (scale + reward), group["lr"])
