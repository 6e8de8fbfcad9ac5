"""SPlus, which may be asked for its averaged weights at any time."""

from __future__ import annotations

import pytorch_optimizer
import torch


class SPlus(pytorch_optimizer.SPlus):
    """Shampoo with signs in the eigenbasis (Frans et al. 2025, arXiv:2506.07254).

    `eval()` puts the average of the weights in their place, and `train()` puts them back. A parameter that has not been
    stepped has no average and stays as it is: a net is also judged before its first step.
    """

    @torch.no_grad()
    def eval(self) -> None:
        for group in self.param_groups:
            if not group["train_mode"]:
                continue
            for parameter in group["params"]:
                state = self.state.get(parameter, {})
                if "ema" in state:
                    state["param_buffer"] = parameter.clone()
                    parameter.copy_(state["ema"] / (1 - group["ema_rate"] ** group["step"]))
            group["train_mode"] = False
