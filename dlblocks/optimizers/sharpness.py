"""Sharpness-aware minimisation: another optimizer's step by gradients from near by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dlblocks.errors import UserError
from dlblocks.optimizers.base import gradient_of
from dlblocks.optimizers.wrappers import Wrapper, evaluated

Closure = Callable[[], Any]


class SAM(Wrapper):
    """The base's step by the gradient at the worst point near by: flat minima (Foret et al. 2020, arXiv:2010.01412).

    `e = rho g / |g|`, the norm over all parameters; `g = gradient at theta + e`; then the base's step from
    theta. Adaptive (Kwon et al. 2021, arXiv:2102.11600): `e = rho theta^2 g / ||theta| g|`. Two forward and
    backward passes a step.

    Args:
        base: the optimizer that takes the step.
        rho: distance of that point.
        adaptive: measured in the size of each weight; wants a rho about ten times as large.

    Raises:
        UserError: `step` without a closure.
    """

    def __init__(self, base: Optimizer, rho: float = 0.05, adaptive: bool = False, **options: Any) -> None:
        super().__init__(base, sam_rho=rho, sam_adaptive=adaptive, **options)

    def step(self, closure: Closure | None = None) -> Any:
        if closure is None:
            raise UserError(
                f"{type(self).__name__}: step() needs a closure that evaluates the model and returns the loss."
            )
        loss = evaluated(closure)
        self.update(closure)
        return loss

    def update(self, closure: Closure) -> None:
        """The base's step, from the gradients at theta."""
        self.to_worst(closure, [gradient_of(theta) for theta, _ in self.moving()])
        self.base.step()

    def to_worst(self, closure: Closure, directions: list[Tensor]) -> None:
        """Replace the gradients by those at the worst point near by, which is where the directions lead."""
        moving = self.moving()
        before = [theta.detach().clone() for theta, _ in moving]
        with torch.no_grad():
            _climb(moving, directions)
        evaluated(closure)
        with torch.no_grad():
            for (theta, _), value in zip(moving, before, strict=True):
                theta.copy_(value)

    def gradients(self) -> list[tuple[Tensor, Tensor]]:
        """The parameters that have a gradient, and a copy of it."""
        return [(theta, gradient_of(theta).clone()) for theta, _ in self.moving()]

    def compared(self, closure: Closure) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The parameters with their gradient, and that at the worst point near by, in place of which another may be
        put."""
        plain = self.gradients()
        self.to_worst(closure, [g for _, g in plain])
        return [(theta, g, gradient_of(theta)) for theta, g in plain if theta.grad is not None]


class GSAM(SAM):
    """SAM that also closes the gap between the worst loss near by and the loss (Zhuang et al. 2022, arXiv:2203.08065).

    `g_p` the gradient at theta + e of SAM, `o` the part of g at right angles to it:
    `o = g - g_p (g . g_p) / |g_p|^2`; then the base's step by `g_p - alpha o`. Products over all parameters.

    Args:
        base: the optimizer that takes the step.
        rho: distance of that point.
        adaptive: measured in the size of each weight.
        alpha: factor of the part at right angles.
    """

    def __init__(
        self, base: Optimizer, rho: float = 0.05, adaptive: bool = False, alpha: float = 0.4
    ) -> None:
        super().__init__(base, rho, adaptive, sam_alpha=alpha)

    def update(self, closure: Closure) -> None:
        pairs = self.compared(closure)
        alpha = self.param_groups[0]["sam_alpha"]
        with torch.no_grad():
            share = _along([(g, worst) for _, g, worst in pairs])
            for _, g, worst in pairs:
                worst.sub_(g - share * worst, alpha=alpha)
        self.base.step()


class WSAM(SAM):
    """SAM whose sharpness is a weighted penalty on the loss (Yue et al. 2023, arXiv:2305.15817).

    `h = gamma / (1 - gamma) (g_p - g)`, g_p the gradient at theta + e of SAM. Decoupled: the base's step by g,
    then `theta -= lr h`; else the base's step by `g + h`, which is SAM at gamma = 0.5.

    Args:
        base: the optimizer that takes the step.
        rho: distance of that point.
        adaptive: measured in the size of each weight.
        gamma: weight of the sharpness.
        decouple: keep the sharpness out of the base's averages.
    """

    def __init__(
        self,
        base: Optimizer,
        rho: float = 0.05,
        adaptive: bool = False,
        gamma: float = 0.9,
        decouple: bool = True,
    ) -> None:
        super().__init__(base, rho, adaptive, sam_gamma=gamma, sam_decouple=decouple)

    def update(self, closure: Closure) -> None:
        pairs = self.compared(closure)
        groups = dict(self.moving())
        sharpness = []
        with torch.no_grad():
            for theta, g, worst in pairs:
                gamma = groups[theta]["sam_gamma"]
                sharpness.append((theta, (worst - g).mul_(gamma / (1 - gamma))))
                worst.copy_(g)
                if not groups[theta]["sam_decouple"]:
                    worst.add_(sharpness[-1][1])
        self.base.step()
        with torch.no_grad():
            for theta, h in sharpness:
                if groups[theta]["sam_decouple"]:
                    theta.sub_(h, alpha=groups[theta]["lr"])


class LookSAM(SAM):
    """SAM that looks for the worst point only every k steps (Liu et al. 2022, arXiv:2203.02714).

    At steps 1, k + 1, ...: as SAM, and of its gradient g_p the part at right angles to g is kept,
    `v = g_p - g (g . g_p) / |g|^2`; at the others: the base's step by `g + alpha v |g| / |v|`. Norms and
    products over all parameters.

    Args:
        base: the optimizer that takes the step.
        rho: distance of that point.
        adaptive: measured in the size of each weight.
        k: steps between two looks, each of which costs a second forward and backward pass.
        alpha: factor of the part that is kept.
    """

    def __init__(
        self, base: Optimizer, rho: float = 0.05, adaptive: bool = False, k: int = 5, alpha: float = 0.7
    ) -> None:
        super().__init__(base, rho, adaptive, sam_k=k, sam_alpha=alpha)
        for group in self.param_groups:
            group.setdefault("sam_looks", 0)

    def update(self, closure: Closure) -> None:
        first = self.param_groups[0]
        if first["sam_looks"] % first["sam_k"] == 0:
            self._look(closure)
        else:
            with torch.no_grad():
                self._remember(first["sam_alpha"])
            self.base.step()
        for group in self.param_groups:
            group["sam_looks"] += 1

    def _look(self, closure: Closure) -> None:
        pairs = self.compared(closure)
        with torch.no_grad():
            share = _along([(worst, g) for _, g, worst in pairs])
            kept = [(theta, worst - share * g) for theta, g, worst in pairs]
        # A base begins its state where it finds none, so this comes after its first step.
        self.base.step()
        for theta, v in kept:
            self.state[theta]["sharp"] = v

    def _remember(self, alpha: float) -> None:
        known = [theta for theta, _ in self.moving() if "sharp" in self.state[theta]]
        if known:
            size = _norm([gradient_of(theta) for theta in known])
            scale = alpha * size / _norm([self.state[theta]["sharp"] for theta in known])
            for theta in known:
                gradient_of(theta).add_(self.state[theta]["sharp"] * scale)


class FriendlySAM(SAM):
    """SAM that looks along the noise of the batch alone (Li et al. 2024, arXiv:2403.12350).

    `d = g - sigma m`, m the average gradient of the steps before; `e = rho d / |d|`; the rest as SAM. In the
    first step `d = g`, and then m = g; later `m = lambda m + (1 - lambda) g`.

    Args:
        base: the optimizer that takes the step.
        rho: distance of that point.
        adaptive: measured in the size of each weight.
        sigma: share of the average that is taken away.
        decay: lambda, decay rate of the average.
    """

    def __init__(
        self,
        base: Optimizer,
        rho: float = 0.05,
        adaptive: bool = False,
        sigma: float = 1.0,
        decay: float = 0.9,
    ) -> None:
        super().__init__(base, rho, adaptive, sam_sigma=sigma, sam_decay=decay)

    def update(self, closure: Closure) -> None:
        groups = dict(self.moving())
        plain = self.gradients()
        directions = []
        for theta, g in plain:
            mean = self.state.get(theta, {}).get("usual")
            directions.append(g if mean is None else g - groups[theta]["sam_sigma"] * mean)
        self.to_worst(closure, directions)
        self.base.step()
        for theta, g in plain:
            mean = self.state[theta].setdefault("usual", g)
            mean.lerp_(g, 1 - groups[theta]["sam_decay"])


def _climb(moving: list[tuple[Tensor, dict[str, Any]]], directions: list[Tensor]) -> None:
    """Move to the worst point near by, which is where the directions lead."""
    pairs = list(zip(moving, directions, strict=True))
    scaled = [d * theta.abs() if group["sam_adaptive"] else d for (theta, group), d in pairs]
    if not scaled:
        return
    norm = _norm(scaled)
    for ((theta, group), _), d in zip(pairs, scaled, strict=True):
        step = d * theta.abs() if group["sam_adaptive"] else d
        theta.add_(step * (group["sam_rho"] / norm))


def _norm(tensors: list[Tensor]) -> Tensor:
    """Of all tensors together, and never 0."""
    norm: Tensor = torch.stack([tensor.norm() for tensor in tensors]).norm()
    return norm.clamp_min(1e-12)


def _along(pairs: list[tuple[Tensor, Tensor]]) -> Tensor | float:
    """`(a . b) / |b|^2` of all `(a, b)` together: how much of b there is in a."""
    if not pairs:
        return 0.0
    product = torch.stack([(a * b).sum() for a, b in pairs]).sum()
    return product / _norm([b for _, b in pairs]).square()
