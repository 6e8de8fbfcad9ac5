"""The one-cycle policy."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dlblocks.errors import UserError


class OneCycle(LambdaLR):
    """Up to the optimizer's lr and down to almost zero (Smith & Topin 2017, arXiv:1708.07120).

    The factor goes from `1 / div_factor` at t = 0 to 1 at t = `pct_start * T - 1`, then to
    `1 / (div_factor * final_div_factor)` at t = T - 1, where it stays. Between a and b, with p from 0
    to 1, it is a + (b - a)(1 - cos(pi p)) / 2 for `cos` and a + (b - a) p for `linear`. With
    `cycle_momentum` the momentum, or Adam's beta_1, goes from `max_momentum` to `base_momentum` and back.

    Raises:
        UserError: `cycle_momentum` with an optimizer that has neither momentum nor betas.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = False,
        base_momentum: float = 0.85,
        max_momentum: float = 0.95,
    ) -> None:
        cycle = partial(
            _cycle, turn=pct_start * total_steps - 1, last=total_steps - 1, cos=anneal_strategy == "cos"
        )
        first = 1 / div_factor
        self._momentum = None
        if cycle_momentum:
            if not {"momentum", "betas"} & optimizer.defaults.keys():
                raise UserError(
                    f"cycle_momentum=true: {type(optimizer).__name__} has neither momentum nor betas."
                    " Set cycle_momentum=false, or take an optimizer that has."
                )
            self._momentum = partial(cycle, ends=(max_momentum, base_momentum, max_momentum))
        super().__init__(optimizer, partial(cycle, ends=(first, 1.0, first / final_div_factor)))

    def get_lr(self) -> list[float | Tensor]:
        if self._momentum is not None:
            momentum = self._momentum(self.last_epoch)
            for group in self.optimizer.param_groups:
                if "betas" in group:
                    group["betas"] = (momentum, *group["betas"][1:])
                else:
                    group["momentum"] = momentum
        return super().get_lr()

    def state_dict(self) -> dict[str, Any]:
        """The place in the cycle; its shape is the recipe's."""
        return {key: value for key, value in super().state_dict().items() if key != "_momentum"}


def _cycle(t: int, *, turn: float, last: int, cos: bool, ends: tuple[float, float, float]) -> float:
    start, peak, end = ends
    turn = max(turn, 0.0)
    t = min(t, last)
    if t < turn:
        a, b, p = start, peak, t / turn
    elif last > turn:
        a, b, p = peak, end, (t - turn) / (last - turn)
    else:
        return peak
    share = (1 - math.cos(math.pi * p)) / 2 if cos else p
    return (1 - share) * a + share * b  # exact at both ends, which a + share * (b - a) is not
