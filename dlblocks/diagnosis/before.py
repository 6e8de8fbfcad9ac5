"""The diagnosis of a run, before its training."""

from __future__ import annotations

import torch
from torch import Tensor

from dlblocks.diagnosis.diagnose import diagnose
from dlblocks.diagnosis.report import Diagnosis
from dlblocks.diagnosis.stepper import without_rate
from dlblocks.module import LitModule

# Instances looked at, fewer where they are large, and the numbers in them at most.
_INSTANCES, _NUMBERS = 2048, 2**21
# Copies of larger nets are trained only if that is asked for: it may take minutes.
_PARAMETERS = 2_000_000


def diagnose_on(
    module: LitModule,
    data: tuple[Tensor, Tensor],
    lr: float | None,
    batch_size: int,
    thorough: bool = False,
) -> Diagnosis:
    """Diagnose a module on some of its training data.

    Args:
        module: as it will be trained.
        data: x and y of the training part.
        lr: the rate it will be trained with; None if that is still to be found.
        batch_size: instances for each update.
        thorough: try out copies of the net however large it is.
    """
    x, y = data
    count = max(16, min(_INSTANCES, _NUMBERS // max(1, x[0].numel())))
    chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:count].to(x.device)
    # A search before it leaves the data on the Trainer's device, and brings the module back.
    device = module.device
    return diagnose(
        module.net,
        (x[chosen].to(device), y[chosen].to(device)),
        loss=module.criterion,
        optimizer=without_rate(module.optimizer_spec) if lr is None else module.optimizer_spec,
        lr=lr,
        batch_size=batch_size,
        trials=thorough or sum(p.numel() for p in module.net.parameters()) <= _PARAMETERS,
    )
