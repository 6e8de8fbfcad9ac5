"""A learnt scale of another optimizer's way."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from dlblocks.optimizers.base import gradient_of
from dlblocks.optimizers.wrappers import Wrapper, evaluated

_BETAS = (0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999)


class TRAC(Wrapper):
    """The base's way from the start, times a scale that is learnt (Muppidi et al. 2024, arXiv:2405.16642).

    `d = (theta - theta_0) / (S + eps)`, u the base's step; `h = g . d`, over all parameters; for each beta
    `v = beta^2 v + h^2`, `c = beta c - h`, with v = 0 and c = 1e-8 at first;
    `S = first / erfi(1 / sqrt(2)) sum erfi(c / (sqrt(2 v) + eps))`; `theta = theta_0 + max(S, 0) (d + u)`.

    Args:
        base: the optimizer that takes the step.
        betas: decay rates, each of a tuner of its own.
        first: the order of the first scale.
        eps: added to the denominators.
    """

    def __init__(
        self, base: Optimizer, betas: Sequence[float] = _BETAS, first: float = 1e-8, eps: float = 1e-8
    ) -> None:
        super().__init__(base, trac_betas=list(betas), trac_first=first, trac_eps=eps)
        for group in self.param_groups:
            group.setdefault("trac_scale", 0.0)
            group.setdefault("trac_squares", [0.0] * len(betas))
            group.setdefault("trac_sums", [1e-8] * len(betas))

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = evaluated(closure)
        # A base may change gradients in place.
        begun = [(theta, theta.detach().clone(), gradient_of(theta).clone()) for theta, _ in self.moving()]
        self.base.step()
        if not begun:
            return loss
        first = self.param_groups[0]
        with torch.no_grad():
            ways, products = [], []
            for theta, before, g in begun:
                # A base begins its state where it finds none, so this comes after its first step.
                origin = self.state[theta].setdefault("origin", before)
                way = (before - origin) / (first["trac_scale"] + first["trac_eps"])
                products.append((way * g).sum())
                ways.append((theta, origin, way.add_(theta - before)))
            scale = self._tune(float(torch.stack(products).sum()))
            for theta, origin, way in ways:
                theta.copy_(origin + max(scale, 0.0) * way)
        return loss

    def _tune(self, h: float) -> float:
        """The next scale, kept in every group."""
        first = self.param_groups[0]
        betas, eps = first["trac_betas"], first["trac_eps"]
        squares = [beta**2 * v + h**2 for beta, v in zip(betas, first["trac_squares"], strict=True)]
        sums = [beta * c - h for beta, c in zip(betas, first["trac_sums"], strict=True)]
        tuned = [_erfi(c / (math.sqrt(2 * v) + eps)) for c, v in zip(sums, squares, strict=True)]
        scale: float = first["trac_first"] / _erfi(1 / math.sqrt(2)) * sum(tuned)
        for group in self.param_groups:
            group.update(trac_scale=scale, trac_squares=squares, trac_sums=sums)
        return scale


def _erfi(x: float) -> float:
    """The imaginary error function, which torch has not: `2 / sqrt(pi) sum x^(2n + 1) / (n! (2n + 1))`."""
    power = total = x
    for n in range(1, 2000):
        power *= x * x / n
        total += power / (2 * n + 1)
        if abs(power) <= 1e-17 * abs(total):
            break
    return 2 / math.sqrt(math.pi) * total
