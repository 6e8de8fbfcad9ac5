"""Optimisers around another one, whose groups and state they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dlblocks.optimizers.base import gradient_of


class Wrapper(Optimizer, ABC):
    """What wrappers share: schedulers, checkpoints and groups see one optimizer.

    Args:
        base: the optimizer inside.
        options: kept in each group, under names that no base has for its own.
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

    def moving(self) -> list[tuple[Tensor, dict[str, Any]]]:
        """Every parameter that has a gradient, with its group."""
        return [
            (theta, group)
            for group in self.param_groups
            for theta in group["params"]
            if theta.grad is not None
        ]

    @abstractmethod
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update."""


def evaluated(closure: Callable[[], Any] | None) -> Any:
    """The closure's loss, if there is a closure; the gradients are its."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


class Lookahead(Wrapper):
    """k steps of the base, then a part of the way (Zhang et al. 2019, arXiv:1907.08610).

    Every k steps `slow += alpha (theta - slow)`, `theta = slow`; slow starts at theta.

    Args:
        base: the optimizer that takes the steps.
        k: steps between two of the slow weights.
        alpha: share of the way that these go.
    """

    def __init__(self, base: Optimizer, k: int = 5, alpha: float = 0.5) -> None:
        super().__init__(base, slow_every=k, slow_share=alpha)
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
        if group["fast_steps"] % group["slow_every"] == 0:
            theta.copy_(slow.lerp_(theta, group["slow_share"]))


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
        loss = evaluated(closure)
        with torch.no_grad():
            for theta, _ in self.moving():
                g = gradient_of(theta)
                g.copy_(_at_right_angles(g, theta))
        self.base.step()
        return loss


def _at_right_angles(g: Tensor, theta: Tensor) -> Tensor:
    rest = g - theta * ((theta * g).sum() / theta.square().sum().clamp_min(1e-30))
    length, whole = rest.norm(), g.norm()
    # What is left of a gradient along the weights is rounding, and no direction.
    near = length <= 4 * torch.finfo(g.dtype).eps * whole
    return torch.where(near, torch.zeros_like(rest), rest * (whole / length.clamp_min(1e-30)))


class Cautious(Wrapper):
    """The base's step where it agrees in sign with descent, and 0 elsewhere (Liang et al. 2024, arXiv:2411.16085).

    `u` the base's step, without its decoupled decay; `s = 1` where `u g < 0`, else 0;
    `theta += u s / max(mean(s), floor)`, the mean over each tensor. The decay is as in the base.

    Args:
        base: the optimizer that takes the step.
        floor: the least mean by which the rest of the step is divided.
        decoupled: whether the base's decay is beside its step, where its groups don't say.
    """

    def __init__(self, base: Optimizer, floor: float = 1e-3, decoupled: bool = False) -> None:
        super().__init__(base, cautious_floor=floor)
        self.decoupled = decoupled

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = evaluated(closure)
        # A base may change gradients in place.
        begun = [
            (theta, group, theta.detach().clone(), gradient_of(theta).clone())
            for theta, group in self.moving()
        ]
        self.base.step()
        with torch.no_grad():
            for theta, group, before, g in begun:
                # Some bases only begin their averages in the first step, and decay nothing then.
                decayed = torch.where(theta == before, 0.0, before * self._decay(group))
                step = theta - before + decayed
                agree = (step * g < 0).to(step.dtype)
                step.mul_(agree / agree.mean().clamp_min(group["cautious_floor"]))
                theta.copy_(before - decayed + step)
        return loss

    def _decay(self, group: dict[str, Any]) -> float:
        """The share of the weights that the base's decoupled decay takes."""
        said = group.get("weight_decouple", group.get("decoupled_weight_decay", self.decoupled))
        strength = group.get("weight_decay", 0.0) if said else 0.0
        return float(strength if group.get("fixed_decay") else strength * group["lr"])
