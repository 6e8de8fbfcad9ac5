"""Optimisers around another one, whose groups and state they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dlblocks.errors import UserError


class Wrapper(Optimizer, ABC):
    """What wrappers share: schedulers, checkpoints and groups see one optimizer.

    Args:
        base: the optimizer inside.
        options: kept in each group.
    """

    def __init__(self, base: Optimizer, **options: Any) -> None:
        self.base = base
        super().__init__(base.param_groups, options)
        self._link()

    def _link(self) -> None:
        self.param_groups, self.state = self.base.param_groups, self.base.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` gave, in the manner of the base."""
        self.base.load_state_dict(state_dict)
        self._link()

    @abstractmethod
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update."""


class Lookahead(Wrapper):
    """k steps of the base, then a part of the way (Zhang et al. 2019, arXiv:1907.08610).

    Every k steps `slow += alpha (theta - slow)`, `theta = slow`; slow starts at theta.

    Args:
        base: the optimizer that takes the steps.
        k: steps between two of the slow weights.
        alpha: share of the way that these go.
    """

    def __init__(self, base: Optimizer, k: int = 5, alpha: float = 0.5) -> None:
        super().__init__(base, k=k, alpha=alpha)
        for group in self.param_groups:
            group.setdefault("fast_steps", 0)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        # A base begins its state where it finds none, so the slow weights come after its first step.
        begun = {
            theta: theta.detach().clone()
            for group in self.param_groups
            for theta in group["params"]
            if "slow" not in self.state.get(theta, {})
        }
        loss = self.base.step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                group["fast_steps"] += 1
                for theta in group["params"]:
                    if theta.grad is not None:
                        self._follow(theta, group, begun)
        return loss

    def _follow(self, theta: Tensor, group: dict[str, Any], begun: dict[Tensor, Tensor]) -> None:
        slow: Tensor = self.state[theta].setdefault("slow", begun.get(theta))
        if group["fast_steps"] % group["k"] == 0:
            theta.copy_(slow.lerp_(theta, group["alpha"]))


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

    def __init__(self, base: Optimizer, rho: float = 0.05, adaptive: bool = False) -> None:
        super().__init__(base, rho=rho, adaptive=adaptive)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        if closure is None:
            raise UserError("SAM: step() needs a closure that evaluates the model and returns the loss.")
        with torch.enable_grad():
            loss = closure()
        before = self._climb()
        with torch.enable_grad():
            closure()
        with torch.no_grad():
            for theta, value in before:
                theta.copy_(value)
        self.base.step()
        return loss

    @torch.no_grad()
    def _climb(self) -> list[tuple[Tensor, Tensor]]:
        """Move to the worst point near by; returns the parameters with what they were."""
        moving = [
            (theta, theta.detach().clone(), group)
            for group in self.param_groups
            for theta in group["params"]
            if theta.grad is not None
        ]
        scaled = [theta.grad * theta.abs() if group["adaptive"] else theta.grad for theta, _, group in moving]
        if scaled:
            norm = torch.stack([g.norm() for g in scaled]).norm().clamp_min(1e-12)
            for (theta, _, group), g in zip(moving, scaled, strict=True):
                step = g * theta.abs() if group["adaptive"] else g
                theta.add_(step * (group["rho"] / norm))
        return [(theta, value) for theta, value, _ in moving]


class OrthoGrad(Wrapper):
    """The base's step by the part of the gradient at right angles to the weights (Prieto et al. 2025,
    arXiv:2501.04697).

    `g' = g - theta (theta . g) / |theta|^2` in each tensor, brought to the length of g: steps that scale the
    weights alone, which lower the loss of what is learnt already, are left out.

    Args:
        base: the optimizer that takes the step.
    """

    def __init__(self, base: Optimizer) -> None:
        super().__init__(base)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for theta in group["params"]:
                    if theta.grad is not None:
                        theta.grad.copy_(_at_right_angles(theta.grad, theta))
        self.base.step()
        return loss


def _at_right_angles(g: Tensor, theta: Tensor) -> Tensor:
    rest = g - theta * ((theta * g).sum() / theta.square().sum().clamp_min(1e-30))
    length, whole = rest.norm(), g.norm()
    # What is left of a gradient along the weights is rounding, and no direction.
    near = length <= 4 * torch.finfo(g.dtype).eps * whole
    return torch.where(near, torch.zeros_like(rest), rest * (whole / length.clamp_min(1e-30)))
