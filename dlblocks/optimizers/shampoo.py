"""Shampoo whose inverse roots stay finite."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dlblocks.optimizers.base import Group, State, TensorOptimizer, averaged, decay, decayed


class Shampoo(TensorOptimizer):
    """A preconditioner for each dimension of a tensor (Gupta et al. 2018, arXiv:1802.09568).

    With g unfolded along each of its k dimensions, `H_i += g_(i) g_(i)'` from `H_i = matrix_eps I`, and
    `theta -= lr * g x_1 H_1^(-1/2k) x_2 H_2^(-1/2k) ...`; of a matrix, `lr * L^(-1/4) g R^(-1/4)`. No eigenvalue counts as
    less than `matrix_eps`, which it is not but for rounding: units that get no gradient would make it 0.

    Args:
        params: parameters or groups.
        lr: learning rate.
        momentum: decay rate of an average that stands for g; 0 for g itself.
        weight_decay: strength of the decay.
        weight_decouple: whether the decay stays out of g.
        fixed_decay: whether decoupled decay is not multiplied by the rate.
        preconditioning_compute_steps: steps between two inverse roots.
        matrix_eps: what the preconditioners begin with.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        weight_decouple: bool = False,
        fixed_decay: bool = False,
        preconditioning_compute_steps: int = 1,
        matrix_eps: float = 1e-6,
    ) -> None:
        self.preconditioning_compute_steps = preconditioning_compute_steps
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            weight_decouple=weight_decouple,
            fixed_decay=fixed_decay,
            matrix_eps=matrix_eps,
        )

    def update(self, theta: Tensor, g: Tensor, state: State, group: Group) -> None:
        if not group["weight_decouple"]:
            g = decayed(theta, g, group)
        elif group["fixed_decay"]:
            theta.mul_(1 - group["weight_decay"])
        else:
            decay(theta, group)
        if group["momentum"]:
            g = averaged(state, "momentum_buffer", g, group["momentum"])
        due = (state["step"] - 1) % self.preconditioning_compute_steps == 0
        direction = g
        for axis, size in enumerate(g.shape):
            unfolded = g.movedim(axis, 0).reshape(size, -1)
            if f"preconditioner_{axis}" not in state:
                eye = torch.eye(size, dtype=g.dtype, device=g.device)
                state[f"preconditioner_{axis}"] = eye * group["matrix_eps"]
            matrix: Tensor = state[f"preconditioner_{axis}"].addmm_(unfolded, unfolded.T)
            if due:
                state[f"inverse_root_{axis}"] = _inverse_root(matrix, 2 * g.ndim, group["matrix_eps"])
            direction = torch.tensordot(state[f"inverse_root_{axis}"], direction, ([1], [axis])).movedim(
                0, axis
            )
        theta.add_(direction, alpha=-group["lr"])


def _inverse_root(matrix: Tensor, root: int, least: float) -> Tensor:
    """`matrix^(-1 / root)`, with no eigenvalue below `least`."""
    # Lower precisions have no eigenvalues in torch.
    values, vectors = torch.linalg.eigh(matrix.to(torch.promote_types(matrix.dtype, torch.float32)))
    made: Tensor = (vectors * values.clamp(min=least).pow(-1 / root)) @ vectors.T
    return made.to(matrix.dtype)
