"""SGD with gradient noise."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dlblocks.optimizers.base import Group, State, TensorOptimizer, decayed


class NoisySGD(TensorOptimizer):
    """SGD with noise that fades (Neelakantan et al. 2015, arXiv:1511.06807).

    `theta -= lr * (g + n)`, `n` normal with variance `eta / t^gamma`, from torch's global generator.

    Args:
        params: parameters or groups.
        lr: learning rate.
        eta: variance of the noise at the first step.
        gamma: how fast the noise fades.
        weight_decay: strength of the l2 decay.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        eta: float = 0.01,
        gamma: float = 0.55,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, eta=eta, gamma=gamma, weight_decay=weight_decay)

    def update(self, theta: Tensor, g: Tensor, state: State, group: Group) -> None:
        deviation = (group["eta"] / state["step"] ** group["gamma"]) ** 0.5
        theta.sub_(decayed(theta, g, group) + torch.randn_like(theta) * deviation, alpha=group["lr"])
