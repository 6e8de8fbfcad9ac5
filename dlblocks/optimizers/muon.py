"""Momentum made orthogonal."""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from dlblocks.optimizers.base import Group, State, TensorOptimizer, adam_direction, averaged, decay

# Of the quintic that is applied to the singular values; its steepness at zero makes five rounds enough.
_COEFFICIENTS = (3.4445, -4.775, 2.0315)


class Muon(TensorOptimizer):
    """Momentum made orthogonal, for matrices; what is no matrix goes by AdamW at the same rate.

    `b_t = momentum b_(t-1) + (1 - momentum) g`; `u = (1 - momentum) g + momentum b_t` if nesterov else
    `b_t`; `theta -= lr * weight_decay * theta`; `theta -= lr * s * UV'` with `u = U S V'`, found by
    Newton-Schulz iteration in bfloat16 (Jordan et al. 2024, kellerjordan.github.io/posts/muon). `s` is
    `sqrt(max(1, rows / columns))` (`original`), or `0.2 sqrt(max(rows, columns))` (`match_rms_adamw`, Liu
    et al. 2025, arXiv:2502.16982), which makes steps as long as AdamW's. The kernels of a convolution are
    one matrix, flattened behind their outputs. Embeddings and the last layer are better given to AdamW:
    pass them in a group of another optimizer.

    Args:
        params: parameters or groups.
        lr: learning rate of matrices and of the rest.
        weight_decay: strength of the decoupled decay.
        momentum: decay rate of the average of g.
        nesterov: look ahead along the momentum.
        ns_steps: Newton-Schulz iterations.
        adjust_lr_fn: `s`: `match_rms_adamw` or `original`.
        betas: AdamW's, for the rest.
        eps: AdamW's, for the rest.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(
            params,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            nesterov=nesterov,
            ns_steps=ns_steps,
            adjust_lr_fn=adjust_lr_fn,
            betas=betas,
            eps=eps,
        )

    def update(self, theta: Tensor, g: Tensor, state: State, group: Group) -> None:
        decay(theta, group)
        if theta.ndim < 2:
            theta.sub_(adam_direction(g, state, group), alpha=group["lr"])
            return
        u = averaged(state, "momentum_buffer", g, group["momentum"])
        if group["nesterov"]:
            u = torch.lerp(g, u, group["momentum"])
        matrix = u.flatten(1)
        rows, columns = matrix.shape
        if group["adjust_lr_fn"] == "original":
            size = sqrt(max(1.0, rows / columns))
        else:
            size = 0.2 * sqrt(max(rows, columns))
        theta.sub_(orthogonal(matrix, group["ns_steps"]).view_as(theta), alpha=group["lr"] * size)


def orthogonal(matrix: Tensor, steps: int) -> Tensor:
    """`UV'` of `U S V'`, about: the singular values come to lie between 0.7 and 1.2; in bfloat16."""
    a, b, c = _COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).bfloat16()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)
