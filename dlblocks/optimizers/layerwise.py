"""Optimisers whose rate in each tensor follows the ratio of its weights' norm to its step's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dlblocks.optimizers.base import Group, State, TensorOptimizer, adam_direction, decayed


class Lamb(TensorOptimizer):
    """Adam's direction with a trust ratio for each tensor (You et al. 2019, arXiv:1904.00962).

    `u = adam's direction + weight_decay * theta`; `theta -= lr * |theta| / |u| * u`; the ratio is 1 where
    either norm is 0.

    Args:
        params: parameters or groups.
        lr: learning rate.
        betas: decay rates of the averages of g and of g^2.
        eps: added to the root, after the bias correction.
        weight_decay: strength of the decay, inside the trust ratio.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def update(self, theta: Tensor, g: Tensor, state: State, group: Group) -> None:
        u = adam_direction(g, state, group)
        if group["weight_decay"]:
            u.add_(theta, alpha=group["weight_decay"])
        length, wanted = u.norm(), theta.norm()
        ratio = torch.where((length > 0) & (wanted > 0), wanted / length, 1.0)
        theta.sub_(u.mul_(group["lr"] * ratio))


class Larc(TensorOptimizer):
    """LARS that only ever lowers the rate (Ginsburg et al. 2018, NVIDIA; You et al. 2017, arXiv:1708.03888).

    `r = trust_coefficient |theta| / (|g| + weight_decay |theta| + eps)`, 1 where either norm is 0;
    `g' = min(r / lr, 1) * (g + weight_decay * theta)`; then as SGD with momentum.

    Args:
        params: parameters or groups.
        lr: learning rate, which no tensor's goes above.
        momentum: share of the last step that is kept.
        weight_decay: strength of the decay, inside the ratio.
        trust_coefficient: factor of the ratio.
        eps: added to the ratio's denominator.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1.0,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            trust_coefficient=trust_coefficient,
            eps=eps,
        )

    def update(self, theta: Tensor, g: Tensor, state: State, group: Group) -> None:
        weights, gradient = theta.norm(), g.norm()
        ratio = group["trust_coefficient"] * weights
        ratio = ratio / (gradient + group["weight_decay"] * weights + group["eps"])
        ratio = torch.where((weights > 0) & (gradient > 0), ratio / group["lr"], 1.0).clamp(max=1.0)
        step = decayed(theta, g, group) * ratio
        if group["momentum"]:
            buffer = state.get("momentum_buffer")
            step = step if buffer is None else buffer.mul_(group["momentum"]).add_(step)
            state["momentum_buffer"] = step
        theta.sub_(step, alpha=group["lr"])
