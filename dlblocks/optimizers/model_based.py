"""Optimisers whose rate follows from the loss itself: they need its value, which the closure returns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dlblocks.errors import UserError
from dlblocks.optimizers.base import Group, State, TensorOptimizer, averaged, gradient_of


class _ModelBased(TensorOptimizer):
    def before(self, loss: Any) -> None:
        if loss is None:
            raise UserError(f"{type(self).__name__}: step() needs a closure that returns the loss.")
        moving = list(self.moving())
        if moving:
            self.rate = self.rate_of(torch.as_tensor(loss).detach(), moving)

    @abstractmethod
    def rate_of(self, loss: Tensor, moving: list[tuple[Tensor, Group]]) -> Tensor:
        """The rate that the model of the loss asks for, at most which each tensor takes."""


class PolyakSGD(_ModelBased):
    """SGD with Polyak's step (Loizou et al. 2020, arXiv:2002.10542).

    `theta -= min(lr, max(loss - f_min, 0) / |g|^2) * g`; the norm over all parameters.

    Args:
        params: parameters or groups.
        lr: the largest rate.
        f_min: the least loss that can be.

    Raises:
        UserError: `step` without a closure.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1.0, f_min: float = 0.0) -> None:
        super().__init__(params, lr=lr, f_min=f_min)

    def rate_of(self, loss: Tensor, moving: list[tuple[Tensor, Group]]) -> Tensor:
        squares = torch.stack([gradient_of(theta).square().sum() for theta, _ in moving]).sum()
        return _ratio(loss - moving[0][1]["f_min"], squares)

    def update(self, theta: Tensor, g: Tensor, state: State, group: Group) -> None:  # noqa: ARG002
        theta.sub_(g * self.rate.clamp(max=group["lr"]))


class Momo(_ModelBased):
    """Momentum whose rate is cut where a model of the loss says so (Schaipp et al. 2023, arXiv:2305.07583).

    Averages with rate `beta` that start at their first value: `d` of g, `f` of the loss, `c` of
    `<g, theta>`; `theta -= min(lr, max(f - lower_bound - c + <d, theta>, 0) / |d|^2) * d`; products over
    all parameters.

    Args:
        params: parameters or groups.
        lr: the largest rate.
        beta: decay rate of the averages.
        lower_bound: the least loss that can be.

    Raises:
        UserError: `step` without a closure.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1.0, beta: float = 0.9, lower_bound: float = 0.0
    ) -> None:
        super().__init__(params, lr=lr, beta=beta, lower_bound=lower_bound)

    def rate_of(self, loss: Tensor, moving: list[tuple[Tensor, Group]]) -> Tensor:
        beta, lower_bound = moving[0][1]["beta"], moving[0][1]["lower_bound"]
        product = inner = length = torch.zeros_like(loss)
        for theta, group in moving:
            g, state = gradient_of(theta), self.state[theta]
            if "exp_avg" not in state:
                state["exp_avg"] = g.clone()
            d = averaged(state, "exp_avg", g, group["beta"])
            product = product + (g * theta).sum()
            inner = inner + (d * theta).sum()
            length = length + d.square().sum()
        state = self.state[moving[0][0]]
        mean_loss, mean_product = _mean(state, "loss", loss, beta), _mean(state, "product", product, beta)
        return _ratio(mean_loss - lower_bound - mean_product + inner, length)

    def update(self, theta: Tensor, g: Tensor, state: State, group: Group) -> None:  # noqa: ARG002
        theta.sub_(state["exp_avg"] * self.rate.clamp(max=group["lr"]))


class MomoAdam(_ModelBased):
    """Adam whose rate is cut where a model of the loss says so (Schaipp et al. 2023, arXiv:2305.07583).

    `m`, `v` as Adam; `D = sqrt(v / (1 - beta_2^t)) + eps`; averages of rate `beta_1` from zero: `f` of the
    loss, `c` of `<g, theta>`; `b = 1 - beta_1^t`;
    `theta -= min(lr / b, max(f - b lower_bound - c + <m, theta>, 0) / <m, m / D>) * m / D`; products over
    all parameters.

    Args:
        params: parameters or groups.
        lr: the largest rate.
        betas: decay rates of the averages of g and of g^2.
        eps: added to the root.
        lower_bound: the least loss that can be.

    Raises:
        UserError: `step` without a closure.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        lower_bound: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, lower_bound=lower_bound)

    def rate_of(self, loss: Tensor, moving: list[tuple[Tensor, Group]]) -> Tensor:
        product = inner = length = torch.zeros_like(loss)
        for theta, group in moving:
            g, state = gradient_of(theta), self.state[theta]
            beta_1, beta_2 = group["betas"]
            t = state.get("step", 0) + 1
            m = averaged(state, "exp_avg", g, beta_1)
            v = averaged(state, "exp_avg_sq", g.square(), beta_2)
            state["direction"] = m / (v / (1 - beta_2**t)).sqrt_().add_(group["eps"])
            product = product + (g * theta).sum()
            inner = inner + (m * theta).sum()
            length = length + (m * state["direction"]).sum()
        first, group = moving[0]
        state, beta_1 = self.state[first], group["betas"][0]
        zero = torch.zeros_like(loss)
        mean_loss = _mean(state, "loss", loss, beta_1, zero)
        mean_product = _mean(state, "product", product, beta_1, zero)
        corrected = 1 - beta_1 ** (state.get("step", 0) + 1)
        return _ratio(mean_loss - corrected * group["lower_bound"] - mean_product + inner, length)

    def update(self, theta: Tensor, g: Tensor, state: State, group: Group) -> None:  # noqa: ARG002
        largest = group["lr"] / (1 - group["betas"][0] ** state["step"])
        theta.sub_(state["direction"] * self.rate.clamp(max=largest))


def _ratio(gap: Tensor, length: Tensor) -> Tensor:
    """How far the loss is above what it can be, over the squared length of the step; 0 for no step."""
    return gap.clamp(min=0) / length.clamp(min=torch.finfo(length.dtype).tiny)


def _mean(state: State, key: str, value: Tensor, rate: float, start: Tensor | None = None) -> Tensor:
    last = state.get(key, value if start is None else start)
    state[key] = torch.lerp(last, value.to(last.dtype), 1 - rate)
    mean: Tensor = state[key]
    return mean
